"""Finds a text file's encoding and decodes it; which one was used is said in a note unless it is plain UTF-8.

Byte order marks come first, then UTF-8, then UTF-16 and UTF-32 by their NUL bytes. Other encodings are used only where
one of `encoding_likeness`'s candidates reads the file as ordinary writing and no other one does; charset-normalizer
decides between candidates that are level. Otherwise the file is refused, rather than read as other characters.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from mechm_runtime.readers.encoding_likeness import likely_encodings
from mechm_runtime.readers.repair_notes import counted

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK = "\ufeff"
_SAMPLE_BYTES = 1 << 16
_LEFTOVERS = 0.1
"""Largest share of bytes that are no UTF-8 among all characters above ASCII for which they count as leftovers."""

NAMES = {
    "gb18030": "GB18030",
    "big5": "Big5",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "cp949": "EUC-KR",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1252": "Windows-1252",
    "cp1253": "Windows-1253",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "koi8_r": "KOI8-R",
    "cp866": "CP866",
    "mac_cyrillic": "Mac Cyrillic",
    "mac_roman": "Mac Roman",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
    "utf-8": "UTF-8",
}
"""Python's names of encodings -> the names by which people and iconv know them."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text of a file without its byte order marks, and notes about how it was read."""

    text: str
    notes: tuple[str, ...] = ()


class UnknownEncodingError(ValueError):
    """The bytes are no text in an encoding that can be told. offset: of the first byte that is not `encoding`."""

    def __init__(self, offset: int, encoding: str) -> None:
        super().__init__(f"byte {offset} is not {encoding}")
        self.offset = offset
        self.encoding = encoding


def decode_text(data: bytes) -> Decoded:
    """Decode the bytes of a text file; NUL characters are left for the caller to refuse.

    Raises: UnknownEncodingError: see there.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return _without_marks(data.decode(encoding))
            except UnicodeDecodeError as error:
                if encoding == "utf-8":
                    break
                raise UnknownEncodingError(error.start, NAMES[encoding]) from error
    try:
        text = data.decode("utf-8")
        wide = _wide_encoding(data) if "\0" in text else None
    except UnicodeDecodeError as error:
        wide = _wide_encoding(data)
        if wide is None:
            return _other(data, error)
    return _without_marks(text) if wide is None else _read_as(data.decode(wide), wide)


def _without_marks(text: str) -> Decoded:
    """The text without byte order marks, wherever they stand; joined files have several."""
    n_marks = text.count(_MARK)
    notes = (f"{n_marks} byte order marks were removed",) if n_marks > 1 else ()
    return Decoded(text.replace(_MARK, ""), notes)


def _read_as(text: str, encoding: str) -> Decoded:
    return Decoded(text.replace(_MARK, ""), (f"the file was read as {NAMES[encoding]}, since it is not UTF-8",))


def _wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark: the high bytes of most characters are NUL."""
    sample = data[: _SAMPLE_BYTES - _SAMPLE_BYTES % 4]
    zeros = [sample[offset::4].count(0) for offset in range(4)]
    total = max(len(sample) // 4, 1)
    for encoding, high, low in (
        ("utf-32-le", zeros[2:], zeros[:1]),
        ("utf-32-be", zeros[:2], zeros[3:]),
        ("utf-16-le", zeros[1::2], zeros[::2]),
        ("utf-16-be", zeros[::2], zeros[1::2]),
    ):
        least = 0.9 if encoding.startswith("utf-32") else 0.1
        if min(high) < least * total or max(low) > 0.1 * min(high):
            continue
        try:
            if "\0" not in data.decode(encoding):
                return encoding
        except UnicodeDecodeError:
            continue
    return None


def _other(data: bytes, error: UnicodeDecodeError) -> Decoded:
    """Decode bytes that are not UTF-8.

    Raises: UnknownEncodingError: not one encoding is likely.
    """
    mixed = _with_leftovers(data)
    if mixed is not None:
        return mixed
    found: dict[str, str] = {}
    for encoding in likely_encodings(_sample(data)):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if text not in found.values():
            found[encoding] = text
    if len(found) > 1:
        best = _detected(data)
        found = {encoding: text for encoding, text in found.items() if encoding == best}
    if not found:
        raise UnknownEncodingError(error.start, "UTF-8") from error
    ((encoding, text),) = found.items()
    return _read_as(text, encoding)


def _with_leftovers(data: bytes) -> Decoded | None:
    """UTF-8 with single bytes of Windows-1252 or halves of characters in it; None where most of it is not UTF-8."""
    counts = {"windows": 0, "damaged": 0}

    def replaced(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        broken = error.object[error.start : error.end]
        after = error.object[error.end : error.end + 1]
        single = len(broken) == 1 and (not after or after < b"\x80")
        character = broken.decode("cp1252", errors="replace") if single else "\ufffd"
        counts["damaged" if character == "\ufffd" else "windows"] += 1
        return character, error.end

    codecs.register_error("mechm.leftovers", replaced)
    text = data.decode("utf-8", errors="mechm.leftovers")
    n_broken = sum(counts.values())
    if n_broken > _LEFTOVERS * _n_high(text):
        return None
    notes = (
        *counted(
            counts["windows"],
            "byte that is not UTF-8 was read as Windows-1252",
            "bytes that are not UTF-8 were read as Windows-1252",
        ),
        *counted(
            counts["damaged"],
            "damaged character was replaced by U+FFFD",
            "damaged characters were replaced by U+FFFD",
        ),
    )
    return Decoded(text.replace(_MARK, ""), notes)


def _n_high(text: str) -> int:
    """Number of characters above ASCII."""
    return len(text) - len(text.encode("ascii", errors="ignore"))


def _sample(data: bytes) -> bytes:
    """The first lines that have bytes above ASCII."""
    lines: list[bytes] = []
    size = 0
    for line in data.splitlines(keepends=True):
        if not line.isascii():
            lines.append(line)
            size += len(line)
            if size > _SAMPLE_BYTES:
                break
    return b"".join(lines)


def _detected(data: bytes) -> str | None:
    """The encoding that charset-normalizer finds, where the letters fit a language."""
    from charset_normalizer import from_bytes

    best = from_bytes(_sample(data), cp_isolation=[name for name in NAMES if not name.startswith("utf")]).best()
    return None if best is None or best.coherence < 0.1 else best.encoding
