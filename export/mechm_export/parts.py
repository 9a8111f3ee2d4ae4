"""The parts of a bundle: the torch module of each, its inputs and outputs, and sizes to compare it on.

They are assembled here from base weights and trained weights. How a part is converted is not known here (`graphs`,
`precision`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mechm.model.build import build_audio_encoder, build_network, build_scene_encoder, load_trained
from mechm.model.config import ModelConfig, preset_config
from mechm.model.detector import YuNet
from mechm.model.expression import ExpressionConfig, ExpressionNetwork
from mechm.model.preprocessing import fusion_windows
from mechm.weights import weights_path
from mechm_export.graphs.part import STATIC_INT8, WEIGHT_ONLY_INT8, ExportPart, Feeds, Int8Recipe
from mechm_export.llama.part import LlamaSource, llama_parts, load_llama_source
from mechm_runtime.bundle.config import DecisionConfig, FusionWindows
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS


@dataclass(frozen=True, slots=True)
class ModelParts:
    """The parts of a bundle in torch, and the files and constants that go with them.

    tokenizer: the text encoder's tokenizer file. detector: folder of the face detector's weights. trained: folder of
    the trained weights, None for random ones.
    """

    config: ModelConfig
    parts: tuple[ExportPart, ...]
    decision: DecisionConfig
    tokenizer: Path
    detector: Path
    trained: Path | None
    llama: LlamaSource | None = None

    def __iter__(self) -> Iterator[ExportPart]:
        return iter(self.parts)

    @property
    def fusion_windows(self) -> FusionWindows:
        """Window sizes of the fusion, which the runtime needs."""
        return fusion_windows(self.config)


def build_parts(
    preset: str, trained: Path | None, adapter: Path | None = None, llm_base: Path | None = None
) -> ModelParts:
    """Load a preset's weights and describe its parts.

    trained: folder that `mechm train fusion` wrote; None leaves fusion and heads random (preset `tiny`).
    adapter: folder that `mechm train llm` and `mechm train combination` wrote; None makes a bundle without a Llama.
    llm_base: the Llama that the adapter is for; None for the preset's.
    Raises: WeightsError: base weights are missing, or the trained ones do not fit.
    """
    config = preset_config(preset)
    random_weights = preset == "tiny"
    # `tiny` has random weights but real words: it borrows the tokenizer of `small`.
    text_folder = weights_path("text", "small" if random_weights else preset)
    network = build_network(config, None if random_weights else text_folder)
    decision = load_trained(network, trained) if trained is not None else DecisionConfig()
    folders = {
        name: None if random_weights else weights_path(name, preset) for name in ("audio", "scene", "expression")
    }
    # The detector has no random form: one that finds no face would leave the face network untested.
    detector = weights_path("detector", "small" if random_weights else preset)
    expression_folder = folders["expression"]
    torch.manual_seed(0)
    expression = (
        ExpressionNetwork(ExpressionConfig()).eval()
        if expression_folder is None
        else ExpressionNetwork.from_pretrained(expression_folder)
    )
    parts: tuple[ExportPart, ...] = (
        _text_part(config, network.text.merged()),
        _audio_part(config, build_audio_encoder(config, folders["audio"])),
        _scene_part(config, build_scene_encoder(config, folders["scene"])),
        ExportPart(
            "expression",
            expression.eval(),
            (Tensor("pixel_values", "float32", ("batch", 1, 64, 64)),),
            (Tensor("expression_logits", "float32", ("batch", len(EMOTIONS))),),
            ({"batch": 2}, {"batch": 1}, {"batch": 5}),
            # A third of an already small size, but five times slower: 4.9 ms instead of 0.9 ms for 4 faces, measured.
            int8=Int8Recipe(("Conv",), default=False),
        ),
        _detector_part(YuNet.from_pretrained(detector)),
        _fusion_part(config, network.fusion),
    )
    llama = None
    if adapter is not None:
        if trained is None:
            raise WeightsError("a Llama is weighed against trained fusion weights", hint="give --trained DIR too")
        llama = load_llama_source(llm_base or weights_path("llm", preset), adapter, trained)
        parts += llama_parts(llama)
    return ModelParts(config, parts, decision, text_folder / "tokenizer.json", detector, trained, llama)


def _text_part(config: ModelConfig, module: nn.Module) -> ExportPart:
    longest = config.text.max_tokens
    return ExportPart(
        "text",
        module,
        (Tensor("input_ids", "int64", ("batch", "tokens")), Tensor("attention_mask", "int64", ("batch", "tokens"))),
        (Tensor("last_hidden_state", "float32", ("batch", "tokens", config.text.hidden_size)),),
        tuple(
            {"batch": batch, "tokens": tokens} for batch, tokens in ((2, 40), (1, 5), (1, longest), (8, 17), (3, 33))
        ),
        n_heads=config.text.n_heads,
        integer_limits={"input_ids": config.text.vocab_size},
        # Plain dynamic int8 keeps 90 % of the labels of ECF dev, this recipe 98 %. Smoothing with down projections in
        # fp32 keeps 98 % too, but takes 1.4 times as long and 1.8 times the space (benchmarks/int8_recipes.py).
        int8=Int8Recipe(smoothing=0.5, token_scales=True, embeddings=True, portable=WEIGHT_ONLY_INT8),
    )


def _audio_part(config: ModelConfig, module: nn.Module) -> ExportPart:
    audio = config.audio
    outputs = (Tensor("audio_tokens", "float32", ("batch", len(audio.pooled_layers), 2 * audio.hidden_size)),)
    # On OpenVINO static scales are faster than scales computed at run time, and close enough (benchmarks/encoders.py).
    int8 = Int8Recipe(portable=STATIC_INT8, conv_to_matmul=audio.architecture == "whisper")
    if audio.architecture == "hubert":
        waves = ((2, 16000), (1, 8000), (3, 24000), (1, 48000))
        return ExportPart(
            "audio",
            module,
            (Tensor("input_values", "float32", ("batch", "samples")), Tensor("n_samples", "int64", ("batch",))),
            outputs,
            tuple({"batch": batch, "samples": samples} for batch, samples in waves),
            n_heads=audio.n_heads,
            integer_limits={"n_samples": "samples"},
            int8=int8,
        )
    sizes = ((2, 300), (1, 3), (1, 98), (3, 401), (1, 2 * audio.max_positions))
    return ExportPart(
        "audio",
        module,
        (Tensor("mel", "float32", ("batch", audio.n_mels, "frames")), Tensor("mel_frames", "int64", ("batch",))),
        outputs,
        tuple({"batch": batch, "frames": frames} for batch, frames in sizes),
        n_heads=audio.n_heads,
        integer_limits={"mel_frames": "frames"},
        int8=int8,
    )


def _scene_part(config: ModelConfig, module: nn.Module) -> ExportPart:
    side = config.scene.image_size
    return ExportPart(
        "scene",
        module,
        (Tensor("pixel_values", "float32", ("batch", 3, side, side)),),
        (Tensor("scene_token", "float32", ("batch", config.scene.hidden_size)),),
        ({"batch": 2}, {"batch": 1}, {"batch": 3}),
        n_heads=config.scene.n_heads,
        int8=Int8Recipe(portable=STATIC_INT8),
    )


def _detector_part(module: nn.Module) -> ExportPart:
    sizes = ((2, 96, 160), (1, 288, 480), (3, 32, 64), (1, 480, 288))

    def frames(sizes: Mapping[str, int], random: np.random.Generator) -> Feeds:
        shape = sizes["batch"], 3, sizes["height"], sizes["width"]
        return {"pixel_values": random.integers(0, 256, shape).astype(np.float32)}

    return ExportPart(
        "detector",
        module,
        (Tensor("pixel_values", "float32", ("batch", 3, "height", "width")),),
        (Tensor("scores", "float32", ("batch", "places")), Tensor("boxes", "float32", ("batch", "places", 4))),
        tuple({"batch": batch, "height": height, "width": width} for batch, height, width in sizes),
        int8=Int8Recipe(("Conv",), default=False),
        make_inputs=frames,
    )


def _fusion_part(config: ModelConfig, module: nn.Module) -> ExportPart:
    per_utterance = ("batch", "utterances")
    faces = config.n_frames * config.max_faces
    inputs = (
        Tensor("text", "float32", (*per_utterance, config.text.hidden_size)),
        Tensor("text_mask", "bool", per_utterance),
        Tensor("audio", "float32", (*per_utterance, len(config.audio.pooled_layers), 2 * config.audio.hidden_size)),
        Tensor("audio_mask", "bool", per_utterance),
        Tensor("scene", "float32", (*per_utterance, config.n_frames, config.scene.hidden_size)),
        Tensor("scene_mask", "bool", (*per_utterance, config.n_frames)),
        Tensor("face", "float32", (*per_utterance, faces, config.fusion.face_width)),
        Tensor("face_mask", "bool", (*per_utterance, faces)),
        Tensor("speaker_ids", "int64", per_utterance),
        Tensor("utterance_mask", "bool", per_utterance),
    )
    outputs = (
        Tensor("emotion_logits", "float32", (*per_utterance, config.fusion.n_emotions)),
        Tensor("pair_logits", "float32", (*per_utterance, "utterances")),
        Tensor("hidden_states", "float32", (*per_utterance, config.fusion.hidden_size)),
    )
    return ExportPart(
        "fusion",
        module,
        inputs,
        outputs,
        tuple(
            {"batch": batch, "utterances": utterances}
            for batch, utterances in ((2, 7), (1, 1), (1, 33), (8, config.fusion.window))
        ),
        integer_limits={"speaker_ids": 4},
    )
