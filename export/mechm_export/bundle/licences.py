"""The licences of a bundle: one line per part for the manifest, and a file with their texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from mechm.model.build import CARD_FILE
from mechm.weights import part_of, weights_path
from mechm.weights.fetch import Provenance, read_provenance
from mechm_export.parts import ModelParts
from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR
from mechm_runtime.bundle.terms import OWN_DATA_PAGE, terms_of_use

TEXTS = ("Apache-2.0", "MIT")
"""SPDX names of the licences whose texts are shipped; others are named with their address."""

ADDRESSES = {"Llama 2 Community License": "https://ai.meta.com/llama/license/"}


def licences_of(model: ModelParts) -> dict[str, str]:
    """The manifest's entry: part -> licence, origin and authors, for every part made from base weights."""
    found = {}
    for part, provenance in provenances(model).items():
        found[part] = f"{provenance.licence} ({provenance.origin})"
        if credit := part_of(provenance.preset, provenance.part).attribution:
            found[part] += f"; {credit}"
    return found


def provenances(model: ModelParts) -> dict[str, Provenance]:
    """Origin of each part's base weights, for those parts whose weights were fetched."""
    # `tiny` has the detector of `small`, as the detector's folder states; its other parts are random.
    names = [part.name for part in model if part.name not in ("fusion", "detector", PROJECTOR)]
    found = {}
    if model.config.preset != "tiny":
        for name in names:
            folder = weights_path("llm" if name == LLAMA else name, model.config.preset)
            found[name] = read_provenance(folder)
    found["detector"] = read_provenance(model.detector)
    return {name: provenance for name, provenance in found.items() if provenance is not None}


def licences_text(licences: dict[str, str], manifest: dict[str, Any]) -> str:
    """The content of `LICENCES.md`.

    licences: as `licences_of` returns them. manifest: the rest of the manifest, whose cards name the training data.
    """
    return "\n".join(_lines(licences, manifest)) + "\n"


def terms_of_weights(trained: Path | None, adapter: Path | None) -> str:
    """Terms of use of weights before they are exported; see `mechm_runtime.bundle.terms`.

    trained: folder of the fusion's weights. adapter: folder of the Llama's.
    """
    cards = [folder / CARD_FILE for folder in (trained, adapter) if folder is not None]
    data = [json.loads(card.read_text(encoding="utf-8")) for card in cards if card.is_file()]
    return " ".join(dict.fromkeys(filter(None, (terms_of_use({"card": card}) for card in data))))


def _lines(licences: dict[str, str], manifest: dict[str, Any]) -> Iterator[str]:
    yield "# Licences of this bundle"
    yield ""
    yield "The graphs were made by MECHM, which is under Apache-2.0, from these weights:"
    yield ""
    for part, licence in licences.items():
        yield f"- {part}: {licence}"
    yield ""
    if terms := terms_of_use(manifest):
        yield f"**{terms}** These terms hold for every part that was trained on that data. How to train on other data:"
        yield f"{OWN_DATA_PAGE}"
        yield ""
    named = {name for licence in licences.values() for name in re.split(r" AND ", licence.partition(" (")[0])}
    for name in TEXTS:
        if name in named | {"Apache-2.0"}:
            yield f"## {name}"
            yield ""
            text = resources.files("mechm_export.bundle").joinpath("licence_texts", f"{name}.txt")
            yield text.read_text(encoding="utf-8").rstrip()
            yield ""
    for name in sorted(named - set(TEXTS)):
        yield f"## {name}"
        yield ""
        yield f"The text is at {ADDRESSES.get(name, 'the address of the weights')}."
        yield ""
