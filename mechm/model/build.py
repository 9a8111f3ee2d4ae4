"""The one place where networks are put together: from a preset, base weights and trained weights."""

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
VOICE = "fusion.voice_head."


def pretrained_folder(preset: str) -> Path:
    """Where the trained weights of a preset are shipped.

    Raises: WeightsError: none are shipped for it.
    """
    folder = Path(__file__).parent.parent / "pretrained" / preset
    if not (folder / WEIGHTS_FILE).is_file():
        raise WeightsError(f"no trained weights are shipped for preset {preset}", hint="mechm train fusion --help")
    return folder


def build_network(config: ModelConfig, text_folder: Path | None, *, seed: int = 0) -> Network:
    """The trainable network; the text encoder is random where `text_folder` is None (preset `tiny`).

    Random weights depend on `seed` alone, so that what was trained on top of them can be loaded again.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fusion = Fusion(config)
        text = TextEncoder(config.text) if text_folder is None else TextEncoder.from_folder(text_folder, config.text)
    return Network(config, text, fusion).eval()


def build_audio_encoder(config: ModelConfig, folder: Path | None, *, seed: int = 0) -> nn.Module:
    """The speech encoder, random where `folder` is None."""
    kind: type[WhisperAudioEncoder] | type[HubertAudioEncoder]
    kind = WhisperAudioEncoder if config.audio.architecture == "whisper" else HubertAudioEncoder
    if folder is not None:
        return kind.from_folder(folder, config.audio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config.audio).eval()


def build_scene_encoder(config: ModelConfig, folder: Path | None, *, seed: int = 0) -> nn.Module:
    """The scene encoder, random where `folder` is None."""
    kind: type[Dinov2SceneEncoder] | type[EvaSceneEncoder]
    kind = Dinov2SceneEncoder if config.scene.architecture == "dinov2" else EvaSceneEncoder
    if folder is not None:
        return kind.from_folder(folder, config.scene)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config.scene).eval()


def save_trained(network: Network, decision: DecisionConfig, card: dict[str, Any], folder: Path) -> None:
    """Write what was trained (fp16), its config, the decision constants and the card.

    All files are written beside their places before the first one is renamed, so that the old ones survive a full disk
    together.
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
        with ExitStack() as files:  # all are written before the first is put in its place
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
    if not any(name.startswith(VOICE) for name in state):  # weights from before there was a voice head
        state |= silent_voice(network.fusion)
    wanted = {name: value.shape for name, value in network.trained_state().items()}
    found = {name: value.shape for name, value in state.items()}
    if wanted != found:
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise WeightsError(f"trained weights do not fit: {', '.join(differing[:8])}")
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    network.fusion.voice_head.follow(decision)
    return decision


def silent_voice(fusion: Fusion) -> dict[str, Tensor]:
    """The tensors of a voice head that was never fitted, under a network's names: it says nothing."""
    fresh = VoiceHead(fusion.audio_mean.numel(), fusion.config.n_emotions)
    state = {f"{VOICE}{name}": value for name, value in fresh.state_dict().items()}
    return {**state, "fusion.audio_attended": torch.ones((), dtype=torch.bool)}


def read_decision(text: str) -> DecisionConfig:
    """A `DecisionConfig` from JSON text.

    Raises: WeightsError: not one.
    """
    try:
        values = json.loads(text)
        return DecisionConfig(**{**values, "emotion_bias": tuple(values["emotion_bias"])})
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"not decision constants of this version: {error}") from error
