"""The conversation that is analysed, cut, lengthened or reduced to its text.

Recordings are never rewritten: an utterance of another length is another span of the same recording, and a longer
conversation repeats its utterances. The computation depends on lengths and shapes, not on who says what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from mechm_runtime.analysis.decoding import is_recorded
from mechm_runtime.errors import InputError
from mechm_runtime.types import Conversation

SAMPLE = Path(__file__).resolve().parents[2] / "sample"
"""The shipped conversation, in a checkout."""


def sample_conversation() -> tuple[Path, Path]:
    """The recording and the transcript of the shipped sample.

    Raises: InputError: mechm was not installed from a checkout, so there is no sample.
    """
    recording, transcript = SAMPLE / "conversation.mp4", SAMPLE / "conversation.srt"
    if not recording.is_file() or not transcript.is_file():
        raise InputError(
            "the sample conversation is not installed with mechm",
            hint="name one: mechm bench talk.mp4 --transcript talk.srt",
        )
    return recording, transcript


def with_length(conversation: Conversation, n_utterances: int) -> Conversation:
    """The first utterances, repeated from the start if there are fewer than wanted; ids from 1."""
    repeated = islice(cycle(conversation.utterances), n_utterances)
    utterances = tuple(replace(utterance, id=number) for number, utterance in enumerate(repeated, 1))
    return replace(conversation, utterances=utterances)


def with_utterance_seconds(conversation: Conversation, seconds: float) -> Conversation:
    """The same words, each utterance `seconds` long; it starts earlier if the recording ends too soon.

    Raises: InputError: the recording is shorter, or the utterances have clips or no times.
    """
    ends = [utterance.end_s for utterance in conversation.utterances if utterance.end_s is not None]
    if conversation.media is None or len(ends) < len(conversation.utterances):
        raise InputError("utterances of another length need one recording and a transcript with times")
    last_s = max(ends)
    if seconds > last_s:
        raise InputError(f"utterances of {seconds:g} s need a longer recording than {last_s:.0f} s")
    starts = (min(utterance.start_s or 0.0, last_s - seconds) for utterance in conversation.utterances)
    utterances = tuple(
        replace(utterance, start_s=start_s, end_s=start_s + seconds)
        for utterance, start_s in zip(conversation.utterances, starts, strict=True)
    )
    return replace(conversation, utterances=utterances)


def text_only(conversation: Conversation) -> Conversation:
    """The conversation without its recording."""
    return replace(conversation, media=None, utterances=tuple(replace(u, media=None) for u in conversation.utterances))


def describe(conversation: Conversation, modalities: Sequence[str]) -> str:
    """The conversation in words: number of utterances, modalities and total length, as results carry it."""
    n = len(conversation.utterances)
    words = f"{n} utterance{'s' * (n != 1)}"
    if not is_recorded(conversation):
        return f"{words}, text"
    words = f"{words}, {', '.join(modalities)}"
    spans = [(u.start_s, u.end_s) for u in conversation.utterances]
    seconds = sum(end - start for start, end in spans if start is not None and end is not None)
    return words + (f" ({seconds:.0f} s)" if seconds else "")
