"""`mechm bundle`: fetch, inspect, compare, sign, split and pack bundles. No command needs torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm.cli.bundle_fetch import fetch
from mechm_runtime.engines.spec import ENGINES

if TYPE_CHECKING:
    from mechm_export.deployment.split import LlamaForm
    from mechm_runtime.engines.spec import EngineName

MODALITIES = ("text", "audio", "face", "scene")

_File = click.Path(path_type=Path)
_out = click.option("--out", type=_File, required=True, metavar="DIR", help="The target: a new or empty folder.")
_folder = click.argument("folder", type=_File, metavar="DIR")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


@click.group()
def bundle() -> None:
    """Fetch, inspect, compare, sign, split and pack bundles.

    Commands that read a bundle also take package:NAME for its folder, for a bundle that is installed as a wheel.
    """


bundle.add_command(fetch)


@bundle.command("inspect")
@click.argument("folder", type=_File, metavar="[DIR]", required=False)
@_json
def inspect_command(folder: Path | None, as_json: bool) -> None:
    """Show what is in a bundle: parts, precisions, scores, licences, versions, and whether it is signed.

    Default: the bundle that mechm analyze uses. Reads the manifest and checks that the files exist, but does not hash
    them: mechm bundle verify does.
    """
    from mechm_export.deployment.inspection import inspect_bundle
    from mechm_export.deployment.report import print_inspection
    from mechm_runtime.bundle.open import open_bundle

    found = inspect_bundle(open_bundle(folder, check_hashes=False))
    if as_json:
        _print_json(found.to_dict())
    else:
        print_inspection(found)


@bundle.command()
@click.argument("one", type=_File, metavar="A")
@click.argument("other", type=_File, metavar="B")
@_json
def diff(one: Path, other: Path, as_json: bool) -> None:
    """Show how bundle B differs from bundle A: weights, constants, parts, files, scores, versions, licences.

    Exit codes: 0 they are equal, 1 they differ, 2 one cannot be read. The manifests are compared, which list the hash
    of every file; mechm bundle verify checks the files against them.
    """
    from dataclasses import asdict

    from mechm_export.deployment.difference import compare_bundles
    from mechm_export.deployment.report import print_differences
    from mechm_runtime.bundle.open import open_bundle

    before, after = (open_bundle(folder, check_hashes=False) for folder in (one, other))
    differences = compare_bundles(before, after)
    if as_json:
        _print_json([asdict(difference) for difference in differences])
    else:
        print_differences(differences)
    if not as_json and not differences:
        click.echo(f"both are {before.id}")
    sys.exit(1 if differences else 0)


@bundle.command()
@click.option(
    "--out", type=_File, required=True, metavar="FILE", help="The private key; the public one goes beside it."
)
def keygen(out: Path) -> None:
    """Make a pair of Ed25519 keys for signing and verifying bundles.

    The private key is not encrypted, and only you may read its file. To make an encrypted one with OpenSSL:

    \b
    openssl genpkey -algorithm ed25519 -aes256 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub
    """
    from mechm_runtime.bundle.signature import write_keys

    public = write_keys(out)
    click.echo(f"wrote {out}, to be kept secret, and {public}, for whoever verifies")


@bundle.command()
@_folder
@click.option("--key", type=_File, required=True, metavar="FILE", help="The private key: Ed25519, PEM.")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle: write bundle.sig, the Ed25519 signature of bundle.json, beside it.

    The bundle is checked first, and must hold no other files. The password of an encrypted key is asked for, or read
    from MECHM_KEY_PASSWORD. Any change of the bundle (mechm export llm, split) removes the signature.

    \b
    mechm bundle keygen --out key.pem
    mechm bundle sign bundle --key key.pem
    mechm bundle verify bundle --key key.pub
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_runtime.bundle.signature import sign_bundle

    with steps_progress() as on_progress:
        signed = sign_bundle(folder, key, password=_password, on_progress=on_progress)
    click.echo(f"signed {signed.folder} ({signed.id})")


@bundle.command()
@click.argument("folder", type=_File, metavar="[DIR]", required=False)
@click.option("--key", type=_File, metavar="FILE", help="The public key (PEM) that must have signed it.")
def verify(folder: Path | None, key: Path | None) -> None:
    """Check every file of a bundle, that its folder holds no others, and with --key who signed it.

    Exit codes: 0 it is whole (and signed by that key), 2 it is not. mechm export check checks that it answers as torch
    does, which needs the weights.
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_runtime.bundle.signature import open_complete_bundle, open_signed_bundle, read_signature

    with steps_progress() as on_progress:
        if key is None:
            checked = open_complete_bundle(folder, on_progress=on_progress)
        else:
            checked = open_signed_bundle(folder, key, on_progress=on_progress)
    if key is not None:
        signed = f"signed by {key}"
    elif read_signature(checked) is None:
        signed = "not signed"
    else:
        signed = "its signature was not checked: --key FILE does"
    click.echo(f"{checked.folder} is whole ({checked.id}); {signed}")


@bundle.command()
@_folder
@click.option("--out", type=_File, required=True, metavar="DIR", help="The new bundle; an existing one is replaced.")
@click.option(
    "--engine",
    type=click.Choice([name for name, spec in ENGINES.items() if not spec.is_built]),
    default="onnxruntime",
    show_default=True,
    help="The engine that will run it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "w8"]),
    help="Precision of every part; w8 is for openvino, which runs small parts in fp32. Default: each part's default on "
    "the engine.",
)
@click.option(
    "--llm",
    type=click.Choice(["none", "onnx", "vllm"]),
    help="none leaves the Llama out, vllm keeps the weights for a server beside its graph. Default: its graph.",
)
@click.option(
    "--modalities",
    metavar="LIST",
    help=f"The modalities that it will read, of {','.join(MODALITIES)}. Default: all that the bundle has parts for.",
)
def split(
    folder: Path, out: Path, engine: EngineName, precision: str | None, llm: LlamaForm | None, modalities: str | None
) -> None:
    """Write the files of a bundle that one deployment needs: one precision per part, and only parts that are run.

    The result is a bundle with its own id, which gives the same answers as the whole one in that precision. Scores that
    were measured with a part that is left out are not copied.

    \b
    mechm bundle split bundle --out edge --precision int8 --llm none
    mechm bundle split bundle --out words --engine openvino --modalities text
    mechm bundle split bundle --out gpu --engine onnxruntime-gpu
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.split import Deployment, split_bundle

    chosen = None if modalities is None else tuple(one.strip() for one in modalities.split(","))
    with steps_progress() as on_progress:
        small = split_bundle(folder, out, Deployment(engine, precision, llm, chosen), on_progress=on_progress)
    size = sum(facts["size_bytes"] for facts in small.manifest["files"].values())
    click.echo(f"wrote {out} ({small.id}, {size / 1e6:.1f} MB)")


@bundle.command("to-wheel")
@_folder
@click.option("--out", type=_File, required=True, metavar="FILE|DIR", help="The wheel, or its folder.")
@click.option("--name", metavar="NAME", help="Name of the distribution. Default: mechm-bundle-PRESET.")
def to_wheel(folder: Path, out: Path, name: str | None) -> None:
    """Pack a bundle into a wheel, which pip installs without a network.

    If MECHM_BUNDLE is not set and the cache folder holds no bundle, mechm uses the installed one. Equal bundles give
    equal wheels.

    \b
    mechm bundle to-wheel bundle --out wheels
    pip install --no-index --no-deps wheels/mechm_bundle_small-*.whl
    mechm analyze call.wav --transcript call.stm --bundle package:mechm-bundle-small
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.wheel import write_wheel

    with steps_progress() as on_progress:
        path = write_wheel(folder, out, name=name, on_progress=on_progress)
    click.echo(f"wrote {path}")


@bundle.command("to-triton")
@_folder
@_out
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8"]),
    help="Precision of every part. fp32 is for GPUs, and batched across requests. Default: each part's default.",
)
@click.option(
    "--name",
    default="mechm",
    show_default=True,
    help="Name of the model that analyses; the parts' names begin with it.",
)
@click.option(
    "--instances",
    "n_instances",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Conversations analysed at once.",
)
def to_triton(folder: Path, out: Path, precision: str | None, name: str, n_instances: int) -> None:
    """Write a model repository for NVIDIA's Triton inference server.

    Every part is a model of its own (onnxruntime backend). The model mechm (Python backend, with mechm installed in
    it) takes a conversation as ECF JSON and returns the analysis of its text as JSON.

    \b
    mechm bundle to-triton bundle --out models --precision fp32
    tritonserver --model-repository models
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.triton import write_repository

    with steps_progress() as on_progress:
        made = write_repository(
            folder, out, precision=precision, name=name, n_instances=n_instances, on_progress=on_progress
        )
    click.echo(f"wrote {out} ({made.id}): {', '.join([name, *(f'{name}_{part}' for part in made.parts)])}")


@bundle.command("to-oci")
@_folder
@click.option("--out", type=_File, required=True, metavar="LAYOUT", help="The layout's folder, or with --tar its file.")
@click.option("--tag", metavar="TAG", help="Default: the bundle's id.")
@click.option("--tar", "as_tar", is_flag=True, help="Write one tar archive of the layout.")
def to_oci(folder: Path, out: Path, tag: str | None, as_tar: bool) -> None:
    """Write an OCI image layout with the media types of CNCF's ModelPack, for registries.

    Every file is a layer, whose digest is the file's hash in bundle.json. Equal bundles give equal layouts.

    \b
    mechm bundle to-oci bundle --out layout --tag v1
    oras cp --from-oci-layout layout:v1 registry.example/mechm:v1
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.oci import write_layout

    with steps_progress() as on_progress:
        digest = write_layout(folder, out, tag=tag, as_tar=as_tar, on_progress=on_progress)
    click.echo(f"wrote {out} ({digest})")


@bundle.command("from-oci")
@click.argument("layout", type=_File, metavar="LAYOUT")
@click.option("--out", type=_File, required=True, metavar="DIR", help="The bundle; an existing one is replaced.")
def from_oci(layout: Path, out: Path) -> None:
    """Extract the bundle from an OCI image layout that mechm bundle to-oci wrote, and check it.

    \b
    oras cp --to-oci-layout registry.example/mechm:v1 layout:v1
    mechm bundle from-oci layout --out bundle
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.oci import read_layout

    with steps_progress() as on_progress:
        made = read_layout(layout, out, on_progress=on_progress)
    click.echo(f"wrote {out} ({made.id})")


def _password() -> str:
    import os

    given = os.environ.get("MECHM_KEY_PASSWORD")
    return str(click.prompt("Password of the key", hide_input=True, err=True)) if given is None else given


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1, ensure_ascii=False))
