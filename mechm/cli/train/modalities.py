"""Voices, faces and frames for a training, from the options that name them; what was read is said on stderr."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechm.cli.train.recordings import RecordingOptions, recordings_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator

    from mechm.data.corpora import CorpusReport, Problem, SpeechRecording
    from mechm.data.simulated_modalities import EvidenceConfig, EvidenceSource
    from mechm.data.training_data import RecordedEvidence, TrainingData
    from mechm.model.config import ModelConfig
    from mechm.training.speech import SpeechFeatures


@dataclass(frozen=True, slots=True)
class TrainingEvidence:
    """What stands beside the text in training.

    source: where it is drawn from. recorded: what the corpora's own recordings give, None where they have none.
    speech: features of emotional speech and its copies, None without; spoken_in: the corpora that it is of.
    """

    source: EvidenceSource
    recorded: RecordedEvidence | None
    speech: SpeechFeatures | None
    spoken_in: tuple[str, ...]

    @property
    def n_recordings(self) -> int:
        """Recordings of emotional speech."""
        return 0 if self.speech is None else len(self.speech.emotions)

    @property
    def heard(self) -> bool:
        """Whether there is a voice of any kind."""
        return self.speech is not None or (self.recorded is not None and len(self.recorded.table.voices) > 0)


def gather_evidence(
    config: ModelConfig,
    data: TrainingData,
    speech: Path | None,
    recordings: RecordingOptions,
    drawing: EvidenceConfig,
    accelerator: Accelerator,
    *,
    n_copies: int,
    seed: int,
) -> TrainingEvidence:
    """Read emotional speech and the corpora's recordings.

    speech: a folder of recordings, see `read_speech_corpus`. n_copies: degraded copies of each.
    Raises: InputError, MediaError: as their readers do.
    """
    from mechm.data.simulated_modalities import EvidenceSampler
    from mechm.data.training_data import recorded_evidence
    from mechm.training.speech import read_speech_corpus, speech_lines

    main = accelerator.is_main_process
    corpus = None if speech is None else read_speech_corpus(speech)
    spoken_in = (None if corpus is None else corpus.report.corpus, "AESI" if data.speech else None)
    spoken = (*(() if corpus is None else corpus.items), *data.speech)
    features, unusable = _speech(spoken, config, n_copies, seed, shown=main) if spoken else (None, ())
    if features is not None and main:
        absent = () if corpus is None else corpus.report.problems
        for line in speech_lines(features, (*absent, *unusable)):
            click.echo(line, err=True)
    sampler = EvidenceSampler(config, {} if features is None else features.by_emotion(), drawing)
    with recordings_progress(shown=main) as on_recording:
        recorded = recorded_evidence(
            data,
            config,
            sampler,
            folder=recordings.features,
            n_jobs=recordings.n_jobs,
            device=accelerator.device,
            progress=on_recording,
        )
    if main:
        for line in _read_lines(data.reports, recorded):
            click.echo(line, err=True)
    return TrainingEvidence(
        sampler if recorded is None else recorded.source,
        recorded,
        features,
        tuple(dict.fromkeys(name for name in spoken_in if name is not None)),
    )


def _read_lines(reports: Sequence[CorpusReport], recorded: RecordedEvidence | None) -> list[str]:
    """What was read, where there are recordings."""
    if recorded is None and not any(report.n_media for report in reports):
        return []
    lines = [line for report in reports for line in report.lines()]
    return lines if recorded is None else [*lines, *recorded.lines()]


def _speech(
    recordings: Sequence[SpeechRecording], config: ModelConfig, n_copies: int, seed: int, *, shown: bool
) -> tuple[SpeechFeatures, tuple[Problem, ...]]:
    """Features of recordings and of degraded copies, and which recordings are not among them."""
    from mechm.model.build import build_audio_encoder
    from mechm.training.speech import read_speech
    from mechm.weights import weights_path

    encoder = build_audio_encoder(config, None if config.preset == "tiny" else weights_path("audio", config.preset))
    with recordings_progress(shown=shown) as on_recording:
        return read_speech(recordings, encoder, n_copies=n_copies, seed=seed, on_recording=on_recording)
