"""A griffe extension: the lines `name: meaning` of a docstring become a list.

The docstrings of this project describe parameters and fields as plain lines, `deadline_ms: when the answer should be
there.`, with several on one line where they are short. Rendered as Markdown those lines would flow into one paragraph.
A name counts where it is a parameter of the function, a field of the class, or `Returns`, `Raises` or `Yields`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTIONS = ("Returns", "Raises", "Yields")


class FieldLists(griffe.Extension):
    """Rewrites docstrings when a package has been read."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of a function or method."""
        if func.docstring is not None:
            rewrite(func.docstring, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Rewrite the docstring of a class, whose fields may be named with or without `__init__`."""
        if cls.docstring is not None:
            rewrite(cls.docstring, set(cls.members))


def rewrite(docstring: griffe.Docstring, names: set[str]) -> None:
    """Turn the fields of a docstring into a Markdown list, in place."""
    docstring.value = with_lists(docstring.value, names)


def with_lists(text: str, names: set[str]) -> str:
    """The docstring with a list item per field.

    names: which words before a colon name a field.
    """
    alternatives = "|".join(map(re.escape, sorted({*names, *SECTIONS})))
    field = re.compile(rf"(?:^|(?<=[.;] ))((?:{alternatives})(?:, (?:{alternatives}))*): ")
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        pieces = [piece for piece in re.split(r"(?=\0)", field.sub(lambda m: f"\0{m[1]}: ", line)) if piece.strip()]
        if not pieces:
            in_list = False
            lines.append("")
            continue
        for piece in pieces:
            if piece.startswith("\0"):
                name, _, meaning = piece[1:].partition(": ")
                if not in_list:
                    lines.append("")
                shown = f"**{name}**" if name in SECTIONS else ", ".join(f"`{one}`" for one in name.split(", "))
                lines.append(f"- {shown}: {meaning.strip()}")
                in_list = True
            else:
                lines.append(f"  {piece.strip()}" if in_list else piece)
    return "\n".join(lines)
