"""Reads and combines the data for training the fusion: corpora, their recordings and emotional speech.

A file's corpus is recognised by its name and content, see `read_annotated`. Reading the corpora is quick; extracting
the features of recordings (`read_recordings`) takes hours for ten thousand clips, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mechm.data.corpora import (
    Corpus,
    CorpusReport,
    SemaineConfig,
    SpeechRecording,
    read_aesi,
    read_ecf,
    read_goemotions,
    read_meld,
    read_reccon,
    read_semaine,
)
from mechm.data.feature_extraction import FeatureExtractor, Span, span_of
from mechm.data.feature_store import FeatureTable, read_features
from mechm.data.recorded_modalities import ModalityDropoutConfig, RecordedModalities
from mechm.data.simulated_modalities import NonverbalSource
from mechm.data.splitting import split_long
from mechm.model.config import ModelConfig
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.system.cache_dir import cache_dir
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.types import LabelledConversation

MELD_TABLE = "_sent_emo.csv"


@dataclass(frozen=True, slots=True)
class TrainingSources:
    """Paths of the training data; see `mechm.data.corpora` for the layouts.

    train, dev: see `read_annotated`. clips: the folder with the clips of both. names_file: see `read_ecf`.
    goemotions, reccon, semaine, aesi: folders of further corpora. semaine_labels: None for the defaults.
    """

    train: Path
    dev: Path
    clips: Path | None = None
    names_file: Path | None = None
    goemotions: Path | None = None
    reccon: Path | None = None
    semaine: Path | None = None
    semaine_labels: SemaineConfig | None = None
    aesi: Path | None = None

    def __post_init__(self) -> None:
        """Raises: InputError: an option is given without the one that it depends on."""
        if self.names_file is not None and self.clips is None:
            raise InputError("--clip-names without --clips", hint="give the folder with the clips: --clips DIR")
        if self.semaine_labels is not None and self.semaine is None:
            raise InputError("labels for SEMAINE without SEMAINE", hint="give its folder: --semaine DIR")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Corpora read for a training.

    target: name of the corpus in `train`: `meld`, or `ecf` for everything in ECF's layouts.
    corpora: the target and the other corpora by name, in conversations no longer than the fusion's window.
    dev: conversations of any length. speech: recordings with an emotion and without a conversation. reports: one per
    corpus. notes: remarks for the user, one line each.
    """

    target: str
    corpora: Mapping[str, tuple[LabelledConversation, ...]]
    dev: tuple[LabelledConversation, ...]
    speech: tuple[SpeechRecording, ...]
    reports: tuple[CorpusReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def spans(self) -> tuple[Span, ...]:
        """Spans of the recorded utterances of the corpora and of `dev`."""
        return tuple(dict.fromkeys(_spans(one for some in (*self.corpora.values(), self.dev) for one in some)))


def read_annotated(
    path: Path, *, clips: Path | None = None, names_file: Path | None = None
) -> Corpus[LabelledConversation]:
    """Read a file of annotated conversations, with their clips where `clips` is given.

    path: a table of MELD (`train_sent_emo.csv`, `dev_sent_emo.csv`, `test_sent_emo.csv`), ECF / SemEval JSON or MECPE
        text.
    Raises: InputError: as the corpus's reader; a table with another name; or a names file for a table of MELD, whose
        clips are named by MELD itself.
    """
    if path.suffix.lower() != ".csv":
        return read_ecf(path, clips=clips, names_file=names_file)
    if not path.name.endswith(MELD_TABLE):
        raise InputError(
            f"{path.name}: a table that is none of MELD's",
            hint=f"MELD's are called train{MELD_TABLE}, dev{MELD_TABLE} and test{MELD_TABLE}",
        )
    if names_file is not None:
        raise InputError(f"{path.name}: MELD's clips need no --clip-names", hint="leave it out")
    return read_meld(path.parent, path.name.removesuffix(MELD_TABLE), clips=clips)


def load_training_data(sources: TrainingSources, *, max_utterances: int) -> TrainingData:
    """Read all corpora; recordings are located but not decoded.

    max_utterances: longer conversations of the corpora are split into pieces (`split_long`).
    Raises: InputError: a corpus cannot be read; `dev` has no pairs to select weights by; or one clip belongs to
        different utterances of `train` and `dev`.
    """
    notes: list[str] = []
    train = read_annotated(sources.train, clips=sources.clips, names_file=sources.names_file)
    try:
        dev = read_annotated(sources.dev, clips=sources.clips, names_file=sources.names_file)
    except MediaError as error:  # the clips of the training part alone are still useful
        dev = read_annotated(sources.dev)
        notes.append(f"{sources.dev.name} is scored on its text alone: {error}")
    if not any(one.pairs for one in dev.items):
        raise InputError(
            f"{sources.dev.name}: no annotated causes, and the weights that find them best are kept",
            hint="give conversations with causes to --dev, such as ECF's",
        )
    _check_distinct_clips(train.items, dev.items, sources)
    target = "meld" if sources.train.name.endswith(MELD_TABLE) else "ecf"
    read: dict[str, tuple[LabelledConversation, ...]] = {target: train.items}
    reports = [train.report, dev.report]
    if sources.reccon is not None:
        read["reccon"] = read_reccon(sources.reccon / "dailydialog_train.json")
    if sources.semaine is not None:
        semaine = read_semaine(sources.semaine, config=sources.semaine_labels)
        read["semaine"] = semaine.items
        reports.append(semaine.report)
    if sources.goemotions is not None:
        read["goemotions"] = read_goemotions(sources.goemotions)
    speech: tuple[SpeechRecording, ...] = ()
    if sources.aesi is not None:
        aesi = read_aesi(sources.aesi)
        speech = aesi.items
        reports.append(aesi.report)
    notes += _shared_note(train.items, dev.items, sources)
    if not any(one.pairs for some in read.values() for one in some):
        notes.append(f"{sources.train.name} has no annotated causes: emotions are learnt, causes are not")
    corpora: dict[str, tuple[LabelledConversation, ...]] = {}
    for name, conversations in read.items():
        pieces = split_long(conversations, max_utterances)
        corpora[name] = pieces.conversations
        if pieces.n_split:
            notes.append(
                f"{name}: {pieces.n_split} conversations of more than {max_utterances} utterances are learnt in pieces"
                + (f", {pieces.n_crossing} pairs across pieces are not" if pieces.n_crossing else "")
            )
    return TrainingData(target, corpora, dev.items, speech, tuple(reports), tuple(notes))


@dataclass(frozen=True, slots=True)
class Recordings:
    """Modalities read from the recordings of the corpora.

    source: draws inputs for training; its `of` returns those for scoring. table: features, and unusable recordings.
    counts: `audio`, `face` and `scene` -> utterances of the corpora, without dev, whose recording contains it.
    """

    source: RecordedModalities
    table: FeatureTable
    counts: Mapping[str, int]

    def lines(self, *, max_problems: int = 10) -> tuple[str, ...]:
        """Describe how many recordings were usable, and the first problems, one line each."""
        n_usable, problems = len(self.table.row_of), self.table.problems
        return CorpusReport("recordings", n_usable + len(problems), n_usable, problems).lines(max_problems=max_problems)


def read_recordings(
    data: TrainingData,
    model: ModelConfig,
    fallback: NonverbalSource,
    *,
    config: ModalityDropoutConfig | None = None,
    folder: Path | None = None,
    n_jobs: int = 1,
    device: torch.device | None = None,
    progress: StageProgress | None = None,
) -> Recordings | None:
    """Read the recordings of the corpora and of dev; None where there are none.

    fallback: source for conversations without recordings. config: None for the defaults.
    folder: stores the features; None for one in the cache folder, named by preset and encoders.
    n_jobs: recordings decoded in parallel. device: of the encoders, None for the CPU.
    progress: called with the utterances done and their total.
    Raises: as `FeatureExtractor.from_preset` and `read_features`.
    """
    spans = data.spans
    if not spans:
        return None
    extractor = FeatureExtractor.from_preset(model, device)
    folder = folder or cache_dir() / "features" / f"{model.preset}-{extractor.fingerprint}"
    table = read_features(spans, extractor, folder, n_jobs=n_jobs, progress=progress)
    # A recording that several utterances share counts for each.
    found = (table.row_of.get(span) for span in _spans(one for some in data.corpora.values() for one in some))
    rows = [row for row in found if row is not None]
    counts = {
        name: int(table.arrays[f"{name}_mask"][rows].reshape(len(rows), -1).any(1).sum()) if rows else 0
        for name in ("audio", "face", "scene")
    }
    return Recordings(RecordedModalities(model, table, config or ModalityDropoutConfig(), fallback), table, counts)


def _spans(conversations: Iterable[LabelledConversation]) -> Iterator[Span]:
    for one in conversations:
        for utterance in one.conversation.utterances:
            span = span_of(one.conversation, utterance)
            if span is not None:
                yield span


def _check_distinct_clips(
    train: Iterable[LabelledConversation], dev: Iterable[LabelledConversation], sources: TrainingSources
) -> None:
    """Refuse clips that match different utterances of both files: `dia1utt1.mp4` is found by numbers only.

    Raises: InputError: there is such a clip.
    """
    text_of = {u.media: u.text for one in train for u in one.conversation.utterances if u.media is not None}
    for one in dev:
        for utterance in one.conversation.utterances:
            if utterance.media is not None and text_of.get(utterance.media, utterance.text) != utterance.text:
                raise InputError(
                    f"{utterance.media.name} would be the clip of different utterances in {sources.train.name} "
                    f"and {sources.dev.name}",
                    hint="give the conversations of both files ids of their own, and name the clips after them",
                )


def _shared_note(
    train: Iterable[LabelledConversation], dev: Iterable[LabelledConversation], sources: TrainingSources
) -> list[str]:
    """Return a note where conversations of dev are also in train."""

    def content(one: LabelledConversation) -> tuple[tuple[str, str | None, Path | None], ...]:
        return tuple((u.speaker, u.text, u.media) for u in one.conversation.utterances)

    trained = {content(one) for one in train}
    n_shared = sum(content(one) in trained for one in dev)
    if not n_shared:
        return []
    return [f"{n_shared} conversations of {sources.dev.name} are in {sources.train.name} too: their scores say nothing"]
