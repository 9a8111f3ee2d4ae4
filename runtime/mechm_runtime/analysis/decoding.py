"""The recordings of a conversation, decoded utterance by utterance: one recording with times, clips, or a mix.

It asks the decoding process (`media`) and says which utterance a segment is of; what is read from it is `senses`' work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.state import Work
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaReader, Segment
from mechm_runtime.types import Conversation, Utterance

STILL_S = 1.0
"""How long a clip is taken to be that has no duration: a picture."""
PAST_END_S = 0.5
"""How far an utterance's times may run past its recording; clocks and encoders round."""


def is_recorded(conversation: Conversation) -> bool:
    """Whether there is any recording of it."""
    return conversation.media is not None or any(u.media is not None for u in conversation.utterances)


def segments(
    conversation: Conversation, reader: MediaReader, senses: Senses, work: Work
) -> Iterator[tuple[int, Segment]]:
    """Decoded segments by utterance position; time spent decoding is counted, that of the consumer is not.

    Raises: MediaError: the conversation's own recording cannot be read; a broken clip is noted in `work` instead.
        InputError: a time is past its end.
    """
    if conversation.media is not None:
        yield from _of_one_recording(conversation.utterances, conversation.media, reader, senses, work)
    for index, u in enumerate(conversation.utterances):
        if u.media is not None:
            yield from _of_a_clip(index, u.media, reader, senses, work)
        elif conversation.media is None:
            senses.note(work, index, ("audio", "video"), "no clip")


def _of_one_recording(
    utterances: Sequence[Utterance], media: Path, reader: MediaReader, senses: Senses, work: Work
) -> Iterator[tuple[int, Segment]]:
    """Segments of the utterances that have no clip of their own."""
    with work.timed("decode"):
        duration_s = reader.probe(media).duration_s
    spans, owners = [], []
    for index, u in enumerate(utterances):
        if u.media is not None:
            continue
        if u.start_s is None or u.end_s is None:
            senses.note(work, index, ("audio", "video"), "the transcript gives no times")
            continue
        if duration_s is not None and u.end_s > duration_s + PAST_END_S:
            raise InputError(
                f"utterance {u.id} ends at {u.end_s:.2f} s, the recording at {duration_s:.2f} s",
                hint="is this the transcript of another recording?",
            )
        spans.append((u.start_s, u.end_s))
        owners.append(index)
    for start_s, end_s in spans:
        _expect(senses, work, end_s - start_s)
    n_frames = _frames_wanted(senses, work)
    for position, segment in _timed(reader.iter_segments(media, spans, n_frames=n_frames), work):
        yield owners[position], segment


def _of_a_clip(
    index: int, media: Path, reader: MediaReader, senses: Senses, work: Work
) -> Iterator[tuple[int, Segment]]:
    """The segment of an utterance's own clip, or nothing but a note where it cannot be read."""
    try:
        with work.timed("decode"):
            duration_s = reader.probe(media).duration_s
        whole = [(0.0, duration_s or STILL_S)]
        _expect(senses, work, whole[0][1])
        n_frames = _frames_wanted(senses, work)
        for _, segment in _timed(reader.iter_segments(media, whole, n_frames=n_frames), work):
            yield index, segment
    except MediaError as error:
        senses.note(work, index, ("audio", "video"), str(error))


def _expect(senses: Senses, work: Work, duration_s: float) -> None:
    """Count on reading so long an utterance."""
    if work.deadline is not None:
        for modality in senses.modalities:
            if modality != "text":
                work.deadline.expect(modality, duration_s if modality == "audio" else senses.n_frames)


def _frames_wanted(senses: Senses, work: Work) -> int:
    """Frames of an utterance that there is time to look at."""
    wanted = [modality for modality in ("scene", "face") if modality in senses.modalities]
    return senses.n_frames if any(not work.left_out(modality) for modality in wanted) else 0


def _timed(decoded: Iterator[tuple[int, Segment]], work: Work) -> Iterator[tuple[int, Segment]]:
    while True:
        with work.timed("decode"):
            item = next(decoded, None)
        if item is None:
            return
        yield item
