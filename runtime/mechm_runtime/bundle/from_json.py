"""Frozen dataclasses from JSON, strictly: every field is there, none is unknown, no value is converted in silence.

Libraries for this take True for an int and accept that a field with a default is missing (dacite 1.9).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def read_dataclass(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A dataclass from a JSON object that has all of its fields, no others, and values of the annotated types.

    Raises: ValueError: a field is missing or unknown. TypeError: a value of another type, or a number that is not
        finite. Whatever the class raises where it checks its values.
    """
    hints = get_type_hints(kind)
    if differing := sorted(hints.keys() ^ values.keys()):
        raise ValueError(f"{kind.__name__} has other fields: {', '.join(differing)}")
    return kind(**{name: read_value(value, hints[name]) for name, value in values.items()})


def read_value(value: Any, hint: Any) -> Any:
    """A JSON value of the annotated type: a list for a tuple, and 1 for the float 1.0; nothing else is converted.

    hint: bool, int, float, str, a tuple of these, or a dataclass.
    Raises: as `read_dataclass`.
    """
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if not isinstance(value, list):
            raise TypeError(f"{value!r} is not a list")
        each = items[:1] * len(value) if items[-1] is Ellipsis else items
        return tuple(read_value(item, kind) for item, kind in zip(value, each, strict=True))
    if isinstance(hint, type) and is_dataclass(hint):
        return read_dataclass(hint, value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise TypeError(f"{value!r} is not a {hint.__name__}")
    return value
