"""Trains the projector, which makes soft tokens for the Llama out of the fusion's states; both of these stay frozen.

The Llama's answers to text alone therefore do not change. Modalities are attached to annotated conversations as for the
fusion (`mechm.data.simulated_modalities`) and are wrong more often than not, so that the text teaches how far to trust
them. `test` is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mechm.data.simulated_modalities import NonverbalSource, SimulationConfig
from mechm.llm.projection import Projection, speakers_of
from mechm.llm.scorer import AnswerScores, make_question_batch
from mechm.llm.stored_projector import ProjectorOrigin
from mechm.model.inputs import IGNORED
from mechm.training.calibration import ScoredConversation
from mechm.training.checkpoint import Learner, corpora_digests
from mechm.training.distributed import map_over_processes, start_processes
from mechm.training.fusion import dev_scores
from mechm.training.llm import answer_loss, plan_questions, score_with_llama
from mechm.training.loop import DevScores, Keep, LoopConfig, OnEpoch, OnStep, Task, run_training
from mechm.training.losses import class_weights
from mechm.training.speakers import rename_speakers
from mechm.training.stages import Group, Stage, check_corpora
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import SoftTokens
from mechm_runtime.types import EMOTIONS, LabelledConversation


@dataclass(frozen=True, slots=True)
class ProjectorTrainingConfig:
    """Hyperparameters, saved in the projector's card; as in `LlamaTrainingConfig` where they have the same name.

    evidence: how modalities are simulated; every conversation has some, so that no step is spent on text alone.
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
    evidence: SimulationConfig = field(
        default_factory=lambda: SimulationConfig(conversation_rate=1.0, utterance_rate=0.8, text_dropout=0.0)
    )


def train_projector(
    scores: AnswerScores,
    projection: Projection,
    tokenizer: QuestionTokenizer,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    dev: Sequence[LabelledConversation],
    nonverbal: NonverbalSource,
    config: ProjectorTrainingConfig,
    out: Path,
    origin: ProjectorOrigin,
    keep: Keep,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    loop: LoopConfig | None = None,
) -> float:
    """Train the projector, score `dev` with its modalities after every epoch, and return the best weighted F1 there.

    scores: the Llama, frozen here and moved to the device of this process, as is `projection`. origin: identifies the
    weights of both. tokenizer: with as many soft tokens per utterance as the projector makes. nonverbal: voices, faces
    and frames. The rest as in `train_llama`.
    Raises: as `train_llama`.
    """
    check_corpora(config.stages, {**corpora, "dev": dev}, "dev")
    accelerator = start_processes()
    loop = loop or LoopConfig()
    scores.requires_grad_(False).eval().to(accelerator.device)
    projection.to(accelerator.device)
    plan = plan_questions(
        config.stages,
        corpora,
        tokenizer,
        max_tokens=config.max_tokens,
        seed=config.seed,
        batches_per_step=loop.batches_per_step(accelerator),
    )
    projector = projection.projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    weights = class_weights(corpora[config.stages[-1].corpora[0]], config.class_weight_power).to(scores.device)

    def loss(group: Group, random: np.random.Generator) -> Tensor:
        renamed = [rename_speakers(c, random, config.rename_rate) for c in group]
        tokens, has_nonverbal = project(projection, renamed, nonverbal, random)
        emotion_logits, cause_logits = _answer(scores, tokenizer, renamed, tokens, has_nonverbal)
        return answer_loss(emotion_logits, cause_logits, renamed, weights, config.label_smoothing, config.cause_weight)

    def score(numbered: Sequence[tuple[int, LabelledConversation]]) -> list[ScoredConversation]:
        drawn = [drawn_soft_tokens(projection, one, nonverbal, [config.seed, number]) for number, one in numbered]
        return score_with_llama(scores, tokenizer, [one for _, one in numbered], drawn)

    def evaluate(_stage: Stage) -> DevScores:
        return dev_scores(map_over_processes(accelerator, list(enumerate(dev)), score))

    identity = {
        "training": asdict(config),
        "projector": asdict(projector.config),
        "between": asdict(origin),
        "corpora": corpora_digests({**corpora, "dev": dev}),
    }
    task = Task(Learner(projector, optimizer), plan, config.seed, config.warmup, loss, evaluate, keep, identity)
    return run_training(task, loop, out, accelerator, on_step, on_epoch)


def _answer(
    scores: AnswerScores,
    tokenizer: QuestionTokenizer,
    group: Sequence[LabelledConversation],
    tokens: Tensor,
    has_nonverbal: Tensor,
) -> tuple[Tensor, Tensor]:
    """Ask the Llama about every utterance of a group, with soft tokens; see `Projection.forward` for the last two.

    Returns: float32 logits of emotions and causes, as `AnswerScores.forward`.
    """
    packed, soft = [], []
    for b, one in enumerate(group):
        n = len(one.emotions)
        packed.append(tokenizer.pack(one.conversation.utterances, range(n), has_nonverbal[b, :n].tolist()))
        soft.append(tokens[b].flatten(0, 1)[torch.from_numpy(packed[-1].soft_of).to(tokens.device)])
    logits: tuple[Tensor, Tensor] = scores(make_question_batch(packed).to(scores.device), torch.cat(soft))
    return logits


def project(
    projection: Projection,
    group: Sequence[LabelledConversation],
    nonverbal: NonverbalSource,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw modalities for a group and project them to soft tokens; returns as `Projection.forward`."""
    speaker_ids, utterance_mask = speakers_of([one.conversation for one in group])
    emotions = np.full(utterance_mask.shape, IGNORED, np.int64)
    for b, one in enumerate(group):
        emotions[b, : len(one.emotions)] = [EMOTIONS.index(emotion) for emotion in one.emotions]
    drawn, _ = nonverbal.sample(group, emotions, random)
    device = projection.projector.words.device
    tokens: tuple[Tensor, Tensor] = projection(drawn.to(device), speaker_ids.to(device), utterance_mask.to(device))
    return tokens


def drawn_soft_tokens(
    projection: Projection, one: LabelledConversation, nonverbal: NonverbalSource, seed: Sequence[int]
) -> SoftTokens:
    """Make soft tokens for scoring a conversation; the same seed draws the same modalities."""
    with torch.inference_mode():
        tokens, has_nonverbal = project(projection, [one], nonverbal, np.random.default_rng(seed))
    return SoftTokens(tokens[0].float().cpu().numpy(), has_nonverbal[0].cpu().numpy())
