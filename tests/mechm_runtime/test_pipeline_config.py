"""Options of a pipeline stand once: as a config, or as keyword arguments in place of its fields."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from mechm_runtime import EngineConfig, InputError, Pipeline, PipelineConfig, ServerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("text", "smell")}, "unknown modality 'smell'"),
        ({"modalities": ()}, "no modality"),
        ({"asked_below": 1.5}, "not a probability"),
        ({"server": ServerConfig()}, "not asked there"),
        ({"llm": "vllm-local", "engine": EngineConfig(engine="openvino")}, "have not been tried"),
    ],
)
def test_invalid_options_are_refused_before_a_bundle_is_opened(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        PipelineConfig(**options)
    with pytest.raises(InputError, match=message):
        Pipeline.from_bundle(tmp_path / "none", **options)


def test_a_config_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        PipelineConfig().llm = "none"  # type: ignore[misc]


def test_an_unknown_option_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="modality"):
        Pipeline.from_bundle(tmp_path, modality=("text",))  # type: ignore[call-arg]


def test_options_stand_in_for_fields_of_a_config(tiny_bundle: Path) -> None:
    config = PipelineConfig(precision="fp32", modalities=("text",), engine=EngineConfig(n_threads=1))
    assert Pipeline.from_bundle(tiny_bundle, config).modalities == ("text",)
    other = Pipeline.from_bundle(tiny_bundle, config, modalities=("text", "audio"))
    assert other.modalities == ("text", "audio")
    assert other.config.precision == "fp32"
    assert other.config.engine == config.engine
