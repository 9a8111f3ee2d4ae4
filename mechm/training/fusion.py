"""Trains the text encoder and the fusion with its heads, in stages, on a CPU or a GPU.

A stage is a set of corpora and a number of epochs; one learning-rate schedule spans all stages. After every epoch of a
stage with the target corpus, an exponential moving average of the weights is scored on `dev`, and the best is kept.
`test` is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mechm.data.batches import group_by_size, make_batch
from mechm.data.simulated_modalities import NonverbalSource, SimulationConfig
from mechm.model.build import save_trained
from mechm.model.fusion import FusionOutput
from mechm.model.inputs import NonverbalInputs
from mechm.model.network import Network
from mechm.training.calibration import ScoredConversation, fit_decision, pair_counts, weighted_f1
from mechm.training.checkpoint import Learner, corpora_digests
from mechm.training.distributed import map_over_processes, start_processes
from mechm.training.loop import (
    DevScores,
    EpochReport,
    LoopConfig,
    OnEpoch,
    OnStep,
    Task,
    TrainingDivergedError,
    run_training,
)
from mechm.training.losses import class_weights, fusion_loss
from mechm.training.speakers import rename_speakers
from mechm.training.stages import Epoch, Group, Stage, check_corpora, plan_epochs
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import decide
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import LabelledConversation

if TYPE_CHECKING:
    from mechm.data.recorded_modalities import RecordedModalities


@dataclass(frozen=True, slots=True)
class FusionTrainingConfig:
    """Hyperparameters, saved in the card.

    max_tokens: padded tokens per batch. text_lr, fusion_lr: peak learning rates (AdamW, linear warm-up, linear decay).
    warmup: share of the steps with linear warm-up.
    class_weight_power: an emotion's loss weight is its frequency to the power of minus this.
    rename_rate: share of conversations whose speakers are renamed.
    ema_decay: of the averaged weights that are scored and kept.
    """

    stages: tuple[Stage, ...]
    seed: int = 0
    max_tokens: int = 1400
    text_lr: float = 6e-4
    fusion_lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.06
    label_smoothing: float = 0.05
    class_weight_power: float = 0.4
    cause_weight: float = 1.0
    rename_rate: float = 0.5
    ema_decay: float = 0.995
    evidence: SimulationConfig = field(default_factory=SimulationConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("training needs stages")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is not in [0, 1)")


def train_fusion(
    network: Network,
    tokenizer: ConversationTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    nonverbal: NonverbalSource,
    config: FusionTrainingConfig,
    out: Path,
    card: dict[str, Any],
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    loop: LoopConfig | None = None,
    recorded: RecordedModalities | None = None,
) -> float:
    """Train, keep the weights that score best on `dev` in `out`, and return their weighted F1 there.

    network: moved to the device of this process. corpora: name -> conversations, for the names in `config.stages`; the
    last stage's first corpus is the target. nonverbal: voices, faces and frames beside the text.
    recorded: recordings of `dev`; None scores its text alone.
    Raises: TrainingDivergedError: the loss, its gradient or the scores on `dev` are not finite. InputError: a corpus of
        `config.stages` is missing or `dev` is empty. WeightsError: see `run_training`.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    accelerator = start_processes()
    network.to(accelerator.device)
    plan = _plan_batches(config, corpora)
    optimizer = _make_optimizer(network, config)
    averaging = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=averaging)
    averaged = cast(Network, average.module)
    target = config.stages[-1].corpora[0]
    weights = class_weights(corpora[target], config.class_weight_power).to(network.device)

    def loss(group: Group, random: np.random.Generator) -> Tensor:
        batch = make_batch([rename_speakers(c, random, config.rename_rate) for c in group], tokenizer)
        beside, dropped = nonverbal.sample(group, batch.emotions.numpy(), random)
        batch, beside, dropped = batch.to(network.device), beside.to(network.device), dropped.to(network.device)
        return fusion_loss(network, batch, beside, dropped, weights, config.label_smoothing, config.cause_weight)

    def evaluate(stage: Stage) -> DevScores | None:
        if target not in stage.corpora:
            return None
        scored = map_over_processes(
            accelerator, dev, lambda some: score_conversations(averaged, tokenizer, some, recorded)
        )
        return dev_scores(scored)

    def keep(report: EpochReport, scores: DevScores, record: dict[str, Any]) -> None:
        save_trained(averaged, scores.decision, {**card, "dev": _dev_entry(report, scores), "run": record}, out)

    identity = {
        "model": asdict(network.config),
        "training": asdict(config),
        "data": card.get("data"),
        "corpora": corpora_digests({**corpora, "dev": dev}),
    }
    learner = Learner(network, optimizer, average)
    task = Task(learner, plan, config.seed, config.warmup, loss, evaluate, keep, identity)
    return run_training(task, loop or LoopConfig(), out, accelerator, on_step, on_epoch)


def _plan_batches(config: FusionTrainingConfig, corpora: Mapping[str, Sequence[LabelledConversation]]) -> list[Epoch]:
    """Plan the batches of all epochs, each of conversations of similar size."""
    random = np.random.default_rng(config.seed)
    return plan_epochs(
        config.stages, corpora, lambda some: list(group_by_size(some, config.max_tokens, random)), random
    )


def _dev_entry(report: EpochReport, scores: DevScores) -> dict[str, Any]:
    """Return the card's entry `dev` for the epoch that is kept."""
    return {
        "stage": report.stage,
        "epoch": report.epoch,
        "weighted_f1": scores.weighted_f1,
        "accuracy": scores.emotion_accuracy,
    }


def score_conversations(
    network: Network,
    tokenizer: ConversationTokenizer,
    conversations: Sequence[LabelledConversation],
    recorded: RecordedModalities | None = None,
) -> list[ScoredConversation]:
    """Score conversations, in the order given, on their text and recordings; `recorded` None means text alone."""
    network.eval()
    # Keyed by object, since conversations of different corpora may have the same id.
    scored: dict[int, ScoredConversation] = {}
    with torch.inference_mode():
        for group in group_by_size(conversations, 4000):
            batch = make_batch(group, tokenizer)
            B, U = batch.text_mask.shape
            nonverbal = NonverbalInputs.absent(network.config, (B, U)) if recorded is None else recorded.of(group, U)
            output: FusionOutput = network(batch.to(network.device), nonverbal.to(network.device))
            emotion_logits, pair_logits = output.emotion_logits.float().cpu(), output.pair_logits.float().cpu()
            for b, labelled in enumerate(group):
                n = len(labelled.emotions)
                scored[id(labelled)] = ScoredConversation(
                    emotion_logits[b, :n].numpy(),
                    pair_logits[b, :n, :n].numpy(),
                    batch.emotions[b, :n].numpy(),
                    batch.causes[b, :n, :n].numpy().astype(bool),
                )
    return [scored[id(c)] for c in conversations]


def score(
    network: Network, tokenizer: ConversationTokenizer, dev: Sequence[LabelledConversation]
) -> tuple[DecisionConfig, float, float]:
    """Fit the decision on `dev` and return it with its weighted F1 and emotion accuracy there.

    Raises: TrainingDivergedError: the network's scores are not finite.
    """
    scores = dev_scores(score_conversations(network, tokenizer, dev))
    return scores.decision, scores.weighted_f1, scores.emotion_accuracy


def dev_scores(scored: Sequence[ScoredConversation]) -> DevScores:
    """Fit the decision on the scores of `dev`, and evaluate it there.

    Raises: TrainingDivergedError: the scores are not finite; -inf is allowed, for a pair that was not scored.
    """
    if not all(
        np.isfinite(s.emotion_logits).all() and (np.isfinite(s.pair_logits) | np.isneginf(s.pair_logits)).all()
        for s in scored
    ):
        raise TrainingDivergedError("the scores on dev are not finite")
    decision = fit_decision(scored)
    return DevScores(decision, *decision_scores(scored, decision), scored)


def decision_scores(scored: Sequence[ScoredConversation], decision: DecisionConfig) -> tuple[float, float]:
    """Compute the weighted F1 of pairs and the accuracy of emotions."""
    labels = [decide(s.emotion_logits, s.pair_logits, decision).labels for s in scored]
    right = sum(int((found == s.emotions).sum()) for found, s in zip(labels, scored, strict=True))
    f1 = weighted_f1(pair_counts(scored, decision, (decision.pair_threshold,)))[0]
    return float(f1), right / max(sum(len(found) for found in labels), 1)


def _make_optimizer(network: Network, config: FusionTrainingConfig) -> torch.optim.Optimizer:
    """Freeze what is not trained, and optimize the text encoder and the fusion at their own learning rates."""
    text: list[Tensor] = []
    fusion: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if network.is_frozen(name):
            parameter.requires_grad_(False)
        else:
            (text if name.startswith("text.") else fusion).append(parameter)
    groups = [{"params": text, "lr": config.text_lr}, {"params": fusion, "lr": config.fusion_lr}]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)
