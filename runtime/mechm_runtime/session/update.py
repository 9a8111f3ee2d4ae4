"""What an utterance changes in a conversation that goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mechm_runtime.types import Pair, UtteranceAnalysis


@dataclass(frozen=True, slots=True)
class Revision:
    """An earlier utterance of which a later one changed the emotion or the causes.

    utterance, pairs: what is found of it now, and its causes. previous_emotion, previous_causes: what was said of it
    before, the causes as ids of utterances.
    """

    utterance: UtteranceAnalysis
    pairs: tuple[Pair, ...]
    previous_emotion: str | None
    previous_causes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """The answer to a new utterance.

    utterance, pairs: what was found of it, and its causes. revisions: earlier utterances that it changed, in order.
    timings_ms: stage -> wall-clock milliseconds. bundle_id: which weights answered.
    """

    utterance: UtteranceAnalysis
    pairs: tuple[Pair, ...]
    revisions: tuple[Revision, ...]
    timings_ms: Mapping[str, float]
    bundle_id: str

    def to_json(self, *, indent: int | None = None) -> str:
        """This update as JSON text with the field names of the dataclasses."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)
