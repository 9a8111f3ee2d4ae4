"""Terms of use that a bundle's training data impose, read from the cards in its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

OWN_DATA_PAGE = "https://github.com/mechm/mechm/blob/main/docs/training.md#training-on-your-own-data"
"""How to train weights whose terms are one's own."""

LICENCES_FILE = "LICENCES.md"
"""Name of the file in a bundle that holds the licences' texts."""

_RESTRICTED = re.compile(r"\b(?:research|non-?commercial|NC|by agreement)\b", re.IGNORECASE)


def restricted_data(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Corpora that the weights were trained on and that may not be used for every purpose, each with its licence.

    manifest: content of `bundle.json`. Cards of the fusion, the Llama and the projector are read; entries that are not
    as `mechm train` writes them are passed over.
    """
    llama = manifest.get("llama")
    owners = [manifest.get("card"), *((llama.get("card"), llama.get("projector_card")) if _is_map(llama) else ())]
    found: dict[str, None] = {}
    for data in (card.get("data") for card in owners if _is_map(card)):
        for corpus in data.values() if _is_map(data) else ():
            licence = corpus.get("licence") if _is_map(corpus) else None
            for one in licence.split("; ") if isinstance(licence, str) else ():
                if _RESTRICTED.search(one):
                    found[one] = None
    return tuple(found)


def terms_of_use(manifest: Mapping[str, Any]) -> str:
    """One sentence with the restrictions of the training data; empty where there are none."""
    corpora = restricted_data(manifest)
    if not corpora:
        return ""
    return f"For research only, not for commercial use: the weights were trained on {'; '.join(corpora)}."


def _is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
