"""Train the Llama's adapter on exactly the scoring that serves: emotion and causes of every utterance, in one pass.

The emotion's loss is a class-weighted cross-entropy over the seven answers; a cause's is a binary cross-entropy of its
log-odds against `NO_CAUSE`, so that an utterance may have several causes and each has a probability of its own. Only
emotional utterances have annotated causes. It does not touch `test`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm.training.calibration import ScoredConversation
from mechm.training.checkpoint import Learner, corpora_digests
from mechm.training.distributed import in_parts, start_processes
from mechm.training.fusion import dev_scores
from mechm.training.loop import DevScores, EpochReport, LoopConfig, StepReport, Task, run_training
from mechm.training.losses import class_weights
from mechm.training.speakers import rename_speakers
from mechm.training.stages import Group, Stage, check_corpora, plan_epochs
from mechm_runtime.llm.questions import QuestionTokenizer, cause_offsets, pair_logits
from mechm_runtime.llm.scorer import LlamaReader, SoftTokens
from mechm_runtime.types import EMOTIONS, LabelledConversation


@dataclass(frozen=True, slots=True)
class LlamaTrainingConfig:
    """Hyperparameters, saved beside the adapter.

    stages: which corpora are learnt for how many epochs, in order; the last one's first corpus is the target.
    max_tokens: padded tokens a step. learning_rate: peak (AdamW, linear warm-up then linear decay).
    class_weight_power: loss weight of an emotion is its frequency to the power of minus this.
    rename_rate: share of conversations whose speakers get other names.
    checkpoint_activations: compute a layer's activations again in the backward pass instead of keeping them, for less
        memory at the price of a third more time.
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
            raise ValueError("training needs stages, and tokens a step")


def train_llama(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    config: LlamaTrainingConfig,
    out: Path,
    keep: Callable[[EpochReport, DevScores, dict[str, Any]], None],
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    loop: LoopConfig | None = None,
) -> float:
    """Train what requires gradients in `scores`, score `dev` after every epoch, and return the best weighted F1 there.

    scores: moved to the device of this process. corpora: name -> conversations, for the names in `config.stages`.
    out: where the checkpoint goes. keep: called in the main process after an epoch better than those before it, with
        that epoch's weights in place, its scores, and the record of the run so far, so that it may write them.
    Raises: TrainingDivergedError: the loss, its gradient or the scores on `dev` are not finite. InputError: a corpus is
        missing or `dev` is empty. WeightsError: see `run_training`.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    accelerator = start_processes()
    loop = loop or LoopConfig()
    scores.to(accelerator.device)
    if config.checkpoint_activations:
        scores.llama.enable_input_require_grads()  # a frozen embedding's output has none, and peft asks for them
        scores.llama.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    random = np.random.default_rng(config.seed)
    plan = plan_epochs(
        config.stages,
        corpora,
        lambda some: question_groups(some, tokenizer, config.max_tokens, random),
        random,
        loop.batches_a_step(accelerator),
    )
    trained = [p for p in scores.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    weights = class_weights(corpora[config.stages[-1].corpora[0]], config.class_weight_power).to(scores.device)

    def loss(group: Group, random: np.random.Generator) -> Tensor:
        renamed = [rename_speakers(c, random, config.rename_rate) for c in group]
        packed = [tokenizer.pack(c.conversation.utterances, range(len(c.emotions))) for c in renamed]
        emotion_logits, cause_logits = scores(make_question_batch(packed).to(scores.device))
        return answer_loss(emotion_logits, cause_logits, renamed, weights, config.label_smoothing, config.cause_weight)

    def evaluate(stage: Stage) -> DevScores:
        del stage  # every one is scored: even the warm-up is on conversations
        return dev_scores(in_parts(accelerator, dev, lambda some: score_with_llama(scores, tokenizer, some)))

    identity = {"training": asdict(config), "corpora": corpora_digests({**corpora, "dev": dev})}
    learner = Learner(scores, optimizer)
    task = Task(learner, plan, config.seed, config.warmup, loss, evaluate, keep, identity)
    return run_training(task, loop, out, accelerator, on_step, on_epoch)


def score_with_llama(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    conversations: Sequence[LabelledConversation],
    soft_tokens: Sequence[SoftTokens | None] | None = None,
) -> list[ScoredConversation]:
    """The Llama's scores as the runtime reads them, in the order given.

    Pairs at distances that no answer names have -inf, and those of an utterance without words.
    soft_tokens: beside the words of each conversation; None for words alone.
    """
    scores.eval()
    reader = LlamaReader(tokenizer, TorchLlama(scores), scores.hidden_size)
    scored = []
    for labelled, soft in zip(conversations, soft_tokens or [None] * len(conversations), strict=True):
        utterances = labelled.conversation.utterances
        answers = reader.read(utterances, soft)
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
    """Groups of conversations of similar size whose padded size stays below `max_tokens`, small to large."""
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
    """The loss of the answers to the questions on every utterance of a group, in order.

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
