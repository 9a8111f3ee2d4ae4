"""Short inputs are computed in one thread, long ones in several, with the same answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.load import load_engine
from mechm_runtime.engines.part_loader import PartLoader
from mechm_runtime.engines.threads_by_length import MEL, SHORT_MEL_FRAMES, ThreadsByLength


class Named:
    """Answers its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, _inputs: Any) -> dict[str, Any]:
        return {"name": np.array(self.name)}


def test_the_length_decides_and_what_is_not_needed_is_not_loaded() -> None:
    loaded: list[str] = []

    def load(name: str) -> Named:
        loaded.append(name)
        return Named(name)

    runs = ThreadsByLength(lambda: load("one"), lambda: load("several"), "mel", 5)
    assert loaded == []
    for length, expected in ((5, "one"), (1, "one"), (6, "several"), (5, "one")):
        assert str(runs.run({"mel": np.zeros((1, 2, length))})["name"]) == expected
    assert loaded == ["one", "several"]


def test_a_voice_is_read_alike_in_one_thread_and_in_two(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle, check_hashes=False)
    part = bundle.parts["audio"]
    loaded = PartLoader(bundle, {"audio": "fp32"}, EngineConfig(n_threads=2))(part)
    assert isinstance(loaded, ThreadsByLength)
    plain = load_engine(bundle.path(part.files["fp32"]), EngineConfig(n_threads=1))
    for n_frames in (40, SHORT_MEL_FRAMES, SHORT_MEL_FRAMES + 1, 1200):
        mel = np.random.default_rng(n_frames).normal(size=(1, bundle.log_mel.n_mels, n_frames)).astype(np.float32)
        feeds = {MEL: mel, "mel_frames": np.array([n_frames], np.int64)}
        found, expected = loaded.run(feeds), plain.run(feeds)
        np.testing.assert_allclose(found["audio_tokens"], expected["audio_tokens"], atol=1e-5)
    one_thread = PartLoader(bundle, {"audio": "fp32"}, EngineConfig(n_threads=1))(part)
    assert not isinstance(one_thread, ThreadsByLength)
