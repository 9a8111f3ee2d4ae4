"""The bundle's parts as torch modules, from the weights that it was exported from, with a graph's interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mechm.data.feature_extraction import TorchPart
from mechm.model.build import (
    build_audio_encoder,
    build_network,
    build_scene_encoder,
    load_trained,
    pretrained_folder,
)
from mechm.model.config import preset_config
from mechm.model.detector import YuNet
from mechm.model.expression import ExpressionNetwork
from mechm.weights import weights_path
from mechm_runtime.bundle.manifest import Bundle


def load_modules(bundle: Bundle, trained: Path | None) -> dict[str, nn.Module]:
    """Modules by part in fp32, the text encoder's adapter merged.

    trained: output folder of `mechm train fusion`; None for the weights shipped for the bundle's preset.
    Raises: WeightsError: weights are missing.
    """
    preset = bundle.preset
    config = preset_config(preset)
    network = build_network(config, weights_path("text", preset))
    load_trained(network, trained or pretrained_folder(preset))
    modules: dict[str, nn.Module] = {
        "text": network.text.merged(),
        "audio": build_audio_encoder(config, weights_path("audio", preset)),
        "scene": build_scene_encoder(config, weights_path("scene", preset)),
        "detector": YuNet.from_pretrained(weights_path("detector", preset)),
        "expression": ExpressionNetwork.from_pretrained(weights_path("expression", preset)),
        "fusion": network.fusion,
    }
    return {name: module.eval() for name, module in modules.items()}


def as_runners(bundle: Bundle, modules: Mapping[str, Any]) -> dict[str, TorchPart]:
    """The modules with the names of the bundle's inputs and outputs."""
    return {
        name: TorchPart(
            module,
            [one.name for one in bundle.parts[name].inputs],
            [one.name for one in bundle.parts[name].outputs],
            torch.device("cpu"),
        )
        for name, module in modules.items()
    }
