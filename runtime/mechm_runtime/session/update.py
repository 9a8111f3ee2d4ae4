"""Results of a session: the analysis of a new utterance, and the earlier results that it changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mechm_runtime.types import Pair, UtteranceAnalysis


@dataclass(frozen=True, slots=True)
class Revision:
    """An earlier utterance whose emotion or causes were changed by a later one.

    utterance, pairs: its result and its causes now. previous_emotion, previous_causes: those that were reported before,
    the causes as ids of utterances.
    """

    utterance: UtteranceAnalysis
    pairs: tuple[Pair, ...]
    previous_emotion: str | None
    previous_causes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """The result of a new utterance.

    utterance, pairs: its result and its causes. revisions: earlier utterances that it changed, in order.
    timings_ms: stage -> wall-clock milliseconds. bundle_id: of the bundle that was used. late_ms: milliseconds after
    the deadline; 0 in time, and without a deadline. Not compared: it is no part of the answer.
    """

    utterance: UtteranceAnalysis
    pairs: tuple[Pair, ...]
    revisions: tuple[Revision, ...]
    timings_ms: Mapping[str, float]
    bundle_id: str
    late_ms: float = field(default=0.0, compare=False)

    def to_json(self, *, indent: int | None = None) -> str:
        """This update as JSON text with the field names of the dataclasses."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent)
