"""Notes about repairs of a file."""

from __future__ import annotations


def counted(number: int, one: str, many: str) -> tuple[str, ...]:
    """A note with its count, for no, one or many repairs."""
    return (f"{number} {one if number == 1 else many}",) if number else ()
