"""Options and commands under a new name: the old one still works, and says so on standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click


class RenamedOptions(click.Command):
    """A command some of whose options had another name.

    renamed: old option -> new option, both with their dashes. Old names are not in `--help`.
    """

    def __init__(self, *args: Any, renamed: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._renamed = renamed

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse with old names replaced; everything behind `--` is left as it is."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [*map(self._current, args[:end]), *args[end:]])

    def _current(self, argument: str) -> str:
        name, equals, value = argument.partition("=")
        if name not in self._renamed:
            return argument
        warn_of_rename(name, self._renamed[name])
        return f"{self._renamed[name]}{equals}{value}"


def warn_of_rename(old: str, new: str) -> None:
    """Say on standard error that a name is old."""
    click.echo(f"warning: {old} is now called {new}; the old name will go with version 1.0", err=True)
