"""Training: a tiny network learns a few conversations by heart, and one that diverges leaves the last good weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.model.build import build_network, load_trained
from mechm.model.config import TINY
from mechm.training.fusion import (
    FusionTrainingConfig,
    decision_scores,
    score,
    score_conversations,
    train_fusion,
)
from mechm.training.loop import EpochReport, StepReport, TrainingDivergedError
from mechm.training.speech import standardise_audio
from mechm.training.stages import Stage
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.errors import InputError
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import EMOTIONS, Conversation, LabelledConversation, Utterance

CONVERSATIONS = check_conversations()
CORPORA = {"target": CONVERSATIONS}
QUICK = FusionTrainingConfig(
    stages=(Stage("target", ("target",), 2),),
    max_tokens=200,
    text_lr=5e-3,
    fusion_lr=5e-3,
    rename_rate=0.0,
    ema_decay=0.8,
    label_smoothing=0.0,
    evidence=SimulationConfig(conversation_rate=0.3),
)
NO_VOICES = SimulatedModalities(TINY, {}, QUICK.evidence)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> ConversationTokenizer:
    return ConversationTokenizer(tokenizer_file, TextConfig(TINY.text.max_tokens, 16))


def voices() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (4, len(TINY.audio.pooled_layers), 2 * TINY.audio.hidden_size)
    return {e: random.normal(i, 1, shape).astype(np.float32) for i, e in enumerate(EMOTIONS[:-1])}


def majority_accuracy() -> float:
    emotions = [emotion for c in CONVERSATIONS for emotion in c.emotions]
    return emotions.count("neutral") / len(emotions)


def test_a_few_conversations_are_learnt_by_heart(tokenizer: ConversationTokenizer, tmp_path: Path) -> None:
    # Learning by heart is what dropout is there to prevent.
    model = replace(TINY, fusion=replace(TINY.fusion, dropout=0.0))
    network = build_network(model, None)
    standardise_audio(network.fusion, voices())
    _, chance, _ = score(network, tokenizer, CONVERSATIONS)
    reports: list[EpochReport] = []
    steps: list[tuple[int, int]] = []
    best = train_fusion(
        network,
        tokenizer,
        CORPORA,
        CONVERSATIONS,
        SimulatedModalities(TINY, voices(), QUICK.evidence),
        replace(QUICK, stages=(Stage("target", ("target",), 20),)),
        tmp_path,
        {"data": "the check conversations"},
        on_step=lambda report: steps.append((report.step, report.n_steps)),
        on_epoch=reports.append,
    )
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert best > chance + 0.25
    assert best == max(report.dev_weighted_f1 for report in reports)
    assert max(report.dev_emotion_accuracy for report in reports) > majority_accuracy() + 0.1
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    assert {n for _, n in steps} == {len(steps)}
    # What was kept answers as it did when it was scored, apart from fp16 on disk.
    kept = build_network(model, None)
    decision = load_trained(kept, tmp_path)
    again, _ = decision_scores(score_conversations(kept, tokenizer, CONVERSATIONS), decision)
    assert again == pytest.approx(best, abs=0.03)
    assert kept.fusion.audio_mean.abs().max() > 0  # standardised with the voices it was given


def test_training_is_repeatable(tokenizer: ConversationTokenizer, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for run in range(2):
        losses.append([])
        train_fusion(
            build_network(TINY, None),
            tokenizer,
            CORPORA,
            CONVERSATIONS[:3],
            NO_VOICES,
            replace(QUICK, stages=(Stage("target", ("target",), 1),), rename_rate=0.5),
            tmp_path / str(run),
            {},
            on_step=lambda report: losses[-1].append(report.loss),
        )
    assert losses[0] == losses[1]
    weights = [next((tmp_path / str(run)).glob("*.safetensors")).read_bytes() for run in range(2)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("value", [float("nan"), 1e38])
def test_a_diverging_training_keeps_the_last_good_weights(
    tokenizer: ConversationTokenizer, tmp_path: Path, value: float
) -> None:
    network = build_network(TINY, None)
    reports: list[EpochReport] = []
    spoiled: list[int] = []

    def spoil(report: StepReport) -> None:
        if len(reports) == 1:  # in the second epoch
            with torch.no_grad():
                network.fusion.emotion_head.weight.fill_(value)
            spoiled.append(report.step)

    with pytest.raises(TrainingDivergedError) as caught:
        train_fusion(
            network,
            tokenizer,
            CORPORA,
            CONVERSATIONS,
            NO_VOICES,
            QUICK,
            tmp_path,
            {},
            on_step=spoil,
            on_epoch=reports.append,
        )
    assert caught.value.hint
    assert len(reports) == 1
    assert len(spoiled) == 1  # the very next step noticed
    kept = build_network(TINY, None)
    decision = load_trained(kept, tmp_path)
    assert all(torch.isfinite(part).all() for part in kept.state_dict().values())
    f1, _ = decision_scores(score_conversations(kept, tokenizer, CONVERSATIONS), decision)
    assert f1 == pytest.approx(reports[0].dev_weighted_f1, abs=0.03)


def test_a_learning_rate_out_of_this_world_diverges(tokenizer: ConversationTokenizer, tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError):
        train_fusion(
            build_network(TINY, None),
            tokenizer,
            CORPORA,
            CONVERSATIONS,
            NO_VOICES,
            replace(QUICK, fusion_lr=1e25, text_lr=1e25),
            tmp_path,
            {},
        )
    assert not list(tmp_path.glob("*"))


def test_scores_that_are_no_numbers_are_refused(tokenizer: ConversationTokenizer) -> None:
    network = build_network(TINY, None)
    with torch.no_grad():
        network.fusion.pair_head.score.bias.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError):
        score(network, tokenizer, CONVERSATIONS[:2])


def test_stages_without_the_target_are_not_scored(tokenizer: ConversationTokenizer, tmp_path: Path) -> None:
    comments = tuple(
        LabelledConversation(Conversation(str(i), (Utterance(1, text=f"well {e}"),)), (e,), frozenset())
        for i, e in enumerate(EMOTIONS)
    )
    reports: list[EpochReport] = []
    stages = (Stage("warm-up", ("comments",), 1), Stage("both", ("target", "comments"), 1))
    before = build_network(TINY, None).state_dict()
    network = build_network(TINY, None)
    corpora = {"target": CONVERSATIONS, "comments": comments}
    config = replace(QUICK, stages=stages)
    train_fusion(
        network, tokenizer, corpora, CONVERSATIONS[:4], NO_VOICES, config, tmp_path, {}, on_epoch=reports.append
    )
    assert [(r.stage, r.epoch) for r in reports] == [("warm-up", 1), ("both", 1)]
    assert reports[0].dev_emotion_accuracy == 0 < reports[1].dev_emotion_accuracy
    after = network.state_dict()
    frozen = [name for name in before if name.startswith("text.encoder.embeddings.")]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_a_missing_corpus_is_named(tokenizer: ConversationTokenizer, tmp_path: Path) -> None:
    network = build_network(TINY, None)
    with pytest.raises(InputError, match="target"):
        train_fusion(network, tokenizer, {}, CONVERSATIONS, NO_VOICES, QUICK, tmp_path, {})
    with pytest.raises(InputError, match="dev"):
        train_fusion(network, tokenizer, CORPORA, (), NO_VOICES, QUICK, tmp_path, {})


def test_contradicting_hyperparameters_are_refused() -> None:
    with pytest.raises(ValueError, match="stages"):
        FusionTrainingConfig(stages=())
    with pytest.raises(ValueError, match="stage 'x' needs"):
        FusionTrainingConfig(stages=(Stage("x", ("target",), 0),))
    with pytest.raises(ValueError, match="warmup"):
        replace(QUICK, warmup=1.0)


def test_conversations_are_scored_in_the_order_given(tokenizer: ConversationTokenizer) -> None:
    network = build_network(TINY, None)
    # Two of the same id, as conversations of different corpora may be.
    twin = replace(CONVERSATIONS[1], conversation=replace(CONVERSATIONS[1].conversation, id="1"))
    chosen = [CONVERSATIONS[5], CONVERSATIONS[0], twin]
    scored = score_conversations(network, tokenizer, chosen)
    for s, labelled in zip(scored, chosen, strict=True):
        (alone,) = score_conversations(network, tokenizer, [labelled])
        assert np.abs(s.emotion_logits - alone.emotion_logits).max() < 1e-5
        assert np.abs(s.pair_logits - alone.pair_logits).max() < 1e-5
        assert [EMOTIONS[e] for e in s.emotions] == list(labelled.emotions)
        assert s.causes.sum() == len(labelled.pairs)
