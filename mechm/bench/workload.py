"""What is analysed: a conversation cut to a number of utterances, made longer, slower or silent out of real material.

A recording is never written again: an utterance of another length is another span of the same recording, and a longer
conversation tells its utterances again. What is computed depends on lengths and shapes, not on who says what.
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

    Raises: InputError: this is no checkout, so there is none.
    """
    recording, transcript = SAMPLE / "conversation.mp4", SAMPLE / "conversation.srt"
    if not recording.is_file() or not transcript.is_file():
        raise InputError(
            "the sample conversation is not installed with mechm",
            hint="name one: mechm bench talk.mp4 --transcript talk.srt",
        )
    return recording, transcript


def of_length(conversation: Conversation, n_utterances: int) -> Conversation:
    """The first utterances, told again from the start where there are fewer than wanted; ids from 1."""
    told = islice(cycle(conversation.utterances), n_utterances)
    utterances = tuple(replace(utterance, id=number) for number, utterance in enumerate(told, 1))
    return replace(conversation, utterances=utterances)


def of_seconds(conversation: Conversation, seconds: float) -> Conversation:
    """The same words, each utterance lasting `seconds` of the recording; it starts earlier where that ends too soon.

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


def words_alone(conversation: Conversation) -> Conversation:
    """The same conversation without its recording."""
    return replace(conversation, media=None, utterances=tuple(replace(u, media=None) for u in conversation.utterances))


def describe(conversation: Conversation, modalities: Sequence[str]) -> str:
    """What is analysed, in words: its utterances, what is read of them, and how long they last in all."""
    n = len(conversation.utterances)
    words = f"{n} utterance{'s' * (n != 1)}"
    if not is_recorded(conversation):
        return f"{words}, text"
    words = f"{words}, {', '.join(modalities)}"
    spans = [(u.start_s, u.end_s) for u in conversation.utterances]
    seconds = sum(end - start for start, end in spans if start is not None and end is not None)
    return words + (f" ({seconds:.0f} s)" if seconds else "")
