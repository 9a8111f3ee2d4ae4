"""From a file to checked conversations: what every reader shares.

It caps the bytes before reading, decodes them, cleans text, and turns the rows that a format's reader found into a
`Conversation`, with errors that name the file and the line or utterance. It knows no format, and it never puts more
of the transcript into a message than a short quoted token.
"""

from __future__ import annotations

import codecs
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mechm_runtime.errors import LabelError, TranscriptError
from mechm_runtime.types import EMOTIONS, Conversation, GoldPair, LabelledConversation, Utterance

DEFAULT_MAX_BYTES = 32 * 2**20
"""Larger transcripts are refused unread. All of ECF is 1.6 MB; parsed JSON takes about ten times its size in memory."""

MEDIA_TOLERANCE_S = 0.5
"""How far a time may run past the recording: containers round their duration, and subtitles linger."""

MAX_TIME_S = 1e6
"""The largest time accepted (11 days), so that a typing error is found here and not when samples are allocated."""

MAX_ID = 10**9
"""The largest utterance id accepted."""

_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_QUOTED_CHARACTERS = 24


def quote(token: object) -> str:
    """A token from the file, quoted for a message, escaped and at most 24 characters long."""
    text = str(token)
    return ascii(text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 3] + "...")


def clean_text(text: str) -> str:
    """`text` with control characters and line breaks as spaces, and white space runs as one space.

    Control characters go because they would reach terminals (escape sequences) and no tokenizer knows them.
    """
    return " ".join(text.translate(_CONTROLS).split())


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded file, and its path for messages."""

    path: Path
    text: str

    def lines(self) -> list[str]:
        """The lines, without their ends; index 0 is line 1. Only CR, LF and CRLF end a line."""
        return _LINE_END.split(self.text)

    def error(self, message: str, *, where: str = "", hint: str = "") -> TranscriptError:
        """A TranscriptError that names the file and the place."""
        return TranscriptError(self._placed(message, where), hint=hint)

    def label_error(self, message: str, *, where: str = "", hint: str = "") -> LabelError:
        """A LabelError that names the file and the place."""
        return LabelError(self._placed(message, where), hint=hint)

    def check_emotion(self, emotion: str, *, where: str) -> str:
        """`emotion` itself, if it is one of `EMOTIONS`.

        Raises: LabelError: it is not.
        """
        if emotion not in EMOTIONS:
            raise self.label_error(
                f"unknown emotion {quote(emotion)}", where=where, hint=f"use one of {', '.join(EMOTIONS)}"
            )
        return emotion

    def check_unicode(self, text: str, *, where: str) -> str:
        """`text` itself, if it can be written as UTF-8.

        Raises: TranscriptError: it holds half of a surrogate pair, which JSON can write and UTF-8 cannot.
        """
        if _SURROGATES.search(text):
            raise self.error("half of a surrogate pair is no character", where=where)
        return text

    def _placed(self, message: str, where: str) -> str:
        return f"{self.path.name}, {where}: {message}" if where else f"{self.path.name}: {message}"


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance as a format's reader found it, before it is checked.

    start_s, end_s: seconds; both or neither.
    clip: the name of the utterance's own clip where the file gives one.
    where: the line or utterance, for messages.
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

    episode_times: the rows' times count from the start of something longer (a TV episode), not of the conversation.
    emotions: a label per row, None for a row without one; checked against `EMOTIONS`.
    pairs: None where the file has no annotation of pairs; checked against the rows and the emotions.
    """

    id: str
    rows: tuple[Row, ...]
    episode_times: bool = False
    emotions: tuple[str | None, ...] | None = None
    pairs: frozenset[GoldPair] | None = None


def read_source(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Source:
    """Read and decode a text file: UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises: TranscriptError: not a readable regular file, more than `max_bytes`, or not such text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TranscriptError(f"{path.name}: not a regular file", hint="give the path of a transcript file")
        # The file may grow between the two calls: the read itself is capped too.
        if status.st_size <= max_bytes:
            with path.open("rb") as file:
                data = file.read(max_bytes + 1)
        if status.st_size > max_bytes or len(data) > max_bytes:
            raise TranscriptError(
                f"{path.name}: {max(status.st_size, max_bytes + 1)} bytes, more than the {max_bytes} allowed",
                hint="split the transcript, or raise max_bytes",
            )
    except FileNotFoundError as error:
        raise TranscriptError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise TranscriptError(f"{quote(path)}: cannot be read ({reason})") from error
    return Source(path, decode(data, path))


def decode(data: bytes, path: Path) -> str:
    """Decode the bytes of `path`, the byte order mark removed.

    Raises: TranscriptError: the bytes are neither UTF-8 nor UTF-16 with a mark, or hold NUL characters.
    """
    encoding, skip = "utf-8", 0
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            encoding, skip = name, len(mark)
            break
    try:
        text = data[skip:].decode(encoding)
    except UnicodeDecodeError as error:
        offset = skip + error.start
        line = data.count(b"\n", 0, offset) + 1
        raise TranscriptError(
            f"{path.name}: byte {offset} (line {line}) is not {encoding.upper()}", hint=_iconv("WINDOWS-1252", path)
        ) from error
    nul = text.find("\0")
    if nul >= 0:
        # Every second byte NUL is UTF-16 that lost its mark; anything else is not text at all.
        utf16 = skip == 0 and len(data) % 2 == 0 and data.count(0) * 3 >= len(data)
        little = data[1::2].count(0) >= data[::2].count(0)
        hint = _iconv("UTF-16LE" if little else "UTF-16BE", path) if utf16 else "give a text file"
        raise TranscriptError(f"{path.name}: character {nul} is NUL, so this is not a text file", hint=hint)
    return text


def build_conversation(
    source: Source, draft: Draft, *, media: Path | None = None, media_duration_s: float | None = None
) -> Conversation:
    """Check a draft and make it a Conversation.

    media: the recording of this conversation; times are then positions in it. Without one, times that count from the
        start of an episode are shifted so that the earliest utterance starts at 0.
    Raises: TranscriptError: no utterances; ids that repeat or fall; a time that is not finite, is negative, ends
        before it starts, or runs more than `MEDIA_TOLERANCE_S` past `media_duration_s`.
    """
    if not draft.rows:
        raise source.error(f"conversation {draft.id} has no utterances")
    check_ids(source, draft.rows)
    for row in draft.rows:
        _check_times(source, row, media_duration_s)
    origin_s = 0.0
    if draft.episode_times and media is None:
        origin_s = min((row.start_s for row in draft.rows if row.start_s is not None), default=0.0)
    return Conversation(draft.id, tuple(_utterance(row, origin_s) for row in draft.rows), media)


def build_labelled(source: Source, draft: Draft) -> LabelledConversation:
    """Check an annotated draft and make it a LabelledConversation.

    Raises: TranscriptError: as `build_conversation`. LabelError: an utterance without an emotion, or no annotation of
        pairs (a conversation in which nothing has a cause has an empty one).
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
    """Refuse utterance ids that are out of range, repeat or fall.

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


def _check_times(source: Source, row: Row, media_duration_s: float | None) -> None:
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
    if media_duration_s is not None and row.end_s > media_duration_s + MEDIA_TOLERANCE_S:
        raise source.error(
            f"ends at {row.end_s:.3f} s, past the end of the recording at {media_duration_s:.3f} s",
            where=row.where,
            hint="check that the transcript belongs to this recording",
        )


def _utterance(row: Row, origin_s: float) -> Utterance:
    def shifted(time_s: float | None) -> float | None:
        # Files give milliseconds: rounding keeps the subtraction from inventing digits below them.
        return None if time_s is None else round(time_s - origin_s, 6)

    return Utterance(row.id, row.speaker, row.text or None, shifted(row.start_s), shifted(row.end_s))


def _iconv(encoding: str, path: Path) -> str:
    name, target = shlex.quote(path.name), shlex.quote(f"{path.stem}.utf8{path.suffix}")
    return f"convert it, for example: iconv -f {encoding} -t UTF-8 {name} > {target}"
