"""`mechm export check`."""

from __future__ import annotations

from pathlib import Path

import click

from mechm.cli.options.renamed import RenamedOptions
from mechm_export.cli.options import (
    conversations_option,
    find_adapter,
    find_trained,
    read_check_set,
    recordings_option,
    require_packages,
    steps_display,
    weights_options,
)


@click.command(cls=RenamedOptions, renamed={"--llm": "--adapter"})
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@weights_options
@conversations_option
@recordings_option
def check(
    folder: Path,
    trained: Path | None,
    adapter: str | None,
    llm_base: Path | None,
    conversations: Path | None,
    recordings: tuple[tuple[Path, Path], ...],
) -> None:
    """Repeat every check on a bundle: hashes, names, axes, values, answers.

    Needs the base weights it was made from (`mechm weights fetch`). Exits with 1 where something differs.
    """
    require_packages()
    from mechm_export.bundle.report import print_report
    from mechm_export.bundle.verify import verify_bundle
    from mechm_runtime.bundle.open import open_bundle
    from mechm_runtime.errors import VerificationError

    opened = open_bundle(folder, check_hashes=False)
    check_set = read_check_set(conversations, recordings)
    trained = find_trained(opened.preset, trained)
    llama = None if opened.llama is None else find_adapter(trained, adapter)
    with steps_display() as on_step:
        report = verify_bundle(
            folder, trained=trained, adapter=llama, llm_base=llm_base, check_set=check_set, on_step=on_step
        )
    print_report(report)
    if report.problems:
        raise VerificationError("; ".join(report.problems))
    click.echo(f"{folder} is what it says ({report.bundle.id})")
