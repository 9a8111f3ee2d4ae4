"""Collects voices, faces and frames for a training: emotional speech, the corpora's recordings, simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechm.data.corpora import CorpusReport, Problem, SpeechRecording
from mechm.data.simulated_modalities import NonverbalSource, SimulatedModalities, SimulationConfig
from mechm.data.training_data import Recordings, TrainingData, read_recordings
from mechm.model.build import build_audio_encoder
from mechm.model.config import ModelConfig
from mechm.training.reporter import TrainingReporter
from mechm.training.session import TrainingSession
from mechm.training.speech import SpeechFeatures, read_speech, read_speech_corpus, speech_lines
from mechm.weights import weights_path


@dataclass(frozen=True, slots=True)
class RecordingsConfig:
    """Folders and parallelism for reading recordings.

    speech: folder of emotional speech, see `read_speech_corpus`; None without. features: folder for the features of
    recordings; None for one in the cache folder. n_jobs: recordings decoded in parallel.
    """

    speech: Path | None = None
    features: Path | None = None
    n_jobs: int = 1


@dataclass(frozen=True, slots=True)
class TrainingModalities:
    """Inputs beside text for a training.

    source: draws them. recorded: the corpora's own recordings, None where they have none.
    speech: features of emotional speech and its degraded copies, None without; speech_corpora: where they are from.
    """

    source: NonverbalSource
    recorded: Recordings | None
    speech: SpeechFeatures | None
    speech_corpora: tuple[str, ...]

    @property
    def n_recordings(self) -> int:
        """Number of recordings of emotional speech."""
        return 0 if self.speech is None else len(self.speech.emotions)

    @property
    def has_voice(self) -> bool:
        """Whether there is a voice of any kind."""
        return self.speech is not None or (self.recorded is not None and len(self.recorded.table.voices) > 0)


def gather_modalities(
    model: ModelConfig,
    data: TrainingData,
    recordings: RecordingsConfig,
    simulation: SimulationConfig,
    session: TrainingSession,
    *,
    n_copies: int,
    seed: int,
) -> TrainingModalities:
    """Read emotional speech and the corpora's recordings.

    n_copies: degraded copies of each recording of speech.
    Raises: InputError, MediaError: as their readers do.
    """
    corpus = None if recordings.speech is None else read_speech_corpus(recordings.speech)
    speech_corpora = (None if corpus is None else corpus.report.corpus, "AESI" if data.speech else None)
    speech = (*(() if corpus is None else corpus.items), *data.speech)
    features, unusable = _read_speech(speech, model, n_copies, seed, session.reporter) if speech else (None, ())
    if features is not None:
        problems = () if corpus is None else corpus.report.problems
        for line in speech_lines(features, (*problems, *unusable)):
            session.reporter.line(line)
    simulated = SimulatedModalities(model, {} if features is None else features.by_emotion(), simulation)
    with session.reporter.reading_recordings() as on_recording:
        recorded = read_recordings(
            data,
            model,
            simulated,
            folder=recordings.features,
            n_jobs=recordings.n_jobs,
            device=session.accelerator.device,
            progress=on_recording,
        )
    for line in _report_lines(data.reports, recorded):
        session.reporter.line(line)
    return TrainingModalities(
        simulated if recorded is None else recorded.source,
        recorded,
        features,
        tuple(dict.fromkeys(name for name in speech_corpora if name is not None)),
    )


def _report_lines(reports: Sequence[CorpusReport], recorded: Recordings | None) -> list[str]:
    """Describe the corpora that were read, where any of them has recordings."""
    if recorded is None and not any(report.n_media for report in reports):
        return []
    lines = [line for report in reports for line in report.lines()]
    return lines if recorded is None else [*lines, *recorded.lines()]


def _read_speech(
    recordings: Sequence[SpeechRecording], model: ModelConfig, n_copies: int, seed: int, reporter: TrainingReporter
) -> tuple[SpeechFeatures, tuple[Problem, ...]]:
    """Read features of recordings and of degraded copies; also returns the recordings that could not be used."""
    encoder = build_audio_encoder(model, None if model.preset == "tiny" else weights_path("audio", model.preset))
    with reporter.reading_recordings() as on_recording:
        return read_speech(recordings, encoder, n_copies=n_copies, seed=seed, on_recording=on_recording)
