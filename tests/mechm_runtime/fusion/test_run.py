"""Windows over long conversations: cores tile, every score lands at its utterance, and cost grows linearly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.fusion.inputs import FusionInputs, speaker_numbers
from mechm_runtime.fusion.run import WINDOWS_PER_RUN, run_fusion, window_spans
from mechm_runtime.system.arrays import Array
from mechm_runtime.types import EMOTIONS, Utterance

SIZES = FusionWindows(
    window=12,
    window_context=4,
    n_frames=2,
    max_faces=2,
    audio_tokens=3,
    audio_width=6,
    scene_width=5,
    text_width=8,
    face_width=8,
)


class LocalEngine(OnnxRuntimeEngine):
    """An engine whose scores of a pair depend on these two utterances alone, so that windows must not change them.

    emotion_logits[i] is the utterance's text (its first 7 numbers), hidden_states[i] all of it; pair_logits[i, j] is
    text_i . text_j plus 1 for the same speaker. Padding scores 1000, which must come out nowhere.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        text, mask, speakers = inputs["text"], inputs["utterance_mask"], inputs["speaker_ids"]
        self.shapes.append(mask.shape)
        for name, values in inputs.items():
            assert values.shape[:2] == mask.shape, name
        pairs = text @ text.transpose(0, 2, 1) + (speakers[:, :, None] == speakers[:, None])
        both = mask[:, :, None] & mask[:, None]
        return {
            "emotion_logits": np.where(mask[..., None], text[..., : len(EMOTIONS)], 1000).astype(np.float32),
            "pair_logits": np.where(both, pairs, 1000).astype(np.float32),
            "hidden_states": np.where(mask[..., None], text, 1000).astype(np.float32),
        }


def conversation(n: int, seed: int = 0) -> FusionInputs:
    random = np.random.default_rng(seed)
    speakers = random.choice(["Ann", "Bo", ""], n)
    inputs = FusionInputs.absent([Utterance(i + 1, str(name)) for i, name in enumerate(speakers)], SIZES)
    inputs.text[:] = random.normal(size=inputs.text.shape)
    inputs.text_mask[:] = True
    return inputs


@given(n=st.integers(1, 400), core=st.integers(1, 40), context=st.integers(0, 20))
def test_cores_tile_the_conversation(n: int, core: int, context: int) -> None:
    window = core + 2 * context
    spans = window_spans(n, window, context)
    assert [position for _, _, first, last in spans for position in range(first, last)] == list(range(n))
    for first, last, core_first, core_last in spans:
        assert 0 <= first <= core_first < core_last <= last <= n
        assert last - first <= window
        if len(spans) > 1:
            assert core_first - first == min(context, core_first)
            assert last - core_last == min(context, n - core_last)


@pytest.mark.parametrize("n", [1, 2, 11, 12, 13, 16, 17, 100, 143])
def test_windows_score_as_the_whole_would(n: int) -> None:
    inputs, engine = conversation(n), LocalEngine()
    scores = run_fusion(engine, inputs, SIZES)
    assert scores.emotion_logits.dtype == scores.pair_logits.dtype == np.float32
    assert np.array_equal(scores.emotion_logits, inputs.text[:, : len(EMOTIONS)])
    assert np.array_equal(scores.hidden_states, inputs.text)
    same = inputs.speaker_ids[:, None] == inputs.speaker_ids
    whole = inputs.text @ inputs.text.T + same
    width = scores.pair_logits.shape[1]
    assert width == min(n, SIZES.window)
    for i in range(n):
        first = int(scores.first_cause[i])
        scored = np.isfinite(scores.pair_logits[i])
        n_scored = int(scored.sum())
        assert scored[:n_scored].all()
        assert np.abs(scores.pair_logits[i, :n_scored] - whole[i, first : first + n_scored]).max() < 1e-5
        # Causes are looked for at least as far as the context reaches, on both sides.
        assert first <= max(0, i - SIZES.window_context)
        assert first + n_scored >= min(n, i + SIZES.window_context + 1)


def test_five_thousand_utterances_take_a_linear_number_of_windows() -> None:
    engine = LocalEngine()
    progress: list[tuple[int, int]] = []
    scores = run_fusion(engine, conversation(5000), SIZES, lambda done, n: progress.append((done, n)))
    core = SIZES.window - 2 * SIZES.window_context
    assert sum(shape[0] for shape in engine.shapes) == 5000 / core
    assert all(shape[0] <= WINDOWS_PER_RUN and shape[1] == SIZES.window for shape in engine.shapes)
    assert scores.pair_logits.shape == (5000, SIZES.window)
    assert progress[-1] == (5000, 5000)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})


def test_absent_inputs_know_only_who_speaks() -> None:
    inputs = FusionInputs.absent([Utterance(1, "Ann"), Utterance(4, "Bo"), Utterance(9, "Ann")], SIZES)
    assert inputs.speaker_ids.tolist() == [0, 1, 0]
    for item in fields(inputs):
        values = getattr(inputs, item.name)
        assert len(values) == 3
        assert item.name == "speaker_ids" or not values.any()
    assert inputs.audio.shape == (3, 3, 6)
    assert inputs.face.shape == (3, 4, 8)
    assert inputs.scene_mask.shape == (3, 2)


def test_speakers_are_numbered_by_appearance_and_unknown_ones_are_nobody_else() -> None:
    names = ["Bo", "", "Ann", "Bo", "", "Ann"]
    assert speaker_numbers([Utterance(i + 1, name) for i, name in enumerate(names)]) == [0, 1, 2, 0, 3, 2]
