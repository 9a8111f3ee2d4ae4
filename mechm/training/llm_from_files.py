"""Trains the Llama's LoRA adapter from corpora on disk: reads them, trains, scores and writes the card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mechm.data.corpora import read_goemotions, read_reccon
from mechm.llm.combination import ADAPTER_FILE
from mechm.llm.scorer import AnswerScores, add_adapter, load_llama, resume_adapter
from mechm.llm.stored_adapter import check_fit, read_adapter
from mechm.llm.stored_base import StoredBase, base_fingerprint, read_base
from mechm.model.build import CARD_FILE
from mechm.model.transformers_output import quiet_transformers
from mechm.training.card import split_scores, unseen_note
from mechm.training.checkpoint import discard_checkpoint
from mechm.training.llm import LlamaTrainingConfig, score_with_llama, train_llama
from mechm.training.llm_adapter import adapter_card, save_adapter
from mechm.training.loop import DevScores, EpochReport, Keep, LoopConfig
from mechm.training.reporter import TrainingReporter
from mechm.training.session import TrainingResult, TrainingSession, training_session
from mechm.training.stages import Stage, balance_emotions
from mechm.weights import weights_path
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.readers import read_labelled
from mechm_runtime.types import LabelledConversation

Splits = Mapping[str, Sequence[LabelledConversation]]


@dataclass(frozen=True, slots=True)
class LlamaRunConfig:
    """Files and hyperparameters of a training of the Llama's adapter.

    train: conversations to train on. dev: selects the epoch that is kept. out: folder for the adapter.
    base: the Llama's weights in the Hugging Face layout; None for the preset's. start: adapter to continue training
        from; None for a new one. reports: further files that are scored at the end.
    goemotions, reccon: folders of corpora for the warm-up; at most `comments` of GoEmotions, balanced over emotions.
    warmup_epochs, epochs: on those two corpora, then on `train`.
    The others as in `LlamaTrainingConfig`; n_threads as in `training_session`.
    """

    train: Path
    dev: Path
    out: Path
    preset: str = "small"
    base: Path | None = None
    start: Path | None = None
    reports: tuple[Path, ...] = ()
    goemotions: Path | None = None
    comments: int = 4000
    reccon: Path | None = None
    warmup_epochs: int = 1
    epochs: int = 3
    learning_rate: float = 5e-4
    max_tokens: int = 1600
    checkpoint_activations: bool = False
    seed: int = 0
    n_threads: int | None = None
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_llama_from_files(config: LlamaRunConfig, reporter: TrainingReporter | None = None) -> TrainingResult | None:
    """Train the Llama's LoRA adapter on the answers it is scored by; keep the epoch that scores best on dev.

    Returns: the adapter's folder and card; None in processes other than the main one, and where the training to resume
        is complete.
    Raises: InputError: a corpus cannot be used. WeightsError: weights are missing, do not fit or cannot be written, or
        see `training_session`. TrainingDivergedError: see `train_llama`.
    """
    with training_session(
        config.out, resume=config.loop.resume, n_threads=config.n_threads, reporter=reporter
    ) as session:
        if session.finished:
            return None
        folder = weights_path("llm", config.preset) if config.base is None else config.base
        tokenizer = QuestionTokenizer(folder / "tokenizer.json")
        dev = config.dev.name
        held_out = {path.name: read_labelled(path) for path in (config.dev, *config.reports)}
        corpora, stages = _read_corpora(config)
        training = LlamaTrainingConfig(
            stages,
            seed=config.seed,
            learning_rate=config.learning_rate,
            max_tokens=config.max_tokens,
            checkpoint_activations=config.checkpoint_activations,
        )
        if note := unseen_note(corpora["ecf"]):
            session.reporter.note(note)
        stored = read_base(folder)
        card = adapter_card(config.preset, corpora, training) | {"base_fingerprint": base_fingerprint(stored)}
        if config.start is not None:
            card["start"] = _describe_start(config.start, stored)
        scores = _load_scores(folder, config, tokenizer)
        with session.reporter.training() as (on_step, on_epoch):
            train_llama(
                scores,
                tokenizer,
                corpora,
                held_out[dev],
                training,
                config.out,
                _keep_adapter(scores, tokenizer, held_out, dev, card, config.out),
                on_step,
                on_epoch,
                config.loop,
            )
        return _finish(config.out, session)


def _read_corpora(config: LlamaRunConfig) -> tuple[dict[str, tuple[LabelledConversation, ...]], tuple[Stage, ...]]:
    """Read the training corpora, and plan a warm-up on those other than the target."""
    corpora = {"ecf": read_labelled(config.train)}
    stages = [Stage("target", ("ecf",), config.epochs)]
    if config.reccon is not None:
        corpora["reccon"] = read_reccon(config.reccon / "dailydialog_train.json")
    if config.goemotions is not None:
        corpora["goemotions"] = balance_emotions(read_goemotions(config.goemotions), config.comments, config.seed)
    if len(corpora) > 1:
        stages.insert(0, Stage("warm-up", tuple(corpora)[1:], config.warmup_epochs))
    return corpora, tuple(stages)


def _describe_start(start: Path, base: StoredBase) -> dict[str, Any]:
    """Check that the adapter to continue from fits the base, and describe it for the card."""
    adapter = read_adapter(start)
    check_fit(adapter, base)
    return {"adapter_sha256": file_sha256(start / ADAPTER_FILE), "card": dict(adapter.card)}


def _load_scores(folder: Path, config: LlamaRunConfig, tokenizer: QuestionTokenizer) -> AnswerScores:
    """Load the Llama with a new adapter, or with the one to continue from."""
    torch.manual_seed(config.seed)  # a new adapter's initial weights are random
    with quiet_transformers():
        llama = load_llama(folder, torch.bfloat16)
        adapted = add_adapter(llama) if config.start is None else resume_adapter(llama, config.start)
        return AnswerScores(adapted, tokenizer)


def _keep_adapter(
    scores: AnswerScores, tokenizer: QuestionTokenizer, held_out: Splits, dev: str, card: dict[str, Any], out: Path
) -> Keep:
    """Return a function that scores all held-out splits and writes the adapter of the best epoch so far."""

    def keep(report: EpochReport, dev_scores: DevScores, record: dict[str, Any]) -> None:
        # The other splits are scored now, while this epoch's weights are loaded; they do not influence the choice.
        scored = {
            name: dev_scores.scored if name == dev else score_with_llama(scores, tokenizer, labelled)
            for name, labelled in held_out.items()
        }
        reached = {
            name: split_scores(labelled, scored[name], dev_scores.decision) for name, labelled in held_out.items()
        }
        described = card | {"stage": report.stage, "epoch": report.epoch, "scores": reached, "run": record}
        save_adapter(scores.llama, dev_scores.decision, described, out)

    return keep


def _finish(out: Path, session: TrainingSession) -> TrainingResult | None:
    """Report the kept adapter's scores and remove the checkpoint."""
    if not session.is_main:
        return None
    card = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))
    for name, found in card["scores"].items():
        session.reporter.scores(name, found, "Llama alone, text only")
    discard_checkpoint(out)
    session.reporter.written(out)
    return TrainingResult(out, card)
