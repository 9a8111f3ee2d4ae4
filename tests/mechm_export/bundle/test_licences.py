"""Licences in a bundle: the texts of every licence, and the terms of the training data where users see them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm.model.build import CARD_FILE
from mechm_export.bundle.licences import licences_text, terms_of_weights
from mechm_export.bundle.manifest import replace_manifest
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.terms import LICENCES_FILE

RESTRICTED = {"data": {"ecf": {"licence": "ECF 1.0 (NUSTM/MECPE, GPL-3.0 repository), research use only"}}}


def test_a_bundle_carries_the_texts(tiny_bundle: Path) -> None:
    """`tiny` has random weights and the detector of `small`, which is under MIT."""
    assert LICENCES_FILE in open_bundle(tiny_bundle).manifest["files"]
    text = (tiny_bundle / LICENCES_FILE).read_text(encoding="utf-8")
    for words in ("copyright (c) 2020 Shiqi Yu", "Permission is hereby granted", "Apache License"):
        assert words in text


def test_the_training_data_and_unknown_licences_are_named() -> None:
    licences = {"text": "Apache-2.0 (a wheel); its authors", "llama": "Llama 2 Community License (the hub)"}
    text = licences_text(licences, {"card": RESTRICTED})
    assert "For research only" in text
    assert "## Llama 2 Community License\n\nThe text is at https://ai.meta.com/llama/license/." in text
    assert "## MIT" not in text
    assert "For research only" not in licences_text(licences, {"card": {"data": {}}})


def test_the_scene_encoders_two_licences_are_both_there() -> None:
    text = licences_text({"scene": "Apache-2.0 AND MIT (a wheel)"}, {})
    assert "## Apache-2.0" in text
    assert "## MIT" in text


def test_terms_are_known_before_the_export(tmp_path: Path) -> None:
    assert terms_of_weights(None, None) == ""
    (tmp_path / CARD_FILE).write_text(json.dumps(RESTRICTED), encoding="utf-8")
    assert "research use only" in terms_of_weights(tmp_path, tmp_path)
    assert terms_of_weights(tmp_path, tmp_path) == terms_of_weights(tmp_path, None)


@pytest.mark.parametrize("card", [RESTRICTED, {"data": {"own": {"licence": "our own"}}}])
def test_inspect_states_the_terms(card: dict[str, object], tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    replace_manifest(open_bundle(folder), {"card": card})
    shown = CliRunner().invoke(cli, ["bundle", "inspect", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert ("For research only" in shown.output) is (card is RESTRICTED)
    as_json = CliRunner().invoke(cli, ["bundle", "inspect", str(folder), "--json"])
    assert bool(json.loads(as_json.output)["terms"]) is (card is RESTRICTED)
