"""Configs survive JSON, refuse what contradicts itself, and need no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from mechm.model.config import PRESETS, TINY, AudioEncoderConfig, FusionConfig, ModelConfig, preset_config
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.errors import WeightsError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_json(name: str) -> None:
    config = preset_config(name)
    again = ModelConfig.from_json(config.to_json())
    assert again == config
    assert again.preset == name
    assert hash(again) == hash(config)  # tuples came back as tuples


def changed(*path: str, value: Any = None) -> str:
    """TINY as JSON with the field at `path` set, or removed where `value` is None."""
    data = json.loads(TINY.to_json())
    part = data
    for name in path[:-1]:
        part = part[name]
    if value is None:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        "null",
        '{"text": 3}',
        "[" * 100_000,
        changed("preset"),
        changed("fusion"),
        changed("fusion", "window"),
        changed("fusion", "colour", value="red"),
        changed("layers", value=3),
        changed("text", value=[1, 2]),
        changed("text", "hidden_size", value="384"),
        changed("text", "n_heads", value=True),
        changed("text", "n_heads", value=7),
        changed("text", "n_heads", value=0),
        changed("audio", "architecture", value="wav2vec"),
        changed("audio", "pooled_layers", value=[1, 3]),
        changed("audio", "pooled_layers", value=[2, 1]),
        changed("audio", "pooled_layers", value=["1"]),
        changed("audio", "pooled_layers", value=[[1]]),
        changed("scene", "image_size", value=225),
        changed("scene", "pooled_layer", value=3),
        changed("fusion", "window_context", value=6),
        changed("n_frames", value="3"),
        changed("max_faces", value=-1),
    ],
)
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="not a model config"):
        ModelConfig.from_json(text)


def test_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="heads"):
        FusionConfig(hidden_size=30, n_heads=4)
    with pytest.raises(ValueError, match="pooled_layers"):
        AudioEncoderConfig(n_layers=3)
    with pytest.raises(ValueError, match="dropout"):
        replace(TINY.fusion, dropout=1.0)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="large") as caught:
        preset_config("large")
    assert all(name in caught.value.hint for name in PRESETS)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_presets_windows_have_a_core(name: str) -> None:
    config = preset_config(name)
    assert config.fusion.window > 2 * config.fusion.window_context
    TextConfig(config.text.max_tokens, config.text.max_tokens // 4)


def test_configs_need_no_torch(fresh_python: Any) -> None:
    code = "from mechm.model.config import SMALL; print(SMALL.fusion.hidden_size)"
    done = fresh_python(code, without=["torch", "transformers", "safetensors"])
    assert done.stdout.strip() == str(asdict(PRESETS["small"])["fusion"]["hidden_size"]), done.stderr
