"""Reads text files: limits their size, decodes them, cleans their text, and names file and place in errors.

It knows no format. A message never holds more of a transcript than a short quoted token.
"""

from __future__ import annotations

import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mechm_runtime.errors import LabelError, TranscriptError
from mechm_runtime.readers.encoding import Decoded, UnknownEncodingError, decode_text
from mechm_runtime.types import EMOTIONS

SpeakerNames = Literal["auto", "prefix", "none"]
"""How names at the start of lines are found: `auto` decides over the whole file; `prefix` takes the words before a
line's first colon for its speaker wherever that is possible; `none` leaves all of them in the text."""

DEFAULT_MAX_BYTES = 32 * 2**20
"""Largest transcript in bytes; larger ones are refused unread. All of ECF is 1.6 MB; parsed JSON takes about ten times
its size in memory."""

_CONTROLS = dict.fromkeys((*range(0x20), 0x7F), " ") | {
    code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)
}
# U+0080 to U+009F are what Windows-1252's quotes, dashes and ellipses become when it is read as Latin-1.
_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_QUOTED_CHARACTERS = 24


def quote(token: object) -> str:
    """Quote a token from a file for a message: escaped, at most 24 characters long."""
    text = str(token)
    return ascii(text if len(text) <= _QUOTED_CHARACTERS else text[: _QUOTED_CHARACTERS - 3] + "...")


def clean_text(text: str) -> str:
    """Replace control characters and line breaks by spaces, and each run of white space by one space.

    U+0080 to U+009F become the characters that Windows-1252 has there: nobody means a control character, and U+0092 was
    an apostrophe once.

    Control characters are removed because terminals act on them (escape sequences) and no tokenizer knows them.
    """
    return " ".join(text.translate(_CONTROLS).split())


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded text file.

    path: used in messages; the file is not opened again. speaker_names: how the readers find names in its lines.
    notes: what was repaired when it was decoded (`Conversation.notes`).
    """

    path: Path
    text: str
    speaker_names: SpeakerNames = "auto"
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The lines, without their ends; index 0 is line 1. Only CR, LF and CRLF end a line."""
        return _LINE_END.split(self.text)

    def error(self, message: str, *, where: str = "", hint: str = "") -> TranscriptError:
        """A TranscriptError that names the file and the place."""
        return TranscriptError(self._with_place(message, where), hint=hint)

    def label_error(self, message: str, *, where: str = "", hint: str = "") -> LabelError:
        """A LabelError that names the file and the place."""
        return LabelError(self._with_place(message, where), hint=hint)

    def check_emotion(self, emotion: str, *, where: str) -> str:
        """Return `emotion` where it is one of `EMOTIONS`.

        Raises: LabelError: it is not.
        """
        if emotion not in EMOTIONS:
            raise self.label_error(
                f"unknown emotion {quote(emotion)}", where=where, hint=f"use one of {', '.join(EMOTIONS)}"
            )
        return emotion

    def check_unicode(self, text: str, *, where: str) -> str:
        """Return `text` where it can be written as UTF-8.

        Raises: TranscriptError: it holds half of a surrogate pair, which JSON can write and UTF-8 cannot.
        """
        if _SURROGATES.search(text):
            raise self.error("half of a surrogate pair is no character", where=where)
        return text

    def _with_place(self, message: str, where: str) -> str:
        return f"{self.path.name}, {where}: {message}" if where else f"{self.path.name}: {message}"


def read_source(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, speaker_names: SpeakerNames = "auto") -> Source:
    """Read and decode a text file; its encoding is found by `encoding` and said in a note unless it is UTF-8.

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
    decoded = decode(data, path)
    return Source(path, decoded.text, speaker_names, decoded.notes)


def decode(data: bytes, path: Path) -> Decoded:
    """Decode the bytes of `path`, byte order marks removed.

    Raises: TranscriptError: the bytes are no text in an encoding that can be told, or hold NUL characters.
    """
    try:
        decoded = decode_text(data)
    except UnknownEncodingError as error:
        line = data.count(b"\n", 0, error.offset) + 1
        name, target = shlex.quote(path.name), shlex.quote(f"{path.stem}.utf8{path.suffix}")
        raise TranscriptError(
            f"{path.name}: byte {error.offset} (line {line}) is not {error.encoding}, and its encoding is unknown",
            hint=f"find out its encoding and convert it: iconv -f ENCODING -t UTF-8 {name} > {target}",
        ) from error
    nul = decoded.text.find("\0")
    if nul >= 0:
        raise TranscriptError(
            f"{path.name}: character {nul} is NUL, so this is not a text file", hint="give a text file"
        )
    return decoded
