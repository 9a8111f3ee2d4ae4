"""Inputs and results of the pipeline: frozen dataclasses shared by training, export and runtime.

It does not read or write files (`readers`, `writers`) and does not know about models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mechm_runtime.errors import LabelError, TranscriptError

EMOTIONS: tuple[str, ...] = ("neutral", "anger", "disgust", "fear", "joy", "sadness", "surprise")
"""The label set, in the order of ECF (NUSTM/MECPE); index 0 is neutral."""

MODALITIES: tuple[str, ...] = ("text", "audio", "face", "scene")
"""Sources that an utterance's emotion is read from: its words, its voice, the faces in its frames, whole frames."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One turn of a conversation.

    id: from 1, unique and rising inside a conversation.
    text: None where the words are not known (audio only); an empty string counts as None for the model.
    start_s, end_s: seconds from the start of the conversation's recording, None where unknown.
    media: a clip of this utterance alone, where there is one.
    """

    id: int
    speaker: str = ""
    text: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    media: Path | None = None

    def __post_init__(self) -> None:
        if self.id < 1:
            raise TranscriptError(f"utterance id {self.id} is below 1", hint="number utterances from 1")
        if self.start_s is not None and self.end_s is not None and self.end_s < self.start_s:
            raise TranscriptError(
                f"utterance {self.id} ends at {self.end_s:.3f} s, before it starts at {self.start_s:.3f} s"
            )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Utterances in order, and the recording they come from, where there is one.

    notes: what a reader repaired in the file, a sentence per kind of repair with its count; see `Analysis.notes`.

    Raises: TranscriptError: no utterances, or their ids are not rising.
    """

    id: str
    utterances: tuple[Utterance, ...]
    media: Path | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.utterances:
            raise TranscriptError(f"conversation {self.id} has no utterances")
        previous = 0
        for utterance in self.utterances:
            if utterance.id <= previous:
                what = "appears twice" if utterance.id == previous else f"comes after {previous}"
                raise TranscriptError(
                    f"conversation {self.id}: utterance id {utterance.id} {what}",
                    hint="give utterances unique ids in rising order",
                )
            previous = utterance.id


@dataclass(frozen=True, slots=True, order=True)
class GoldPair:
    """An annotated pair: utterance `emotion_utterance` carries `emotion`, and `cause_utterance` caused it."""

    emotion_utterance: int
    emotion: str
    cause_utterance: int


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """A conversation with its annotation.

    emotions: one label of `EMOTIONS` per utterance, in the order of the utterances.
    pairs: every annotated pair; both ends are ids of this conversation.

    Raises: LabelError: an unknown emotion, another number of emotions than utterances, or a pair that points nowhere.
    """

    conversation: Conversation
    emotions: tuple[str, ...]
    pairs: frozenset[GoldPair]

    def __post_init__(self) -> None:
        name = self.conversation.id
        if len(self.emotions) != len(self.conversation.utterances):
            raise LabelError(
                f"conversation {name}: {len(self.emotions)} emotions for {len(self.conversation.utterances)} utterances"
            )
        for emotion in (*self.emotions, *(pair.emotion for pair in self.pairs)):
            if emotion not in EMOTIONS:
                raise LabelError(
                    f"conversation {name}: unknown emotion {emotion!r}", hint=f"use one of {', '.join(EMOTIONS)}"
                )
        ids = {utterance.id for utterance in self.conversation.utterances}
        for pair in self.pairs:
            for end in (pair.emotion_utterance, pair.cause_utterance):
                if end not in ids:
                    raise LabelError(f"conversation {name}: a pair names utterance {end}, which does not exist")


@dataclass(frozen=True, slots=True)
class UtteranceAnalysis:
    """The result for one utterance.

    probabilities: label -> calibrated probability, summing to 1.
    emotion: the decided label, or None where the pipeline abstains.
    modalities: those of `MODALITIES` that were used.
    missing: modality -> the reason why it, or a part of it, was not used, for those that were expected.
    """

    id: int
    speaker: str
    text: str | None
    start_s: float | None
    end_s: float | None
    emotion: str | None
    probabilities: Mapping[str, float]
    modalities: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """An emotion-cause pair with its calibrated probability in [0, 1]."""

    emotion_utterance: int
    emotion: str
    cause_utterance: int
    probability: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result for one conversation.

    timings_ms: stage -> wall-clock milliseconds.
    bundle_id: the id in `bundle.json`, of the weights that were used.
    notes: repairs of the input, a sentence per kind with its count ("2 cues were sorted by their start"), in the order
        in which they were made. They name counts and fields, never words or names.
    late_ms: milliseconds after the deadline; 0 in time, and without a deadline. Not compared: it is no part of the
        answer.
    """

    conversation_id: str
    utterances: tuple[UtteranceAnalysis, ...]
    pairs: tuple[Pair, ...]
    timings_ms: Mapping[str, float]
    bundle_id: str
    notes: tuple[str, ...] = ()
    late_ms: float = field(default=0.0, compare=False)

    def causes_of(self, utterance_id: int) -> tuple[Pair, ...]:
        """The pairs whose emotion utterance is `utterance_id`, in the order of their causes."""
        return tuple(pair for pair in self.pairs if pair.emotion_utterance == utterance_id)

    def to_json(self, *, indent: int | None = None) -> str:
        """This analysis as JSON text with the field names of the dataclasses."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)
