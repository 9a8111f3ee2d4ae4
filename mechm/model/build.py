"""Builds networks from a preset, base weights and trained weights, and writes and reads trained weights."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mechm.model.audio import HubertAudioEncoder, WhisperAudioEncoder
from mechm.model.config import ModelConfig
from mechm.model.fusion import Fusion
from mechm.model.network import Network
from mechm.model.scene import Dinov2SceneEncoder, EvaSceneEncoder
from mechm.model.text import TextEncoder
from mechm.model.voice import VoiceHead
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import replaced_file

WEIGHTS_FILE, CONFIG_FILE, DECISION_FILE, CARD_FILE = "model.safetensors", "config.json", "decision.json", "card.json"
SHIPPED = ("small",)
"""Presets with trained weights: in a checkout, and in the distribution mechm-pretrained-PRESET."""
VOICE_PREFIX = "fusion.voice_head."
"""Start of the names of the voice head's tensors."""


def pretrained_folder(preset: str) -> Path:
    """Return the folder of the trained weights that are shipped for a preset.

    Raises: WeightsError: none are shipped for it, or they are not installed.
    """
    folder = Path(__file__).parent.parent / "pretrained" / preset
    if not (folder / WEIGHTS_FILE).is_file():
        if preset in SHIPPED:
            raise WeightsError(
                f"the trained weights of preset {preset} are not installed: mechm's wheel is without them",
                hint=f"pip install mechm-pretrained-{preset}, from where mechm came; or work in a checkout",
            )
        raise WeightsError(f"no trained weights are shipped for preset {preset}", hint="mechm train fusion --help")
    return folder


def build_network(config: ModelConfig, text_folder: Path | None, *, seed: int = 0) -> Network:
    """Build the trainable network; the text encoder is random where `text_folder` is None (preset `tiny`).

    Random weights depend on `seed` alone, so that weights trained on top of them can be loaded again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fusion = Fusion(config)
        text = TextEncoder(config.text) if text_folder is None else TextEncoder.from_folder(text_folder, config.text)
    return Network(config, text, fusion).eval()


def build_audio_encoder(config: ModelConfig, folder: Path | None, *, seed: int = 0) -> nn.Module:
    """Build the speech encoder, random where `folder` is None."""
    kind: type[WhisperAudioEncoder] | type[HubertAudioEncoder]
    kind = WhisperAudioEncoder if config.audio.architecture == "whisper" else HubertAudioEncoder
    if folder is not None:
        return kind.from_folder(folder, config.audio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config.audio).eval()


def build_scene_encoder(config: ModelConfig, folder: Path | None, *, seed: int = 0) -> nn.Module:
    """Build the scene encoder, random where `folder` is None."""
    kind: type[Dinov2SceneEncoder] | type[EvaSceneEncoder]
    kind = Dinov2SceneEncoder if config.scene.architecture == "dinov2" else EvaSceneEncoder
    if folder is not None:
        return kind.from_folder(folder, config.scene)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config.scene).eval()


def save_trained(network: Network, decision: DecisionConfig, card: dict[str, Any], folder: Path) -> None:
    """Write the trained weights (fp16), their config, the decision constants and the card.

    All files are written under temporary names before the first one is renamed, so that a full disk leaves the old ones
    intact.
    Raises: WeightsError: the folder cannot be written.
    """
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.trained_state().items()
    }
    texts = {
        CONFIG_FILE: network.config.to_json(),
        DECISION_FILE: json.dumps(asdict(decision), indent=2),
        CARD_FILE: json.dumps(card, indent=2, ensure_ascii=False),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:  # all are written before the first one is renamed
            beside = {name: files.enter_context(replaced_file(folder / name)) for name in (WEIGHTS_FILE, *texts)}
            for name, text in texts.items():
                beside[name].write_text(text + "\n", encoding="utf-8")
            save_file(state, beside[WEIGHTS_FILE])
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the trained weights cannot be written: {error}", hint=f"free disk space, or write elsewhere than {folder}"
        ) from error


def load_trained(network: Network, folder: Path) -> DecisionConfig:
    """Load trained weights into a network and return the decision constants fitted with them.

    Raises: WeightsError: files are missing, of another preset, or tensors are missing, left over or of another shape.
    """
    for name in (CONFIG_FILE, DECISION_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsError(f"the trained weights in {folder} lack {name}", hint="mechm train fusion --help")
    try:
        config = ModelConfig.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        decision = read_decision((folder / DECISION_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS_FILE)
    except OSError as error:
        raise WeightsError(f"the trained weights in {folder} cannot be read: {error.strerror}") from error
    except (SafetensorError, UnicodeDecodeError) as error:
        raise WeightsError(f"the trained weights are damaged: {error}") from error
    if config != network.config:
        raise WeightsError(f"these weights are of preset {config.preset}, not of this {network.config.preset}")
    if not any(name.startswith(VOICE_PREFIX) for name in state):  # weights from before there was a voice head
        state |= unfitted_voice_state(network.fusion)
    wanted = {name: value.shape for name, value in network.trained_state().items()}
    found = {name: value.shape for name, value in state.items()}
    if wanted != found:
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise WeightsError(f"trained weights do not fit: {', '.join(differing[:8])}")
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    network.fusion.voice_head.set_calibration(decision)
    return decision


def unfitted_voice_state(fusion: Fusion) -> dict[str, Tensor]:
    """Return the tensors of an unfitted voice head, which has no influence, by their names in a network."""
    fresh = VoiceHead(fusion.audio_mean.numel(), fusion.config.n_emotions)
    state = {f"{VOICE_PREFIX}{name}": value for name, value in fresh.state_dict().items()}
    return {**state, "fusion.audio_attended": torch.ones((), dtype=torch.bool)}


def read_decision(text: str) -> DecisionConfig:
    """Parse a `DecisionConfig` from JSON text.

    Raises: WeightsError: the text is none.
    """
    try:
        values = json.loads(text)
        return DecisionConfig(**{**values, "emotion_bias": tuple(values["emotion_bias"])})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"not decision constants of this version: {error}") from error
