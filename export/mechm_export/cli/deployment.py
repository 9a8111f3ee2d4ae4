"""`mechm bundle`: look into bundles, compare, sign, split and pack them. None of it needs torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechm_runtime.engines.spec import ENGINES

if TYPE_CHECKING:
    from mechm_export.deployment.inspection import Inspection
    from mechm_export.deployment.split import KeptLlama
    from mechm_runtime.engines.spec import EngineName

MODALITIES = ("text", "audio", "face", "scene")
PIPED_WIDTH = 130
SHOWN_CHARACTERS = 60
"""Of a value that differs; --json has all of it."""

_File = click.Path(path_type=Path)
_out = click.option("--out", type=_File, required=True, metavar="DIR", help="Where it goes; a new or empty folder.")
_folder = click.argument("folder", type=_File, metavar="DIR")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")


@click.group()
def bundle() -> None:
    """Inspect, compare, sign, split and pack bundles.

    Where a bundle is read, its folder may also be package:NAME, for one that is installed as a wheel.
    """


@bundle.command("inspect")
@click.argument("folder", type=_File, metavar="[DIR]", required=False)
@_json
def inspect_command(folder: Path | None, as_json: bool) -> None:
    """Show what is in a bundle: parts, precisions, scores, licences, versions, and whether it is signed.

    Without DIR the bundle that mechm analyze would use. It reads the manifest and looks for the files, but does not
    hash them: mechm bundle verify does.
    """
    from mechm_export.deployment.inspection import inspect_bundle
    from mechm_runtime.bundle.open import open_bundle

    found = inspect_bundle(open_bundle(folder, check_hashes=False))
    if as_json:
        _print_json(found.to_dict())
    else:
        _print_inspection(found)


@bundle.command()
@click.argument("one", type=_File, metavar="A")
@click.argument("other", type=_File, metavar="B")
@_json
def diff(one: Path, other: Path, as_json: bool) -> None:
    """Show how bundle B differs from bundle A: weights, constants, parts, files, scores, versions, licences.

    Exit codes: 0 they are equal, 1 they differ, 2 one cannot be read. Manifests are compared, which list the hash of
    every file; mechm bundle verify checks that the files are those.
    """
    from dataclasses import asdict

    from mechm_export.deployment.difference import compare_bundles
    from mechm_runtime.bundle.open import open_bundle

    before, after = (open_bundle(folder, check_hashes=False) for folder in (one, other))
    differences = compare_bundles(before, after)
    if as_json:
        _print_json([asdict(difference) for difference in differences])
    else:
        section = ""
        for difference in differences:
            if difference.section != section:
                section = difference.section
                click.echo(f"{section}:")
            click.echo(f"  {difference.name}: {_shown(difference.before)} -> {_shown(difference.after)}")
    if not as_json and not differences:
        click.echo(f"both are {before.id}")
    sys.exit(1 if differences else 0)


@bundle.command()
@click.option("--out", type=_File, required=True, metavar="FILE", help="The private key; the public one lies beside.")
def keygen(out: Path) -> None:
    """Make a pair of Ed25519 keys, to sign bundles with and to verify them with.

    The private key is not encrypted, and readable by you alone. Or with OpenSSL, encrypted:

    \b
    openssl genpkey -algorithm ed25519 -aes256 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub
    """
    from mechm_runtime.bundle.signature import write_keys

    public = write_keys(out)
    click.echo(f"wrote {out}, which nobody else may have, and {public}, which who verifies needs")


@bundle.command()
@_folder
@click.option("--key", type=_File, required=True, metavar="FILE", help="The private key: Ed25519, PEM.")
def sign(folder: Path, key: Path) -> None:
    """Sign a bundle: bundle.sig, beside bundle.json, is the Ed25519 signature of its bytes.

    The bundle is checked first, and must hold no other files. Where the key is encrypted its password is asked for, or
    taken from MECHM_KEY_PASSWORD. Any change of the bundle (mechm export llm, split) makes it unsigned.

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
    """Check every byte of a bundle, that nothing else lies in its folder, and with --key who signed it.

    Exit codes: 0 it is whole (and signed by that key), 2 it is not. Whether it answers as torch does is checked by
    mechm export verify, which needs the weights.
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
@click.option("--out", type=_File, required=True, metavar="DIR", help="The new bundle; one that is there is replaced.")
@click.option(
    "--engine",
    type=click.Choice([name for name, spec in ENGINES.items() if not spec.is_built]),
    default="onnxruntime",
    show_default=True,
    help="What will run it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "w8"]),
    help="Of every part; w8 is for openvino, which runs small parts in fp32. Default: what the engine runs by itself, "
    "part by part.",
)
@click.option(
    "--llm",
    type=click.Choice(["none", "onnx", "vllm"]),
    help="none leaves the Llama out, vllm keeps the weights for a server beside its graph. Default: its graph.",
)
@click.option(
    "--modalities",
    metavar="LIST",
    help=f"What it will read, of {','.join(MODALITIES)}. Default: all that the bundle has parts for.",
)
def split(
    folder: Path, out: Path, engine: EngineName, precision: str | None, llm: KeptLlama | None, modalities: str | None
) -> None:
    """Write only what one deployment needs of a bundle: one precision a part, and no part that is not run.

    The result is a bundle with an id of its own that answers as the whole one does in that precision. Scores that were
    measured with a part that is left out are not carried over.

    \b
    mechm bundle split bundle --out edge --precision int8 --llm none
    mechm bundle split bundle --out words --engine openvino --modalities text
    mechm bundle split bundle --out gpu --engine onnxruntime-gpu
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_export.deployment.split import Deployment, split_bundle

    chosen = None if modalities is None else tuple(one.strip() for one in modalities.split(","))
    with steps_progress() as on_progress:
        made = split_bundle(folder, out, Deployment(engine, precision, llm, chosen), on_progress=on_progress)
    size = sum(facts["size_bytes"] for facts in made.manifest["files"].values())
    click.echo(f"wrote {out} ({made.id}, {size / 1e6:.1f} MB)")


@bundle.command("to-wheel")
@_folder
@click.option("--out", type=_File, required=True, metavar="FILE|DIR", help="The wheel, or the folder it goes into.")
@click.option("--name", metavar="NAME", help="Of the distribution. Default: mechm-bundle-PRESET.")
def to_wheel(folder: Path, out: Path, name: str | None) -> None:
    """Pack a bundle into a wheel, which pip installs where there is no network.

    Where MECHM_BUNDLE is not set and no bundle lies in the cache folder, mechm uses the one that is installed. Equal
    bundles give equal wheels.

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
    help="Of every part. fp32 is for GPUs, and batched across requests. Default: the bundle's, part by part.",
)
@click.option("--name", default="mechm", show_default=True, help="Of the model that analyses; parts begin with it.")
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

    Every part is a model of its own (onnxruntime backend); the model mechm (Python backend, with mechm installed
    there) takes a conversation as ECF JSON and returns the analysis as JSON, from the words alone.

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

    Every file is a layer whose digest is its hash in bundle.json. Equal bundles give equal layouts.

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
@click.option("--out", type=_File, required=True, metavar="DIR", help="The bundle; one that is there is replaced.")
def from_oci(layout: Path, out: Path) -> None:
    """Take the bundle out of an OCI image layout that mechm bundle to-oci wrote, and check it.

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


def _shown(value: Any) -> str:
    import json

    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _print_inspection(found: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table

    split_from = f", split from {found.split_from}" if found.split_from else ""
    signed = "signed; mechm bundle verify --key says by whom" if found.is_signed else "not signed"
    llama = f"; Llama: {', '.join(found.llama)}" if found.llama else ""
    click.echo(f"{found.id}: preset {found.preset}, schema {found.schema_version}{split_from}, {signed}")
    if_asked = [modality for modality in found.modalities if modality not in found.default_modalities]
    reads = ", ".join(found.default_modalities) + (f", and {', '.join(if_asked)} if asked to" if if_asked else "")
    click.echo(f"{found.size_bytes / 1e6:.1f} MB; reads {reads}{llama}")
    parts = Table(title="Parts", title_justify="left", box=None, pad_edge=False)
    for heading in ("part", "precision"):
        parts.add_column(heading)
    for heading in ("MB", "difference", "cosine"):
        parts.add_column(heading, justify="right")
    for heading in ("inputs", "outputs"):
        parts.add_column(heading, overflow="fold")
    for part in found.parts:
        for index, p in enumerate(part.precisions):
            tensors = [" ".join(t.name for t in side) if index == 0 else "" for side in (part.inputs, part.outputs)]
            parts.add_row(
                part.name if index == 0 else "",
                f"{p.name} *" if p.is_default else p.name,
                f"{p.size_bytes / 1e6:.1f}",
                "" if p.largest_difference is None else f"{p.largest_difference:.1e}",
                "" if p.cosine is None else f"{p.cosine:.5f}",
                *tensors,
            )
    scores = Table(title="Answers, against torch", title_justify="left", box=None, pad_edge=False)
    for heading in ("conversations", "precision"):
        scores.add_column(heading)
    for heading in ("utterances", "labels kept", "weighted F1", "torch"):
        scores.add_column(heading, justify="right")
    for task in found.scores:
        f1 = [task.get(key) for key in ("weighted_f1", "torch_weighted_f1")]
        scores.add_row(
            str(task["split"]),
            str(task["precision"]),
            str(task["n_utterances"]),
            f"{task['labels_kept']:.2%}",
            *("" if value is None else f"{value:.4f}" for value in f1),
        )
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)
    console.print(parts)
    console.print("* what the runtime runs by default; difference and cosine against torch on random inputs")
    if found.scores:
        console.print(scores)
    else:
        console.print("Answers: not checked for what is in this bundle")
    for one in found.accepted:
        console.print(f"{one['part']}: {one['precision']} was written although {one['reason']}", soft_wrap=True)
    for title, values in (("Licences", found.licences), ("Made with", found.versions)):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        for name, value in values.items():
            table.add_row(name, value)
        console.print(table)
