"""Recorded modalities: each utterance gets its own, masked as often as configured, drawn where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mechm.data.feature_extraction import Span
from mechm.data.feature_store import FeatureTable
from mechm.data.recorded_modalities import ModalityDropoutConfig, RecordedModalities
from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.model.config import TINY
from mechm.model.inputs import NonverbalInputs
from mechm_runtime.types import Conversation, LabelledConversation, Utterance

NOTHING_HIDDEN = ModalityDropoutConfig(0.0, 0.0, 0.0)
PARTS = ("audio", "scene", "face")


def conversation(name: str, *clips: str | None) -> LabelledConversation:
    utterances = tuple(
        Utterance(i, "A", "Well.", media=None if clip is None else Path(clip)) for i, clip in enumerate(clips, 1)
    )
    return LabelledConversation(Conversation(name, utterances), ("neutral",) * len(clips), frozenset())


def table(*clips: str) -> FeatureTable:
    """Row r holds r + 1 everywhere; every modality of every clip is there."""
    absent = NonverbalInputs.absent(TINY, (1, len(clips)))
    arrays = {item.name: getattr(absent, item.name)[0].numpy().copy() for item in fields(NonverbalInputs)}
    for name in PARTS:
        values = arrays[name].astype(np.float16)
        values += np.arange(1, len(clips) + 1).reshape(-1, *(1,) * (values.ndim - 1))
        arrays[name] = values
        arrays[f"{name}_mask"][:] = True
    return FeatureTable({Span(Path(clip)): row for row, clip in enumerate(clips)}, arrays)


def padded(group: Sequence[LabelledConversation]) -> npt.NDArray[np.int64]:
    emotions = np.full((len(group), max(len(one.emotions) for one in group)), -100)
    for row, one in zip(emotions, group, strict=True):
        row[: len(one.emotions)] = 0
    return emotions


def test_each_utterance_gets_its_own_recording() -> None:
    group = [conversation("1", "a", None, "b"), conversation("2", "c", "missing")]
    source = RecordedModalities(TINY, table("a", "b", "c"), NOTHING_HIDDEN)
    evidence, dropped = source.sample(group, padded(group), np.random.default_rng(0))
    assert not dropped.any()
    expected = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    for name in PARTS:
        values, mask = getattr(evidence, name), getattr(evidence, f"{name}_mask")
        assert values.dtype == torch.float32
        assert torch.equal(values.flatten(2).amax(2), expected)
        assert torch.equal(values.flatten(2).amin(2), expected)
        assert torch.equal(mask.reshape(2, 3, -1).all(2), expected > 0)
        assert torch.equal(mask.reshape(2, 3, -1).any(2), expected > 0)
    everything = source.of(group, 3)
    assert all(torch.equal(getattr(everything, f.name), getattr(evidence, f.name)) for f in fields(NonverbalInputs))


def test_shapes_and_types_are_those_of_drawn_evidence() -> None:
    group = [conversation("1", "a")]
    evidence, dropped = RecordedModalities(TINY, table("a"), NOTHING_HIDDEN).sample(
        group, padded(group), np.random.default_rng(0)
    )
    drawn, drawn_dropped = SimulatedModalities(TINY, {}, SimulationConfig()).sample(
        group, padded(group), np.random.default_rng(0)
    )
    for item in fields(NonverbalInputs):
        assert getattr(evidence, item.name).shape == getattr(drawn, item.name).shape
        assert getattr(evidence, item.name).dtype == getattr(drawn, item.name).dtype
    assert (dropped.shape, dropped.dtype) == (drawn_dropped.shape, drawn_dropped.dtype)


def test_modalities_are_hidden_as_often_as_configured() -> None:
    group = [conversation(str(i), *["a"] * 20) for i in range(600)]
    source = RecordedModalities(TINY, table("a"), ModalityDropoutConfig(0.3, 0.2, 0.0))
    evidence, _ = source.sample(group, padded(group), np.random.default_rng(0))
    shown = [getattr(evidence, f"{name}_mask").reshape(600, 20, -1).any(2) for name in PARTS]
    for mask in shown:
        assert (~mask.any(1)).double().mean().item() == pytest.approx(0.3, abs=0.06)
        assert mask[mask.any(1)].double().mean().item() == pytest.approx(0.8, abs=0.02)
    both_hidden = (~shown[0].any(1) & ~shown[2].any(1)).double().mean().item()
    assert both_hidden == pytest.approx(0.09, abs=0.04)  # each is drawn on its own


def test_text_is_dropped_where_a_voice_or_a_face_is_left() -> None:
    group = [conversation(str(i), "a", None) for i in range(2000)]
    source = RecordedModalities(TINY, table("a"), ModalityDropoutConfig(0.5, 0.0, 0.4))
    evidence, dropped = source.sample(group, padded(group), np.random.default_rng(0))
    there = evidence.audio_mask | evidence.face_mask.any(-1)
    assert not (dropped & ~there).any()
    assert (dropped.sum() / there.sum()).item() == pytest.approx(0.4, abs=0.03)


def test_conversations_without_recordings_fall_back() -> None:
    clipped, plain = conversation("1", "a", "a"), conversation("2", None, "gone")
    group = [plain, clipped, plain]
    always = SimulationConfig(conversation_rate=1.0, utterance_rate=1.0)
    asked: list[Sequence[LabelledConversation]] = []

    class Drawn(SimulatedModalities):
        def sample(
            self,
            group: Sequence[LabelledConversation],
            emotions: npt.NDArray[np.int64],
            random: np.random.Generator,
        ) -> tuple[NonverbalInputs, torch.Tensor]:
            asked.append(group)
            assert emotions.shape == (len(group), 2)
            return super().sample(group, emotions, random)

    source = RecordedModalities(TINY, table("a"), NOTHING_HIDDEN, Drawn(TINY, {}, always))
    evidence, _ = source.sample(group, padded(group), np.random.default_rng(0))
    assert asked == [[plain, plain]]
    assert evidence.scene_mask.all()
    assert (evidence.scene[1] == 1).all()
    assert not (evidence.scene[[0, 2]] == 1).any()
    alone, _ = RecordedModalities(TINY, table("a"), NOTHING_HIDDEN).sample(
        group, padded(group), np.random.default_rng(0)
    )
    assert alone.scene_mask.flatten(1).any(1).tolist() == [False, True, False]
    assert not source.of(group, 2).scene_mask[0].any()  # nothing is drawn for scoring


def test_the_seed_decides() -> None:
    group = [conversation(str(i), *["a"] * 9) for i in range(9)]
    source = RecordedModalities(TINY, table("a"), ModalityDropoutConfig(0.4, 0.4, 0.4))
    one, again, other = (source.sample(group, padded(group), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(one[0].audio_mask, again[0].audio_mask)
    assert torch.equal(one[1], again[1])
    assert not torch.equal(one[0].audio_mask, other[0].audio_mask)


def test_rates_outside_their_range_are_refused() -> None:
    for rates in ((1.1, 0.0, 0.0), (0.0, -0.1, 0.0), (0.0, 0.0, float("nan"))):
        with pytest.raises(ValueError, match="is not in"):
            ModalityDropoutConfig(*rates)
