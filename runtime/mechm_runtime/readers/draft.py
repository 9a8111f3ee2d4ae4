"""A conversation as a format's reader found it, and the checks that turn it into a `Conversation`.

It opens no files and knows no format. Errors name the file and the line or utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mechm_runtime.readers.repair_notes import counted
from mechm_runtime.readers.text_file import Source, quote
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, LabelledConversation, Utterance

MEDIA_TOLERANCE_S = 0.5
"""Seconds that a time may exceed the recording's duration: containers round theirs, and subtitles stay on screen."""

MAX_TIME_S = 1e6
"""The largest time accepted in seconds (11 days), so that a typing error is found before samples are allocated."""

MAX_ID = 10**9
"""The largest utterance id accepted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance as a format's reader found it, before it is checked.

    start_s, end_s: seconds; both or neither.
    clip: the name of the utterance's own clip where the file gives one.
    where: the line or utterance, for error messages.
    """

    id: int
    speaker: str
    text: str | None
    start_s: float | None
    end_s: float | None
    where: str
    clip: str | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation as a format's reader found it.

    episode_times: the rows' times count from the start of a TV episode, not of the conversation.
    emotions: one label per row, None for a row without one; checked against `EMOTIONS`.
    pairs: None where the file has no annotation of pairs; checked against the rows and the emotions.
    notes: what was repaired, a sentence per kind of repair with its count (`Conversation.notes`).
    """

    id: str
    rows: tuple[Row, ...]
    episode_times: bool = False
    emotions: tuple[str | None, ...] | None = None
    pairs: frozenset[GoldPair] | None = None
    notes: tuple[str, ...] = ()


def build_conversation(
    source: Source, draft: Draft, *, media: Path | None = None, media_duration_s: float | None = None
) -> Conversation:
    """Check a draft and convert it to a `Conversation`.

    media: the recording of this conversation; times are then positions in it. Without one, times that count from the
        start of an episode are shifted so that the earliest utterance starts at 0.
    media_duration_s: utterances that run more than `MEDIA_TOLERANCE_S` past it are cut there, and those that start
        past it are left out, with a note, where most of the transcript lies inside of the recording.
    Raises: TranscriptError: no utterances; ids that repeat or decrease; a time that is not finite, is negative or ends
        before it starts; or most of the transcript lies past the end of the recording.
    """
    if not draft.rows:
        raise source.error(f"conversation {draft.id} has no utterances")
    check_ids(source, draft.rows)
    for row in draft.rows:
        _check_times(source, row)
    if media_duration_s is not None:
        draft = _cut(source, draft, media_duration_s)
    origin_s = 0.0
    if draft.episode_times and media is None:
        origin_s = min((row.start_s for row in draft.rows if row.start_s is not None), default=0.0)
    return Conversation(
        draft.id, tuple(_utterance(row, origin_s) for row in draft.rows), media, source.notes + draft.notes
    )


def build_labelled(source: Source, draft: Draft) -> LabelledConversation:
    """Check an annotated draft and convert it to a `LabelledConversation`.

    Raises: TranscriptError: as `build_conversation`. LabelError: an utterance without an emotion, or no annotation of
        pairs (where nothing has a cause, the list of pairs is there and empty).
    """
    conversation = build_conversation(source, draft)
    if draft.pairs is None:
        raise source.label_error(
            f"conversation {draft.id} has no annotated pairs",
            hint='give it "emotion-cause_pairs", [] if there are none',
        )
    emotions: list[str] = []
    for row, emotion in zip(draft.rows, draft.emotions or (None,) * len(draft.rows), strict=True):
        if emotion is None:
            raise source.label_error("no emotion", where=row.where, hint=f"give it one of {', '.join(EMOTIONS)}")
        emotions.append(emotion)
    return LabelledConversation(conversation, tuple(emotions), draft.pairs)


def check_ids(source: Source, rows: Sequence[Row]) -> None:
    """Refuse utterance ids that are out of range, repeat or decrease.

    Raises: TranscriptError: they do.
    """
    previous = 0
    for row in rows:
        if not 1 <= row.id <= MAX_ID:
            raise source.error(
                f"utterance id {quote(row.id)} is not in 1..{MAX_ID}", where=row.where, hint="number utterances from 1"
            )
        if row.id <= previous:
            what = "appears twice" if row.id == previous else f"comes after {previous}"
            raise source.error(
                f"utterance id {row.id} {what}", where=row.where, hint="give utterances unique ids in rising order"
            )
        previous = row.id


def check_unique_ids(source: Source, drafts: Sequence[Draft]) -> None:
    """Refuse a file in which two conversations have the same id.

    Raises: TranscriptError: they have.
    """
    seen: set[str] = set()
    for draft in drafts:
        if draft.id in seen:
            raise source.error(f"conversation {quote(draft.id)} appears twice", hint="give each its own id")
        seen.add(draft.id)


def _check_times(source: Source, row: Row) -> None:
    if row.start_s is None or row.end_s is None:
        return
    for time_s in (row.start_s, row.end_s):
        if not 0 <= time_s <= MAX_TIME_S:  # also false for NaN
            raise source.error(f"time {time_s:g} s is not in 0..{MAX_TIME_S:g} s", where=row.where)
    if row.end_s < row.start_s:
        raise source.error(
            f"ends at {row.end_s:.3f} s, before it starts at {row.start_s:.3f} s",
            where=row.where,
            hint="put the start before the end",
        )


def _cut(source: Source, draft: Draft, duration_s: float) -> Draft:
    """The rows inside of a recording, those that run past its end cut there; a transcriber's last segment often does.

    Raises: TranscriptError: not most of the rows, or not most of their time, lie inside of it.
    """
    timed = [(row.start_s, row.end_s) for row in draft.rows if row.start_s is not None and row.end_s is not None]
    late = [row for row in draft.rows if row.end_s is not None and row.end_s > duration_s + MEDIA_TOLERANCE_S]
    if not late:
        return draft
    n_inside = sum(start_s < duration_s for start_s, _ in timed)
    inside_s = sum(max(0.0, min(end_s, duration_s) - start_s) for start_s, end_s in timed)
    if n_inside * 2 < len(timed) or inside_s * 2 < sum(end_s - start_s for start_s, end_s in timed):
        raise source.error(
            f"ends at {late[0].end_s:.3f} s, past the end of the recording at {duration_s:.3f} s",
            where=late[0].where,
            hint="check that the transcript belongs to this recording",
        )
    late_ids = {row.id for row in late}
    kept = [
        replace(row, end_s=duration_s) if row.id in late_ids else row
        for row in draft.rows
        if row.id not in late_ids or (row.start_s is not None and row.start_s < duration_s)
    ]
    n_left_out = len(draft.rows) - len(kept)
    notes = (
        *counted(
            len(late) - n_left_out,
            "utterance ran past the end of the recording and was cut there",
            "utterances ran past the end of the recording and were cut there",
        ),
        *counted(
            n_left_out,
            "utterance started past the end of the recording and was left out",
            "utterances started past the end of the recording and were left out",
        ),
    )
    return replace(draft, rows=tuple(kept), notes=draft.notes + notes)


def _utterance(row: Row, origin_s: float) -> Utterance:
    def shifted(time_s: float | None) -> float | None:
        # Files give milliseconds: rounding removes the digits below them that the subtraction adds.
        return None if time_s is None else round(time_s - origin_s, 6)

    return Utterance(row.id, row.speaker, row.text or None, shifted(row.start_s), shifted(row.end_s))
