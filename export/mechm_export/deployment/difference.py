"""How two bundles differ, by what their manifests say: equal manifests list equal files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechm_runtime.bundle.manifest import Bundle

SECTIONS = {
    "weights": ("weights",),
    "constants": ("labels", "preprocessing", "model", "decision", "llama", "served"),
    "parts": ("parts",),
    "files": ("files",),
    "scores": ("checks",),
    "versions": ("versions", "schema_version"),
    "licences": ("licences",),
}
"""Section -> the manifest's entries in it; what belongs to none is in `other`."""
KEYS_OF_LISTS = {
    "inputs": ("name",),
    "outputs": ("name",),
    "values": ("part", "precision"),
    "task": ("split", "precision"),
}
"""Lists of objects that are told apart by these of their entries, so that one more does not shift all others."""
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs. `before` and `after` are JSON values, or `ABSENT`."""

    section: str
    name: str
    before: Any
    after: Any


def compare_bundles(one: Bundle, other: Bundle) -> tuple[Difference, ...]:
    """Every value of the manifests that differs, but the id, in the order of `SECTIONS`."""
    section_of = {key: section for section, keys in SECTIONS.items() for key in keys}
    order = [*SECTIONS, "other"]
    found = [
        Difference(section_of.get(path[0], "other"), ".".join(path), before, after)
        for path, before, after in _differences(_named(one.manifest), _named(other.manifest))
        if path != ("id",)
    ]
    return tuple(sorted(found, key=lambda difference: order.index(difference.section)))


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key, ABSENT), other.get(key, ABSENT), (*path, key))
    elif one != other:
        yield path, one, other


def _named(value: Any, key: str = "") -> Any:
    """A JSON value with its lists of objects as dicts of them."""
    if isinstance(value, Mapping):
        return {name: _named(inner, name) for name, inner in value.items()}
    if key in KEYS_OF_LISTS and isinstance(value, Sequence):
        return {" ".join(str(item[name]) for name in KEYS_OF_LISTS[key]): _named(item) for item in value}
    return value
