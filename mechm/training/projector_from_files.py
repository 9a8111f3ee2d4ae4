"""Trains the projector between a trained fusion and a trained Llama from corpora on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechm.data.training_data import TrainingData, TrainingSources, load_training_data
from mechm.llm.projection import Projection
from mechm.llm.scorer import AnswerScores, load_merged
from mechm.llm.stored_projector import PROJECTOR_FOLDER, ProjectorOrigin, save_projector
from mechm.model.build import CARD_FILE, build_network, load_trained, pretrained_folder
from mechm.model.config import ModelConfig, preset_config
from mechm.model.projector import ProjectorConfig, SoftTokenProjector
from mechm.model.transformers_output import quiet_transformers
from mechm.training.card import NO_VOICE, make_card
from mechm.training.checkpoint import discard_checkpoint
from mechm.training.loop import DevScores, EpochReport, Keep, LoopConfig
from mechm.training.modalities import RecordingsConfig, gather_modalities
from mechm.training.presets import text_weights
from mechm.training.projector import ProjectorTrainingConfig, train_projector
from mechm.training.reporter import TrainingReporter
from mechm.training.session import TrainingResult, TrainingSession, training_session
from mechm.training.stages import Stage
from mechm.weights import weights_path
from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.types import LabelledConversation


@dataclass(frozen=True, slots=True)
class ProjectorRunConfig:
    """Files and hyperparameters of a training of the projector.

    adapter: the trained adapter, into whose folder the projector is written. sources: the corpora; `sources.dev`
        selects the epoch that is kept.
    fusion: folder of the trained fusion; None for the weights shipped with the preset. base: the adapter's Llama; None
        for the preset's.
    conversations: train on so many of the target corpus, drawn at random; None for all.
    n_tokens: soft tokens per utterance. The others as in `ProjectorTrainingConfig`; n_threads as in `training_session`.
    """

    adapter: Path
    sources: TrainingSources
    preset: str = "small"
    fusion: Path | None = None
    base: Path | None = None
    recordings: RecordingsConfig = field(default_factory=RecordingsConfig)
    conversations: int | None = None
    n_tokens: int = 2
    epochs: int = 1
    learning_rate: float = 2e-3
    max_tokens: int = 1600
    seed: int = 0
    n_threads: int | None = None
    loop: LoopConfig = field(default_factory=LoopConfig)

    @property
    def out(self) -> Path:
        """Folder that the projector is written into."""
        return self.adapter / PROJECTOR_FOLDER


def train_projector_from_files(
    config: ProjectorRunConfig, reporter: TrainingReporter | None = None
) -> TrainingResult | None:
    """Train soft tokens from the fusion's reading of voices, faces and frames; Llama and fusion stay frozen.

    Returns: the projector's folder and card; None in processes other than the main one, and where the training to
        resume is complete.
    Raises: InputError, MediaError: a corpus cannot be used. WeightsError: weights are missing, do not fit or cannot be
        written, or see `training_session`. TrainingDivergedError: see `train_projector`.
    """
    with training_session(
        config.out, resume=config.loop.resume, n_threads=config.n_threads, reporter=reporter
    ) as session:
        if session.finished:
            return None
        fusion = config.fusion or pretrained_folder(config.preset)
        origin = ProjectorOrigin.of(fusion, config.adapter)
        model = preset_config(config.preset)
        data = load_training_data(config.sources, max_utterances=model.fusion.window)
        corpora = _draw_conversations(data, config)
        order = (data.target, *(name for name in corpora if name != data.target))
        training = ProjectorTrainingConfig(
            (Stage("projector", order, config.epochs),),
            seed=config.seed,
            max_tokens=config.max_tokens,
            learning_rate=config.learning_rate,
        )
        modalities = gather_modalities(
            model, data, config.recordings, training.evidence, session, n_copies=0, seed=config.seed
        )
        for note in (*data.notes, None if modalities.has_voice else NO_VOICE):
            if note is not None:
                session.reporter.note(note)
        scores, projection, tokenizer = _load_models(fusion, model, config)
        card = make_card(
            config.preset,
            corpora,
            modalities.n_recordings,
            training,
            speech=modalities.speech_corpora,
            recorded=None if modalities.recorded is None else modalities.recorded.counts,
        )
        with session.reporter.training() as (on_step, on_epoch):
            train_projector(
                scores,
                projection,
                tokenizer,
                corpora,
                data.dev,
                modalities.source,
                training,
                config.out,
                origin,
                _keep_projector(projection, origin, config.sources.dev.name, card, config.out),
                on_step,
                on_epoch,
                config.loop,
            )
        return _finish(config.out, session)


def _draw_conversations(data: TrainingData, config: ProjectorRunConfig) -> dict[str, tuple[LabelledConversation, ...]]:
    """Return the corpora, the target limited to `config.conversations` drawn at random."""
    corpora = dict(data.corpora)
    if config.conversations is not None:
        target = corpora[data.target]
        drawn = np.random.default_rng(config.seed).permutation(len(target))[: config.conversations]
        corpora[data.target] = tuple(target[index] for index in sorted(drawn.tolist()))
    return corpora


def _load_models(
    fusion: Path, model: ModelConfig, config: ProjectorRunConfig
) -> tuple[AnswerScores, Projection, QuestionTokenizer]:
    """Load the fusion and the merged Llama, and make a new projector between them."""
    network = build_network(model, text_weights(model))
    load_trained(network, fusion)
    folder = weights_path("llm", config.preset) if config.base is None else config.base
    tokenizer = QuestionTokenizer(folder / "tokenizer.json", QuestionConfig(soft_tokens=config.n_tokens))
    with quiet_transformers():
        scores = AnswerScores(load_merged(folder, config.adapter).to(torch.bfloat16), tokenizer)
    words = scores.causal.get_input_embeddings().weight[scores.emotion_answers]
    sizes = ProjectorConfig(config.n_tokens, model.fusion.hidden_size, scores.hidden_size)
    return scores, Projection(network.fusion, model.text.hidden_size, SoftTokenProjector(sizes, words)), tokenizer


def _keep_projector(projection: Projection, origin: ProjectorOrigin, dev: str, card: dict[str, Any], out: Path) -> Keep:
    """Return a function that writes the projector of the best epoch so far."""

    def keep(report: EpochReport, scores: DevScores, record: dict[str, Any]) -> None:
        reached = {"weighted_f1": round(scores.weighted_f1, 4), "emotion_accuracy": round(scores.emotion_accuracy, 4)}
        described = card | {"epoch": report.epoch, "scores": {dev: reached}, "run": record}
        save_projector(projection.projector, origin, described, out)

    return keep


def _finish(out: Path, session: TrainingSession) -> TrainingResult | None:
    """Remove the checkpoint of the finished training."""
    if not session.is_main:
        return None
    card = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))
    discard_checkpoint(out)
    session.reporter.written(out)
    return TrainingResult(out, card)
