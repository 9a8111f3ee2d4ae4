"""The bundle's parts in torch, from the weights that it was exported from, behind the interface of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

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
from mechm_runtime.bundle import Bundle


class TorchRunner:
    """A module run as a graph is: arrays by input name to arrays by output name, without gradients.

    inputs, outputs: names, in the order of the module's arguments and of what it returns.
    """

    def __init__(self, module: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self._module, self._inputs, self._outputs = module, inputs, outputs

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run it once."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs]
        with torch.inference_mode():
            answer = self._module(*tensors)
        given = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
        return {name: value.numpy() for name, value in zip(self._outputs, given, strict=False)}


def load_modules(bundle: Bundle, trained: Path | None) -> dict[str, nn.Module]:
    """Every part's module in fp32, the text encoder's adapter merged.

    trained: what `mechm train fusion` wrote; None for the weights shipped for the bundle's preset.
    Raises: WeightsError: weights are not there.
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


def as_runners(bundle: Bundle, modules: Mapping[str, Any]) -> dict[str, TorchRunner]:
    """The modules with the names of the bundle's inputs and outputs."""
    return {
        name: TorchRunner(
            module,
            tuple(one.name for one in bundle.parts[name].inputs),
            tuple(one.name for one in bundle.parts[name].outputs),
        )
        for name, module in modules.items()
    }
