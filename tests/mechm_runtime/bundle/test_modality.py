"""Every row of the table of modalities fits what it describes: encoders, inputs of the fusion, options of commands."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from typing import Any

import click
import pytest

from mechm_runtime.bundle.modality import DROPPABLE_MODALITIES, ENCODER_PARTS, MODALITY_SPECS, ModalitySpec
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.types import MODALITIES

each_modality = pytest.mark.parametrize("spec", MODALITY_SPECS, ids=lambda spec: spec.name)


def test_the_rows_are_the_public_modalities() -> None:
    assert tuple(spec.name for spec in MODALITY_SPECS) == MODALITIES
    names = [part.name for part in ENCODER_PARTS]
    assert len(names) == len(set(names)), "a part encodes one modality"


def test_scenes_are_left_out_before_faces() -> None:
    assert DROPPABLE_MODALITIES == ("scene", "face")


@each_modality
def test_an_encoder_is_made_from_a_bundle_and_encodes(spec: ModalitySpec) -> None:
    module, _, name = spec.encoder.partition(":")
    encoder = getattr(import_module(module), name)
    assert inspect.ismethod(encoder.from_bundle)
    assert callable(encoder.encode)
    if spec.track == "video":
        assert encoder.absent_reason
        assert callable(encoder.tokens)


@each_modality
def test_the_fusion_has_its_input_and_mask(spec: ModalitySpec) -> None:
    assert {spec.name, spec.mask} <= {field.name for field in fields(FusionInputs)}


@pytest.mark.parametrize(
    ("module", "command", "option"),
    [("mechm.cli.analyze", "analyze", "modalities"), ("mechm.cli.bench", "bench", "modalities")],
)
def test_commands_offer_every_modality(module: str, command: str, option: str) -> None:
    found: dict[str, Any] = {parameter.name: parameter for parameter in getattr(import_module(module), command).params}
    kind = found[option].type
    assert isinstance(kind, click.Choice)
    assert tuple(kind.choices) == MODALITIES
