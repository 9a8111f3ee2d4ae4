"""Train the projector: the Llama and the fusion stay as they are, only the soft tokens between them are learnt.

So what the Llama answers to words alone cannot change. Evidence is attached to annotated conversations as for the
fusion (`mechm.data.simulated_modalities`), wrong more often than not, so that the Llama learns from the words how much
to believe what is beside them. It does not touch `test`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechm.data.batches import IGNORED
from mechm.data.simulated_modalities import EvidenceConfig, EvidenceSource
from mechm.llm.projection import Projection, speakers_of
from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm.llm.stored_projector import ProjectorOrigin
from mechm.training.checkpoint import Learner, corpora_digests
from mechm.training.distributed import in_parts, start_processes
from mechm.training.fusion import dev_scores
from mechm.training.llm import answer_loss, question_groups, score_with_llama
from mechm.training.loop import DevScores, EpochReport, LoopConfig, StepReport, Task, run_training
from mechm.training.losses import class_weights
from mechm.training.speakers import rename_speakers
from mechm.training.stages import Group, Stage, check_corpora, plan_epochs
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import SoftTokens
from mechm_runtime.types import EMOTIONS, LabelledConversation


@dataclass(frozen=True, slots=True)
class ProjectorTrainingConfig:
    """Hyperparameters, saved beside the projector; as `LlamaTrainingConfig`'s where they have the same name.

    evidence: attached to every conversation, so that no step is spent on words alone.
    """

    stages: tuple[Stage, ...]
    seed: int = 0
    max_tokens: int = 1600
    learning_rate: float = 2e-3
    warmup: float = 0.06
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    class_weight_power: float = 0.4
    cause_weight: float = 1.0
    rename_rate: float = 0.5
    evidence: EvidenceConfig = field(
        default_factory=lambda: EvidenceConfig(conversation_rate=1.0, utterance_rate=0.8, text_dropout=0.0)
    )


def train_projector(
    scores: AnswerScores,
    projection: Projection,
    tokenizer: QuestionTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    evidence: EvidenceSource,
    config: ProjectorTrainingConfig,
    out: Path,
    origin: ProjectorOrigin,
    keep: Callable[[EpochReport, DevScores, dict[str, Any]], None],
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
    loop: LoopConfig | None = None,
) -> float:
    """Train the projector, score `dev` with evidence after every epoch, and return the best weighted F1 there.

    scores: the Llama, frozen here; moved to the device of this process, as `projection` is. origin: the weights that
    both are of. tokenizer: with as many soft tokens as the projector makes. The rest as in `train_llama`.
    Raises: as `train_llama`.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    accelerator = start_processes()
    loop = loop or LoopConfig()
    scores.requires_grad_(False).eval().to(accelerator.device)
    projection.to(accelerator.device)
    random = np.random.default_rng(config.seed)
    plan = plan_epochs(
        config.stages,
        corpora,
        lambda some: question_groups(some, tokenizer, config.max_tokens, random),
        random,
        loop.batches_a_step(accelerator),
    )
    projector = projection.projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    weights = class_weights(corpora[config.stages[-1].corpora[0]], config.class_weight_power).to(scores.device)

    def loss(group: Group, random: np.random.Generator) -> Tensor:
        group = [rename_speakers(c, random, config.rename_rate) for c in group]
        tokens, evident = project(projection, group, evidence, random)
        packed, soft = [], []
        for b, one in enumerate(group):
            n = len(one.emotions)
            packed.append(tokenizer.pack(one.conversation.utterances, range(n), evident[b, :n].tolist()))
            soft.append(tokens[b].flatten(0, 1)[torch.from_numpy(packed[-1].soft_of).to(tokens.device)])
        emotion_logits, cause_logits = scores(make_question_batch(packed).to(scores.device), torch.cat(soft))
        return answer_loss(emotion_logits, cause_logits, group, weights, config.label_smoothing, config.cause_weight)

    def score(numbered: Sequence[tuple[int, LabelledConversation]]) -> list[Any]:
        drawn = [drawn_soft_tokens(projection, one, evidence, [config.seed, number]) for number, one in numbered]
        return score_with_llama(scores, tokenizer, [one for _, one in numbered], drawn)

    def evaluate(stage: Stage) -> DevScores:
        del stage
        return dev_scores(in_parts(accelerator, list(enumerate(dev)), score))

    identity = {
        "training": asdict(config),
        "projector": asdict(projector.config),
        "between": asdict(origin),
        "corpora": corpora_digests({**corpora, "dev": dev}),
    }
    learner = Learner(projector, optimizer)
    task = Task(learner, plan, config.seed, config.warmup, loss, evaluate, keep, identity)
    return run_training(task, loop, out, accelerator, on_step, on_epoch)


def project(
    projection: Projection,
    group: Sequence[LabelledConversation],
    evidence: EvidenceSource,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Soft tokens of evidence drawn for a group, see `Projection.forward`."""
    speaker_ids, utterance_mask = speakers_of([one.conversation for one in group])
    emotions = np.full(utterance_mask.shape, IGNORED, np.int64)
    for b, one in enumerate(group):
        emotions[b, : len(one.emotions)] = [EMOTIONS.index(emotion) for emotion in one.emotions]
    drawn, _ = evidence.sample(group, emotions, random)
    device = projection.projector.words.device
    tokens: tuple[Tensor, Tensor] = projection(drawn.to(device), speaker_ids.to(device), utterance_mask.to(device))
    return tokens


def drawn_soft_tokens(
    projection: Projection, one: LabelledConversation, evidence: EvidenceSource, seed: Sequence[int]
) -> SoftTokens:
    """Soft tokens of a conversation for scoring it; the same seed draws the same evidence."""
    with torch.inference_mode():
        tokens, evident = project(projection, [one], evidence, np.random.default_rng(seed))
    return SoftTokens(tokens[0].float().cpu().numpy(), evident[0].cpu().numpy())
