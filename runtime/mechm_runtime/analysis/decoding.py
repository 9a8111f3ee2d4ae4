"""Decoding the recordings of a conversation, utterance by utterance: one recording with times, clips, or a mix.

It asks the decoding process (`media`) and says which utterance a segment belongs to; it knows no encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaReader, Segment
from mechm_runtime.types import Conversation, Utterance

STILL_S = 1.0
"""Seconds that a clip without a duration, a picture, is taken to last."""
PAST_END_S = 0.5
"""Seconds by which an utterance's times may exceed its recording; clocks and encoders round."""
MAX_UTTERANCE_S = 300.0
"""Seconds of one utterance's recording that are decoded and encoded: memory and time grow with them, and a small file
can hold hours. People take turns sooner; what is longer is a recording without a transcript."""
CUT_REASON = f"all after {MAX_UTTERANCE_S:g} s, the longest utterance that is read"
"""Reported for the voice of a longer utterance."""

Decoded = tuple[int, Segment | str]
"""The position of an utterance, and its segment or the reason why it has none."""
ChooseFrames = Callable[[Sequence[float]], int]
"""Called before a file is decoded with the durations of its utterances in seconds; returns the frames to decode of
each."""


def is_cut(segment: Segment) -> bool:
    """Whether a segment ends at `MAX_UTTERANCE_S`."""
    return segment.end_s - segment.start_s > MAX_UTTERANCE_S - 1e-6  # the difference of rounded times


def is_recorded(conversation: Conversation) -> bool:
    """Whether there is any recording of the conversation or of one of its utterances."""
    return conversation.media is not None or any(u.media is not None for u in conversation.utterances)


def decode_conversation(
    conversation: Conversation, reader: MediaReader, choose_frames: ChooseFrames
) -> Generator[Decoded]:
    """Decode the segments of a conversation, each when it is asked for.

    Raises: MediaError: the conversation's own recording cannot be read; a broken clip is a reason instead. InputError:
        an utterance ends after the recording. OutOfTimeError: the request's time limit passed.
    """
    if conversation.media is not None:
        yield from _decode_recording(conversation.utterances, conversation.media, reader, choose_frames)
    for index, u in enumerate(conversation.utterances):
        if u.media is not None:
            yield from _decode_clip(index, u.media, reader, choose_frames)
        elif conversation.media is None:
            yield index, "no clip"


def _decode_recording(
    utterances: Sequence[Utterance], media: Path, reader: MediaReader, choose_frames: ChooseFrames
) -> Iterator[Decoded]:
    """Segments of the utterances that have no clip of their own."""
    duration_s = reader.probe(media).duration_s
    spans, owners = [], []
    for index, u in enumerate(utterances):
        if u.media is not None:
            continue
        if u.start_s is None or u.end_s is None:
            yield index, "the transcript gives no times"
            continue
        if duration_s is not None and u.end_s > duration_s + PAST_END_S:
            raise InputError(
                f"utterance {u.id} ends at {u.end_s:.2f} s, the recording at {duration_s:.2f} s",
                hint="is this the transcript of another recording?",
            )
        spans.append((u.start_s, min(u.end_s, u.start_s + MAX_UTTERANCE_S)))
        owners.append(index)
    n_frames = choose_frames([end_s - start_s for start_s, end_s in spans])
    for position, segment in reader.iter_segments(media, spans, n_frames=n_frames):
        yield owners[position], segment


def _decode_clip(index: int, media: Path, reader: MediaReader, choose_frames: ChooseFrames) -> Iterator[Decoded]:
    """The segment of an utterance's own clip, or the reason why it cannot be read."""
    try:
        duration_s = reader.probe(media).duration_s or STILL_S
        read_s = min(duration_s, MAX_UTTERANCE_S)
        n_frames = choose_frames([read_s])
        for _, segment in reader.iter_segments(media, [(0.0, read_s)], n_frames=n_frames):
            yield index, segment
    except MediaError as error:
        yield index, str(error)
