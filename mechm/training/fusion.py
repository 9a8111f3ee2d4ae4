"""Train the text encoder and the fusion with its heads, in stages, on a CPU or a GPU.

A stage is a set of corpora and a number of epochs; one learning-rate schedule spans all of them. After every epoch of a
stage that has the target corpus, an exponential average of the weights is scored on `dev`; the best one is kept.
It does not touch `test`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mechm.data.batches import group_by_size, make_batch
from mechm.data.evidence import EvidenceConfig, EvidenceSource, no_evidence
from mechm.model.build import save_trained
from mechm.model.fusion import FusionOutput
from mechm.model.network import Network, is_frozen
from mechm.training.calibration import ScoredConversation, fit_decision, pair_counts, weighted_f1
from mechm.training.losses import class_weights, fusion_loss
from mechm.training.stages import Stage, check_corpora, plan_epochs
from mechm_runtime.decision import DecisionConfig, decide
from mechm_runtime.errors import MechmError
from mechm_runtime.fusion import speaker_numbers
from mechm_runtime.text import ConversationTokenizer
from mechm_runtime.types import Conversation, LabelledConversation

SPEAKER_NAMES = ("A", "B", "C", "D", "E", "F", "Speaker 1", "Speaker 2", "Speaker 3", "Anna", "Ben", "Caller", "Clara",
                 "David", "Doctor", "Emma", "Guest", "Host", "Jack", "Julia", "Karen", "Leo", "Maria", "Mark", "Mother",
                 "Nina", "Paul", "Sam", "Sarah", "Tom", "")  # fmt: skip
"""Names that stand in for a corpus's own, so that the network does not learn who usually feels what."""

LOWER = "lower text_lr or fusion_lr"


@dataclass(frozen=True, slots=True)
class FusionTrainingConfig:
    """Hyperparameters, saved in the card beside the weights.

    max_tokens: padded tokens a step. text_lr, fusion_lr: peak learning rates (AdamW, linear warm-up then linear decay).
    class_weight_power: loss weight of an emotion is its frequency to the power of minus this.
    rename_rate: share of conversations whose speakers get other names.
    ema_decay: of the averaged weights that are scored and kept.
    """

    stages: tuple[Stage, ...]
    seed: int = 0
    max_tokens: int = 1400
    text_lr: float = 8e-5
    fusion_lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: float = 0.06
    label_smoothing: float = 0.05
    class_weight_power: float = 0.4
    cause_weight: float = 1.0
    rename_rate: float = 0.5
    ema_decay: float = 0.995
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("training needs stages")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is not in [0, 1)")


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Scores after an epoch; dev values are 0 where a stage is not scored."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    dev_weighted_f1: float
    dev_emotion_accuracy: float


class TrainingDivergedError(MechmError):
    """The loss is no longer a number; the last good weights are kept."""


def train_fusion(
    network: Network,
    tokenizer: ConversationTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    evidence: EvidenceSource,
    config: FusionTrainingConfig,
    out: Path,
    card: dict[str, Any],
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> float:
    """Train, keep the best weights of `dev` in `out`, and return their weighted F1 on `dev`.

    corpora: name -> conversations, for the names in `config.stages`; the last stage's first corpus is the target.
    evidence: voices, faces and frames beside the text.
    on_step: called with (step, steps in all, loss).
    Raises: TrainingDivergedError: the loss, its gradient or the scores on `dev` are not finite. InputError: a corpus of
        `config.stages` is missing or `dev` is empty.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    optimizer = _optimizer(network, config)
    average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(network, multi_avg_fn=average)
    target = config.stages[-1].corpora[0]
    epochs = plan_epochs(
        config.stages, corpora, lambda some: list(group_by_size(some, config.max_tokens, random)), random
    )
    n_steps = sum(len(groups) for _, _, groups in epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, n_steps, config.warmup))
    device = network.device
    weights = class_weights(corpora[target], config.class_weight_power).to(device)
    best, step = -1.0, 0
    for stage, epoch, groups in epochs:
        start, losses = time.monotonic(), []
        network.train()
        for group in groups:
            batch = make_batch([rename_speakers(c, random, config.rename_rate) for c in group], tokenizer)
            beside, dropped = evidence.sample(group, batch.emotions.numpy(), random)
            batch, beside, dropped = batch.to(device), beside.to(device), dropped.to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = fusion_loss(
                    network, batch, beside, dropped, weights, config.label_smoothing, config.cause_weight
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            # A finite loss can have gradients that are not, and one such step spoils every weight.
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise TrainingDivergedError(
                    f"at step {step} the loss is {loss.item()} and its gradient's norm {norm.item()}",
                    hint=LOWER,
                )
            optimizer.step()
            schedule.step()
            averaged.update_parameters(network)
            losses.append(loss.item())
            step += 1
            if on_step is not None:
                on_step(step, n_steps, losses[-1])
        report = EpochReport(stage.name, epoch, float(np.mean(losses)), time.monotonic() - start, 0.0, 0.0)
        if target in stage.corpora:
            kept = cast(Network, averaged.module)
            decision, f1, accuracy = score(kept, tokenizer, dev)
            report = replace(report, dev_weighted_f1=f1, dev_emotion_accuracy=accuracy)
            if f1 > best:
                best = f1
                save_trained(kept, decision, {**card, "dev": {"weighted_f1": f1, "accuracy": accuracy}}, out)
        if on_epoch is not None:
            on_epoch(report)
    return best


def score_conversations(
    network: Network, tokenizer: ConversationTokenizer, conversations: Sequence[LabelledConversation]
) -> list[ScoredConversation]:
    """The network's scores on text alone, in the order given."""
    network.eval()
    # Keyed by object: conversations of different corpora may have the same id.
    scored: dict[int, ScoredConversation] = {}
    with torch.inference_mode():
        for group in group_by_size(conversations, 4000):
            batch = make_batch(group, tokenizer)
            B, U = batch.text_mask.shape
            evidence = no_evidence(network.config, (B, U)).to(network.device)
            output: FusionOutput = network(batch.to(network.device), evidence)
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
    """Fit the decision on `dev` and return it with the weighted F1 and emotion accuracy it reaches there.

    Raises: TrainingDivergedError: the network's scores are not finite.
    """
    scored = score_conversations(network, tokenizer, dev)
    if not all(np.isfinite(s.emotion_logits).all() and np.isfinite(s.pair_logits).all() for s in scored):
        raise TrainingDivergedError("the scores on dev are not finite", hint=LOWER)
    decision = fit_decision(scored)
    return decision, *decision_scores(scored, decision)


def decision_scores(scored: Sequence[ScoredConversation], decision: DecisionConfig) -> tuple[float, float]:
    """Weighted F1 of pairs and accuracy of emotions."""
    labels = [decide(s.emotion_logits, s.pair_logits, decision).labels for s in scored]
    right = sum(int((found == s.emotions).sum()) for found, s in zip(labels, scored, strict=True))
    f1 = weighted_f1(pair_counts(scored, decision, (decision.pair_threshold,)))[0]
    return float(f1), right / max(sum(len(found) for found in labels), 1)


def _optimizer(network: Network, config: FusionTrainingConfig) -> torch.optim.Optimizer:
    text: list[Tensor] = []
    fusion: list[Tensor] = []
    for name, parameter in network.named_parameters():
        if is_frozen(name):
            parameter.requires_grad_(False)
        else:
            (text if name.startswith("text.") else fusion).append(parameter)
    groups = [{"params": text, "lr": config.text_lr}, {"params": fusion, "lr": config.fusion_lr}]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def learning_rate(step: int, n_steps: int, warmup: float) -> float:
    """The share of the peak: linear warm-up over the first `warmup` of the steps, then linear decay."""
    done = step / max(n_steps, 1)
    return min(done / warmup, 1.0) if done < warmup else max(0.02, (1 - done) / (1 - warmup))


def rename_speakers(labelled: LabelledConversation, random: np.random.Generator, rate: float) -> LabelledConversation:
    """The conversation with other names for its speakers, at the given rate; who speaks when stays."""
    if random.random() >= rate:
        return labelled
    numbers = speaker_numbers(labelled.conversation.utterances)
    if max(numbers) >= len(SPEAKER_NAMES):
        return labelled
    names = random.permutation(SPEAKER_NAMES)
    utterances = tuple(
        replace(u, speaker=str(names[number]))
        for u, number in zip(labelled.conversation.utterances, numbers, strict=True)
    )
    return replace(labelled, conversation=Conversation(labelled.conversation.id, utterances))
