"""Comparison of two bundles by their manifests; equal manifests list equal files."""

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
"""Section -> the manifest's entries in it; all other entries are in the section `other`."""
LIST_KEYS = {
    "inputs": ("name",),
    "outputs": ("name",),
    "values": ("part", "precision"),
    "task": ("split", "precision"),
}
"""Name of a list of objects -> the entries that identify an object, so that an added one does not shift all others."""
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that differs. before, after: JSON values, or ABSENT."""

    section: str
    name: str
    before: Any
    after: Any


def compare_bundles(one: Bundle, other: Bundle) -> tuple[Difference, ...]:
    """All values of the manifests that differ, except the id, in the order of SECTIONS."""
    section_of = {key: section for section, keys in SECTIONS.items() for key in keys}
    order = [*SECTIONS, "other"]
    found = [
        Difference(section_of.get(path[0], "other"), ".".join(path), before, after)
        for path, before, after in _differences(_lists_to_dicts(one.manifest), _lists_to_dicts(other.manifest))
        if path != ("id",)
    ]
    return tuple(sorted(found, key=lambda difference: order.index(difference.section)))


def _differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key, ABSENT), other.get(key, ABSENT), (*path, key))
    elif one != other:
        yield path, one, other


def _lists_to_dicts(value: Any, key: str = "") -> Any:
    """Replace the lists of LIST_KEYS in a JSON value by dicts of their objects."""
    if isinstance(value, Mapping):
        return {name: _lists_to_dicts(inner, name) for name, inner in value.items()}
    if key in LIST_KEYS and isinstance(value, Sequence):
        return {" ".join(str(item[name]) for name in LIST_KEYS[key]): _lists_to_dicts(item) for item in value}
    return value
