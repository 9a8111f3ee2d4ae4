"""Terms of use: what the cards in a manifest say about the training data."""

from __future__ import annotations

from typing import Any

import pytest

from mechm_runtime.bundle.terms import restricted_data, terms_of_use


def test_restricted_corpora_of_every_card_are_named_once() -> None:
    ecf, dailydialog = "ECF 1.0, research use only", "RECCON on DailyDialog, CC BY-NC-SA 4.0"
    manifest = {
        "card": {
            "data": {
                "ecf": {"licence": ecf},
                "goemotions": {"licence": "GoEmotions, Apache-2.0"},
                "speech": {"recordings": 3, "licence": "EmoDB, free for research; Own studio, CC0"},
                "recordings": {"audio": 12},
            }
        },
        "llama": {
            "card": {"data": {"ecf": {"licence": ecf}}},
            "projector_card": {"data": {"r": {"licence": dailydialog}}},
        },
    }
    assert restricted_data(manifest) == (ecf, "EmoDB, free for research", dailydialog)
    assert terms_of_use(manifest).startswith("For research only, not for commercial use: ")


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"card": {"warning": "random weights"}},
        {"card": {"data": {"ecf": {"licence": "Own calls, all rights ours"}}}},
        {"card": [], "llama": 3},
        {"card": {"data": {"a": 1, "b": {"licence": 5}}}, "llama": {"card": None}},
    ],
)
def test_without_restrictions_there_are_no_terms(manifest: dict[str, Any]) -> None:
    assert terms_of_use(manifest) == ""
