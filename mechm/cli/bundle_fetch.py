"""`mechm bundle fetch`: works in a light install."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path)


def _read_sha256(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    import re

    if value is None:
        return None
    digits = value.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise click.BadParameter("a sha256 has 64 hexadecimal digits")
    return digits


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option(
    "--out",
    type=_FILE,
    metavar="DIR",
    help="The bundle's folder. Default: bundles/NAME in the cache folder; that of small is the default bundle's.",
)
@click.option(
    "--sha256",
    callback=_read_sha256,
    metavar="HEX",
    help="Refuse anything else: the hash of the archive, of the model's manifest in an OCI registry or layout, or else "
    "of bundle.json.",
)
@click.option(
    "--public-key",
    type=_FILE,
    envvar="MECHM_PUBLIC_KEY",
    metavar="FILE",
    help="Refuse a bundle that this key (Ed25519, PEM) has not signed. Default: MECHM_PUBLIC_KEY.",
)
@click.option("--force", is_flag=True, help="Replace another bundle that lies there.")
def fetch(source: str, out: Path | None, sha256: str | None, public_key: Path | None, force: bool) -> None:
    """Fetch a bundle that was made elsewhere, and check every file of it. Needs no torch.

    SOURCE is the name of a released bundle (small), the address of a bundle's folder or archive (.tar, .tar.gz, .zip,
    .whl), a reference to an OCI registry, or a folder, an archive or an OCI layout on this machine.

    An interrupted download goes on where it stopped. Only https is used, and http to this machine. Without --sha256 and
    --public-key the hashes show that the bundle is whole, not who made it.

    \b
    mechm bundle fetch small
    mechm bundle fetch https://models.example/bundle.tar.gz --sha256 HEX --out bundle
    mechm bundle fetch oci://registry.example/mechm:v1 --public-key key.pub --out bundle
    mechm bundle fetch layout --out bundle
    """
    from mechm.cli.options.progress import steps_progress
    from mechm_runtime.bundle.location import default_bundle_path
    from mechm_runtime.fetch.fetch_bundle import fetch_bundle

    with steps_progress() as on_progress:
        got = fetch_bundle(source, out, sha256=sha256, public_key=public_key, force=force, on_progress=on_progress)
    folder = got.bundle.folder
    is_default = folder.absolute() == default_bundle_path().absolute()
    use = "mechm analyze uses it by default" if is_default else f"mechm analyze ... --bundle {folder} uses it"
    signed = f", signed by {public_key}" if public_key is not None else ""
    done = "wrote" if got.is_new else "already there and whole:"
    click.echo(f"{done} {folder} ({got.bundle.id}){signed}; {use}")
