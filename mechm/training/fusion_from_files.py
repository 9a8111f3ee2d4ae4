"""Trains the text encoder and the fusion from corpora on disk: reads them, trains, scores and writes the card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mechm.data.training_data import Recordings, TrainingData, TrainingSources, load_training_data
from mechm.model.build import CARD_FILE, build_network, load_trained, save_trained
from mechm.model.config import preset_config
from mechm.model.network import Network
from mechm.training.card import NO_VOICE, make_card, split_scores, unseen_note
from mechm.training.checkpoint import discard_checkpoint
from mechm.training.fusion import FusionTrainingConfig, score_conversations, train_fusion
from mechm.training.loop import LoopConfig
from mechm.training.modalities import RecordingsConfig, TrainingModalities, gather_modalities
from mechm.training.presets import text_tokenizer, text_weights
from mechm.training.reporter import TrainingReporter
from mechm.training.session import TrainingResult, TrainingSession, training_session
from mechm.training.speech import N_COPIES, standardise_audio
from mechm.training.stages import Stage, balance_emotions
from mechm.training.voice_head import VoiceConfig, check_speech, fit_voice
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.readers import read_labelled
from mechm_runtime.types import LabelledConversation

Splits = Mapping[str, Sequence[LabelledConversation]]


@dataclass(frozen=True, slots=True)
class FusionRunConfig:
    """Files and hyperparameters of a training of the fusion.

    sources: the corpora; `sources.dev` selects the weights that are kept. reports: further files that are scored at the
        end. out: folder for the weights.
    comments: use at most so many comments of GoEmotions; None for all.
    warmup_epochs, pair_epochs, epochs: on GoEmotions, on all dialogue corpora, and on `sources.train` alone.
    The others as in `FusionTrainingConfig`; n_threads as in `training_session`.
    """

    sources: TrainingSources
    out: Path
    preset: str = "small"
    reports: tuple[Path, ...] = ()
    recordings: RecordingsConfig = field(default_factory=RecordingsConfig)
    comments: int | None = None
    warmup_epochs: int = 1
    pair_epochs: int = 2
    epochs: int = 4
    text_lr: float = 6e-4
    fusion_lr: float = 5e-4
    max_tokens: int = 1400
    seed: int = 0
    n_threads: int | None = None
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_fusion_from_files(config: FusionRunConfig, reporter: TrainingReporter | None = None) -> TrainingResult | None:
    """Train the text encoder, the fusion and both heads; keep the weights that score best on dev.

    Returns: the weights' folder and card; None in processes other than the main one, and where the training to resume
        is complete.
    Raises: InputError, MediaError: a corpus cannot be used. WeightsError: weights are missing or cannot be written, or
        see `training_session`. TrainingDivergedError: see `train_fusion`.
    """
    with training_session(
        config.out, resume=config.loop.resume, n_threads=config.n_threads, reporter=reporter
    ) as session:
        if session.finished:
            return None
        model = preset_config(config.preset)
        weights, tokenizer = text_weights(model), text_tokenizer(model)
        data = load_training_data(config.sources, max_utterances=model.fusion.window)
        corpora = _limit_comments(data.corpora, config)
        dev = config.sources.dev.name
        held_out = {dev: data.dev, **{path.name: read_labelled(path) for path in config.reports}}
        training = FusionTrainingConfig(
            plan_stages(data.target, corpora, config),
            seed=config.seed,
            max_tokens=config.max_tokens,
            text_lr=config.text_lr,
            fusion_lr=config.fusion_lr,
        )
        modalities = gather_modalities(
            model, data, config.recordings, training.evidence, session, n_copies=N_COPIES, seed=config.seed
        )
        if modalities.speech is not None:
            check_speech(modalities.speech)
        _report_notes(session.reporter, data, corpora, modalities)
        recorded = modalities.recorded
        card = make_card(
            config.preset,
            corpora,
            modalities.n_recordings,
            training,
            speech=modalities.speech_corpora,
            recorded=None if recorded is None else recorded.counts,
        )
        network = build_network(model, weights, seed=config.seed)
        card |= prepare_voice(network, modalities)
        with session.reporter.training() as (on_step, on_epoch):
            train_fusion(
                network,
                tokenizer,
                corpora,
                data.dev,
                modalities.source,
                training,
                config.out,
                card,
                on_step,
                on_epoch,
                config.loop,
                None if recorded is None else recorded.source,
            )
        return _score_and_finish(network, tokenizer, held_out, dev, recorded, config.out, session)


def plan_stages(target: str, corpora: Splits, config: FusionRunConfig) -> tuple[Stage, ...]:
    """Order the corpora: single comments first, then all dialogues, at last the target corpus alone."""
    stages = [Stage("target", (target,), config.epochs)]
    dialogues = tuple(name for name in ("reccon", "semaine") if name in corpora)
    if dialogues and config.pair_epochs:
        stages.insert(0, Stage("pairs", (target, *dialogues), config.pair_epochs))
    if "goemotions" in corpora and config.warmup_epochs:
        stages.insert(0, Stage("warm-up", ("goemotions",), config.warmup_epochs))
    return tuple(stages)


def prepare_voice(network: Network, modalities: TrainingModalities) -> dict[str, Any]:
    """Fit the voice head on emotional speech, or standardise the audio tokens on the corpora's own voices.

    Returns: the card's entries about the voice head.
    """
    fusion, recorded = network.fusion, modalities.recorded
    own_voices = None if recorded is None or not len(recorded.table.voices) else recorded.table.voices
    if modalities.speech is not None:
        voice = VoiceConfig()
        temperature = fit_voice(fusion, modalities.speech, voice)
        # Speech of other texts is for the voice head alone; voices of the texts themselves are worth attending to.
        fusion.audio_attended.fill_(own_voices is not None)
        return {"voice": {**asdict(voice), "temperature": temperature}}
    if own_voices is not None:
        standardise_audio(fusion, {"recordings": own_voices})
    return {}


def _limit_comments(
    corpora: Mapping[str, tuple[LabelledConversation, ...]], config: FusionRunConfig
) -> dict[str, tuple[LabelledConversation, ...]]:
    limited = dict(corpora)
    if "goemotions" in limited and config.comments is not None:
        limited["goemotions"] = balance_emotions(limited["goemotions"], config.comments, config.seed)
    return limited


def _report_notes(
    reporter: TrainingReporter, data: TrainingData, corpora: Splits, modalities: TrainingModalities
) -> None:
    for note in (*data.notes, None if modalities.has_voice else NO_VOICE, unseen_note(corpora[data.target])):
        if note is not None:
            reporter.note(note)


def _score_and_finish(
    network: Network,
    tokenizer: ConversationTokenizer,
    held_out: Splits,
    dev: str,
    recorded: Recordings | None,
    out: Path,
    session: TrainingSession,
) -> TrainingResult | None:
    """Score the weights that were kept, write the scores into their card and remove the checkpoint."""
    if not session.is_main:
        return None
    reporter = session.reporter
    decision = load_trained(network, out)
    card = json.loads((out / CARD_FILE).read_text(encoding="utf-8"))
    for name, labelled in held_out.items():
        card["scores"][name] = split_scores(labelled, score_conversations(network, tokenizer, labelled), decision)
        reporter.scores(name, card["scores"][name], "text only")
    if recorded is not None:
        scored = score_conversations(network, tokenizer, held_out[dev], recorded.source)
        found = split_scores(held_out[dev], scored, decision, "text, audio, face, scene")
        card["scores"][f"{dev}, recordings"] = found
        reporter.scores(dev, found, "text and recordings")
        if n_unusable := len(recorded.table.problems):
            reporter.line(f"{n_unusable} recordings could not be used, see above")
    save_trained(network, decision, card, out)
    discard_checkpoint(out)
    reporter.written(out)
    return TrainingResult(out, card)
