"""Trains the Llama's adapter on the scoring that is used in deployment: emotion and causes of every utterance at once.

The emotion's loss is a class-weighted cross-entropy over the seven answers. A cause's is a binary cross-entropy of its
log-odds against `NO_CAUSE`, so that an utterance may have several causes, each with its own probability. Only emotional
utterances have annotated causes. `test` is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm.training.calibration import ScoredConversation
from mechm.training.checkpoint import Learner, corpora_digests
from mechm.training.distributed import map_over_processes, start_processes
from mechm.training.fusion import dev_scores
from mechm.training.loop import DevScores, Keep, LoopConfig, OnEpoch, OnStep, Task, run_training
from mechm.training.losses import class_weights
from mechm.training.speakers import rename_speakers
from mechm.training.stages import Epoch, Group, Stage, check_corpora, plan_epochs
from mechm_runtime.llm.questions import QuestionTokenizer, cause_offsets, pair_logits
from mechm_runtime.llm.scorer import LlamaScorer, SoftTokens
from mechm_runtime.types import EMOTIONS, LabelledConversation


@dataclass(frozen=True, slots=True)
class LlamaTrainingConfig:
    """Hyperparameters, saved in the adapter's card.

    stages: corpora and epochs, in order; the last stage's first corpus is the target.
    max_tokens: padded tokens per batch. learning_rate: peak (AdamW, linear warm-up, linear decay).
    class_weight_power: an emotion's loss weight is its frequency to the power of minus this.
    rename_rate: share of conversations whose speakers are renamed.
    checkpoint_activations: recompute a layer's activations in the backward pass instead of storing them: less memory,
        a third more time.
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
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if not self.stages or self.max_tokens < 1:
            raise ValueError("training needs stages, and at least one token per batch")


def train_llama(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    config: LlamaTrainingConfig,
    out: Path,
    keep: Keep,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    loop: LoopConfig | None = None,
) -> float:
    """Train the parameters of `scores` that require gradients, and return the best weighted F1 on `dev`.

    scores: moved to the device of this process. corpora: name -> conversations, for the names in `config.stages`.
    out: folder of the checkpoint. keep: called in the main process after every epoch that scores better on `dev` than
        those before it, while that epoch's weights are loaded.
    Raises: TrainingDivergedError: the loss, its gradient or the scores on `dev` are not finite. InputError: a corpus is
        missing or `dev` is empty. WeightsError: see `run_training`.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    accelerator = start_processes()
    loop = loop or LoopConfig()
    scores.to(accelerator.device)
    if config.checkpoint_activations:
        scores.llama.enable_input_require_grads()  # the frozen embedding's output has no gradients, but peft needs them
        scores.llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    plan = plan_questions(
        config.stages,
        corpora,
        tokenizer,
        max_tokens=config.max_tokens,
        seed=config.seed,
        batches_per_step=loop.batches_per_step(accelerator),
    )
    trained = [p for p in scores.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    weights = class_weights(corpora[config.stages[-1].corpora[0]], config.class_weight_power).to(scores.device)

    def loss(group: Group, random: np.random.Generator) -> Tensor:
        renamed = [rename_speakers(c, random, config.rename_rate) for c in group]
        packed = [tokenizer.pack(c.conversation.utterances, range(len(c.emotions))) for c in renamed]
        emotion_logits, cause_logits = scores(make_question_batch(packed).to(scores.device))
        return answer_loss(emotion_logits, cause_logits, renamed, weights, config.label_smoothing, config.cause_weight)

    def evaluate(_stage: Stage) -> DevScores:
        return dev_scores(map_over_processes(accelerator, dev, lambda some: score_with_llama(scores, tokenizer, some)))

    identity = {"training": asdict(config), "corpora": corpora_digests({**corpora, "dev": dev})}
    learner = Learner(scores, optimizer)
    task = Task(learner, plan, config.seed, config.warmup, loss, evaluate, keep, identity)
    return run_training(task, loop, out, accelerator, on_step, on_epoch)


def plan_questions(
    stages: Sequence[Stage],
    corpora: Mapping[str, Sequence[LabelledConversation]],
    tokenizer: QuestionTokenizer,
    *,
    max_tokens: int,
    seed: int,
    batches_per_step: int,
) -> list[Epoch]:
    """Plan the batches of all epochs, each of conversations of similar size, see `plan_epochs`."""
    random = np.random.default_rng(seed)
    return plan_epochs(
        stages,
        corpora,
        lambda some: question_groups(some, tokenizer, max_tokens, random),
        random,
        batches_per_step,
    )


def score_with_llama(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    conversations: Sequence[LabelledConversation],
    soft_tokens: Sequence[SoftTokens | None] | None = None,
) -> list[ScoredConversation]:
    """Score conversations with the Llama as the runtime does, in the order given.

    Pairs at distances without an answer, and those of utterances without text, have -inf.
    soft_tokens: of each conversation; None for text alone.
    """
    scores.eval()
    scorer = LlamaScorer(tokenizer, TorchLlama(scores), scores.hidden_size)
    scored = []
    for labelled, soft in zip(conversations, soft_tokens or [None] * len(conversations), strict=True):
        utterances = labelled.conversation.utterances
        answers = scorer.score(utterances, soft)
        position = {u.id: i for i, u in enumerate(utterances)}
        causes = np.zeros((len(utterances),) * 2, bool)
        for pair in labelled.pairs:
            causes[position[pair.emotion_utterance], position[pair.cause_utterance]] = True
        emotions = np.array([EMOTIONS.index(e) for e in labelled.emotions], np.int64)
        found = pair_logits(answers.causes)
        found[~answers.asked] = -np.inf
        scored.append(ScoredConversation(answers.emotions, found, emotions, causes))
    return scored


def question_groups(
    conversations: Sequence[LabelledConversation],
    tokenizer: QuestionTokenizer,
    max_tokens: int,
    random: np.random.Generator,
) -> list[list[LabelledConversation]]:
    """Group conversations of similar size so that a padded group stays below `max_tokens`, small to large."""
    sizes = []
    for labelled in conversations:
        lines = sum(len(line.ids) for line in tokenizer.conversation(labelled.conversation.utterances))
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
    return groups


def answer_loss(
    emotion_logits: Tensor,
    cause_logits: Tensor,
    group: Sequence[LabelledConversation],
    weights: Tensor,
    label_smoothing: float,
    cause_weight: float,
) -> Tensor:
    """Compute the loss of the answers on every utterance of a group, in order.

    emotion_logits: (N, 7); cause_logits: (N, answers). weights: float32 (7,), see `class_weights`.
    """
    device = emotion_logits.device
    emotions = torch.tensor([EMOTIONS.index(e) for c in group for e in c.emotions], device=device)
    loss = F.cross_entropy(emotion_logits, emotions, weight=weights, label_smoothing=label_smoothing)
    targets, known = (
        torch.from_numpy(np.concatenate(x)).to(device) for x in zip(*map(_cause_targets, group), strict=True)
    )
    if known.any():
        odds = cause_logits[:, :-1] - cause_logits[:, -1:]
        loss = loss + cause_weight * F.binary_cross_entropy_with_logits(odds[known], targets[known])
    return loss


def _cause_targets(labelled: LabelledConversation) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and mask of the causes, by distance.

    Returns: float32 (U, answers), 1 for annotated causes; bool (U, answers), distances within the conversation of
        utterances with annotated causes.
    """
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
