"""Train the Llama's adapter on exactly the scoring that serves: emotion and causes of every utterance, in one pass.

The emotion's loss is a class-weighted cross-entropy over the seven answers; a cause's is a binary cross-entropy of its
log-odds against `NO_CAUSE`, so that an utterance may have several causes and each has a probability of its own. Only
emotional utterances have annotated causes. It does not touch `test`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm.training.calibration import ScoredConversation, fit_decision
from mechm.training.fusion import TrainingDivergedError, decision_scores, learning_rate, rename_speakers
from mechm.training.losses import class_weights
from mechm.training.stages import Stage, check_corpora, plan_epochs
from mechm_runtime.decision import DecisionConfig
from mechm_runtime.questions import QuestionTokenizer, cause_offsets, pair_logits
from mechm_runtime.types import EMOTIONS, LabelledConversation


@dataclass(frozen=True, slots=True)
class LlamaTrainingConfig:
    """Hyperparameters, saved beside the adapter.

    stages: which corpora are learnt for how many epochs, in order; the last one's first corpus is the target.
    max_tokens: padded tokens a step. learning_rate: peak (AdamW, linear warm-up then linear decay).
    class_weight_power: loss weight of an emotion is its frequency to the power of minus this.
    rename_rate: share of conversations whose speakers get other names.
    """

    stages: tuple[Stage, ...]
    seed: int = 0
    max_tokens: int = 1600
    learning_rate: float = 4e-4
    warmup: float = 0.06
    weight_decay: float = 0.0
    label_smoothing: float = 0.05
    class_weight_power: float = 0.4
    cause_weight: float = 1.0
    rename_rate: float = 0.5

    def __post_init__(self) -> None:
        if not self.stages or self.max_tokens < 1:
            raise ValueError("training needs stages, and tokens a step")


@dataclass(frozen=True, slots=True)
class LlamaEpoch:
    """Scores after an epoch; `decision` is fitted on `dev`."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    dev_weighted_f1: float
    dev_emotion_accuracy: float
    decision: DecisionConfig


def train_llama(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    config: LlamaTrainingConfig,
    on_step: Callable[[int, int, float], None] | None = None,
    on_epoch: Callable[[LlamaEpoch], None] | None = None,
) -> None:
    """Train what requires gradients in `scores`, and score `dev` after every epoch.

    corpora: name -> conversations, for the names in `config.stages`.
    on_step: called with (step, steps in all, loss). on_epoch: called with the weights of that epoch in place, so that
        it may save them.
    Raises: TrainingDivergedError: the loss or its gradient is not finite. InputError: a corpus is missing.
    """
    check_corpora(config.stages, corpora)
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    trained = [p for p in scores.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    plan = plan_epochs(
        config.stages, corpora, lambda some: question_groups(some, tokenizer, config.max_tokens, random), random
    )
    n_steps = sum(len(groups) for _, _, groups in plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, n_steps, config.warmup))
    weights = class_weights(corpora[config.stages[-1].corpora[0]], config.class_weight_power).to(scores.device)
    step = 0
    for stage, epoch, groups in plan:
        started, losses = time.monotonic(), []
        scores.train()
        for group in groups:
            renamed = [rename_speakers(c, random, config.rename_rate) for c in group]
            # The adapter is fp32 and the base bf16: without autocast the adapter's products take a fifth of the time.
            with torch.autocast(scores.device.type, dtype=torch.bfloat16):
                loss = _loss(scores, renamed, tokenizer, weights, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            if not (torch.isfinite(loss) and torch.isfinite(norm)):
                raise TrainingDivergedError(
                    f"at step {step} the loss is {loss.item()} and its gradient's norm {norm.item()}",
                    hint="lower learning_rate",
                )
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
            if on_step is not None:
                on_step(step, n_steps, losses[-1])
        scored = score_with_llama(scores, tokenizer, dev)
        decision = fit_decision(scored)
        f1, accuracy = decision_scores(scored, decision)
        if on_epoch is not None:
            seconds = time.monotonic() - started
            on_epoch(LlamaEpoch(stage.name, epoch, float(np.mean(losses)), seconds, f1, accuracy, decision))


def score_with_llama(
    scores: AnswerScores, tokenizer: QuestionTokenizer, conversations: Sequence[LabelledConversation]
) -> list[ScoredConversation]:
    """The Llama's scores, in the order given; pairs at distances that no answer names have -inf."""
    scores.eval()
    scored = []
    with torch.inference_mode():
        for labelled in conversations:
            utterances = labelled.conversation.utterances
            batch = make_question_batch([tokenizer.pack(utterances, range(len(utterances)))])
            emotion, cause = (logits.cpu() for logits in scores(batch.to(scores.device)))
            position = {u.id: i for i, u in enumerate(utterances)}
            causes = np.zeros((len(utterances),) * 2, bool)
            for pair in labelled.pairs:
                causes[position[pair.emotion_utterance], position[pair.cause_utterance]] = True
            emotions = np.array([EMOTIONS.index(e) for e in labelled.emotions], np.int64)
            scored.append(
                ScoredConversation(
                    emotion.log_softmax(-1).numpy(), pair_logits(cause.log_softmax(-1).numpy()), emotions, causes
                )
            )
    return scored


def question_groups(
    conversations: Sequence[LabelledConversation],
    tokenizer: QuestionTokenizer,
    max_tokens: int,
    random: np.random.Generator,
) -> list[list[LabelledConversation]]:
    """Shuffled groups of conversations of similar size whose padded size stays below `max_tokens`."""
    sizes = []
    for labelled in conversations:
        lines = sum(map(len, tokenizer.conversation(labelled.conversation.utterances)))
        sizes.append(2 * lines + 9 * len(labelled.emotions))
    order = np.argsort(np.array(sizes) * random.uniform(0.97, 1.03, len(sizes)), kind="stable")
    groups: list[list[LabelledConversation]] = []
    largest = 0
    for index in order:
        largest = max(largest, sizes[index])
        if not groups or largest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            largest = sizes[index]
        groups[-1].append(conversations[index])
    return [groups[index] for index in random.permutation(len(groups))]


def _loss(
    scores: AnswerScores,
    group: Sequence[LabelledConversation],
    tokenizer: QuestionTokenizer,
    weights: Tensor,
    config: LlamaTrainingConfig,
) -> Tensor:
    packed = [tokenizer.pack(c.conversation.utterances, range(len(c.emotions))) for c in group]
    emotion_logits, cause_logits = scores(make_question_batch(packed).to(scores.device))
    emotions = torch.tensor([EMOTIONS.index(e) for c in group for e in c.emotions], device=scores.device)
    loss = F.cross_entropy(emotion_logits, emotions, weight=weights, label_smoothing=config.label_smoothing)
    targets, known = (
        torch.from_numpy(np.concatenate(x)).to(scores.device) for x in zip(*map(_cause_targets, group), strict=True)
    )
    if known.any():
        odds = cause_logits[:, :-1] - cause_logits[:, -1:]
        loss = loss + config.cause_weight * F.binary_cross_entropy_with_logits(odds[known], targets[known])
    return loss


def _cause_targets(labelled: LabelledConversation) -> tuple[np.ndarray, np.ndarray]:
    """float32 (U, answers), 1 for the distances of annotated causes; bool (U, answers), the distances that exist."""
    offsets = cause_offsets()
    n = len(labelled.emotions)
    at = np.arange(n)[:, None] + offsets
    known = (
        (at >= 0) & (at < n) & np.array([e != EMOTIONS[0] for e in labelled.emotions])[:, None] & bool(labelled.pairs)
    )
    targets = np.zeros(known.shape, np.float32)
    column = {int(offset): index for index, offset in enumerate(offsets)}
    position = {u.id: i for i, u in enumerate(labelled.conversation.utterances)}
    for pair in labelled.pairs:
        row = position[pair.emotion_utterance]
        offset = position[pair.cause_utterance] - row
        if offset in column:
            targets[row, column[offset]] = 1
    return targets, known
