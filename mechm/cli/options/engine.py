"""The inference engine: the option of the commands that analyse."""

from __future__ import annotations

import click

from mechm_runtime.engines.spec import DEFAULT_ENGINE, ENGINES

engine_option = click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    default=DEFAULT_ENGINE,
    show_default=True,
    help=f"Inference engine. {' '.join(f'{name}: {spec.summary}.' for name, spec in ENGINES.items())}",
)
