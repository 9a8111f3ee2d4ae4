"""Networks are put together, saved and loaded; what does not fit is refused, and a full disk costs nothing."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechm.model import build
from mechm.model.build import (
    CARD_FILE,
    CONFIG_FILE,
    DECISION_FILE,
    VOICE_PREFIX,
    WEIGHTS_FILE,
    build_audio_encoder,
    build_network,
    build_scene_encoder,
    load_trained,
    pretrained_folder,
    read_decision,
    save_trained,
)
from mechm.model.config import LLAMA2_7B, SMALL, TINY, ModelConfig
from mechm.model.network import Network
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError

DECISION = DecisionConfig(emotion_temperature=1.5, pair_scale=0.8, pair_threshold=0.3, neutral_log_bias=-0.4)
Folder = Path


@pytest.fixture
def trained(tmp_path: Path) -> Folder:
    """A folder with the weights of a `tiny` network that training has moved."""
    network = build_network(TINY, None)
    moved(network)
    save_trained(network, DECISION, {"data": "none"}, tmp_path)
    return tmp_path


def moved(network: Network) -> None:
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in network.trained_state():
                parameter.add_(torch.randn(parameter.shape, generator=random) * 0.01)


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writing fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_is_loaded_again(trained: Folder) -> None:
    fresh = build_network(TINY, None)
    assert load_trained(fresh, trained) == DECISION
    expected = build_network(TINY, None)
    moved(expected)
    for name, value in expected.state_dict().items():
        # fp16 on disk: 11 significant bits.
        assert torch.allclose(fresh.state_dict()[name], value, rtol=1e-3, atol=1e-6), name
    assert json.loads((trained / CARD_FILE).read_text(encoding="utf-8")) == {"data": "none"}
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        [WEIGHTS_FILE, CONFIG_FILE, DECISION_FILE, CARD_FILE]
    )


def test_weights_are_small_and_without_embeddings(trained: Folder) -> None:
    state = load_file(trained / WEIGHTS_FILE)
    assert not any("embeddings" in name for name in state)
    assert all(value.dtype in (torch.float16, torch.bool) for value in state.values())


def test_weights_from_before_the_voice_head_load_with_a_silent_one(trained: Folder) -> None:
    state = load_file(trained / WEIGHTS_FILE)
    del state["fusion.audio_attended"]
    for name in [name for name in state if name.startswith(VOICE_PREFIX)]:
        del state[name]
    save_file(state, trained / WEIGHTS_FILE)
    network = build_network(TINY, None)
    network.fusion.audio_attended.fill_(False)
    network.fusion.voice_head.heard.fill_(True)
    load_trained(network, trained)
    assert not network.fusion.voice_head.heard.any()
    assert network.fusion.audio_attended


def test_half_a_voice_head_is_refused(trained: Folder) -> None:
    state = load_file(trained / WEIGHTS_FILE)
    del state[f"{VOICE_PREFIX}bias"]
    save_file(state, trained / WEIGHTS_FILE)
    with pytest.raises(WeightsError, match=r"voice_head\.bias"):
        load_trained(build_network(TINY, None), trained)


def test_random_networks_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build_network(TINY, None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_network(TINY, None), build_network(TINY, None, seed=1)
    name = "text.encoder.embeddings.word_embeddings.weight"
    assert torch.equal(one.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    for kind in (build_audio_encoder, build_scene_encoder):
        states = [tuple(kind(TINY, None).state_dict().values()) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_weights_of_another_preset_are_refused(trained: Folder) -> None:
    wider = replace(TINY, preset="other")
    with pytest.raises(WeightsError, match="preset tiny, not of this other"):
        load_trained(build_network(wider, None), trained)


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS_FILE)
        change(state)
        save_file(state, folder / WEIGHTS_FILE)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(lambda state: state.pop("fusion.no_text")), "do not fit: fusion.no_text"),
        (rewrite(lambda state: state.update(extra=torch.zeros(1))), "do not fit: extra"),
        (rewrite(lambda state: state.update({"fusion.no_text": torch.zeros(3)})), "do not fit: fusion.no_text"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"lack {WEIGHTS_FILE}"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), f"lack {CONFIG_FILE}"),
        (lambda folder: (folder / DECISION_FILE).unlink(), f"lack {DECISION_FILE}"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"\xff" * 100), "damaged"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-9]), "damaged"),
        (lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff\xfe"), "damaged"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{}"), "not a model config"),
        (lambda folder: (folder / DECISION_FILE).write_text("[1]"), "not decision constants"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained: Folder, damage: Callable[[Path], object], message: str) -> None:
    damage(trained)
    network = build_network(TINY, None)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_trained(network, trained)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("free_bytes", [0, 400, 20_000])
def test_a_full_disk_leaves_the_old_weights(trained: Folder, free_bytes: int) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    assert len(before[WEIGHTS_FILE]) > 20_000
    network = build_network(TINY, None, seed=4)
    with full_disk(free_bytes), pytest.raises(WeightsError, match="cannot be written") as caught:
        save_trained(network, DecisionConfig(), {}, trained)
    assert "free disk space" in caught.value.hint
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def test_decision_constants_are_read_strictly() -> None:
    good = json.dumps({"emotion_temperature": 2.0, "emotion_bias": [0.0] * 7})
    assert read_decision(good) == DecisionConfig(emotion_temperature=2.0)
    for bad in (
        "",
        "7",
        "{}",
        json.dumps({"emotion_bias": [0.0] * 6}),
        json.dumps({"emotion_bias": [0.0] * 7, "emotion_temperature": 0}),
        json.dumps({"emotion_bias": [0.0] * 7, "emotion_temperature": float("nan")}),
        json.dumps({"emotion_bias": [0.0] * 7, "pair_scale": float("inf")}),
        json.dumps({"emotion_bias": [0.0] * 7, "mood": 1}),
        json.dumps({"emotion_bias": ["0"] * 7}),
    ):
        with pytest.raises(WeightsError, match="not decision constants"):
            read_decision(bad)


def test_a_preset_without_shipped_weights_says_how_to_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="llama2-7b") as caught:
        pretrained_folder("llama2-7b")
    assert "mechm train fusion" in caught.value.hint
    monkeypatch.setattr(build, "__file__", str(tmp_path / "mechm" / "model" / "build.py"))
    with pytest.raises(WeightsError, match="not installed") as caught:
        pretrained_folder("small")
    assert "pip install mechm-pretrained-small" in caught.value.hint
    folder = tmp_path / "mechm" / "pretrained" / "tiny"
    save_trained(build_network(TINY, None), DECISION, {}, folder)
    assert pretrained_folder("tiny") == folder


@pytest.mark.parametrize(
    ("config", "text", "audio", "scene"),
    # MPNet without its pooler and with an adapter, Whisper-tiny's encoder, nine of ViT-S/14; HuBERT-large, ViT-g/14.
    [(SMALL, 114.2e6, 8.2e6, 16.4e6), (LLAMA2_7B, 114.2e6, 315.4e6, 0.99e9)],
    ids=["small", "llama2-7b"],
)
def test_presets_have_the_sizes_of_their_base_weights(
    config: ModelConfig, text: float, audio: float, scene: float
) -> None:
    with torch.device("meta"):
        network = build_network(config, None)
        parts = (network.text, build_audio_encoder(config, None), build_scene_encoder(config, None))
    for part, expected in zip(parts, (text, audio, scene), strict=True):
        assert sum(p.numel() for p in part.parameters()) == pytest.approx(expected, rel=0.01)
