"""Shared functions of the corpus readers: decoding text, reading tables and checking recordings.

Corpora of the 2010s use UTF-8, Windows-1252 or a mixture of both. Recordings are only decoded by the given probe.
"""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mechm.data.corpora.types import Probe, Problem
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.readers import DEFAULT_MAX_BYTES
from mechm_runtime.readers.text_file import quote
from mechm_runtime.types import LabelledConversation, Utterance

_CONTROLS_AS_CP1252 = {
    code: bytes([code]).decode("cp1252", errors="ignore") or " " for code in range(0x80, 0xA0)
}  # five of these codes are undefined in Windows-1252


def read_text(path: Path, *, hint: str = "") -> str:
    """Read a text file in UTF-8 with remains of Windows-1252, which are decoded line by line.

    Such remains are bytes that are not UTF-8, and the control characters U+0080 to U+009F, to which Windows-1252 quotes
    and dashes turn when they are read as Latin-1 and saved again.
    Raises: InputError: it cannot be read, is larger than `DEFAULT_MAX_BYTES`, or contains NUL characters.
    """
    try:
        if path.stat().st_size > DEFAULT_MAX_BYTES:
            raise InputError(f"{path.name}: more than the {DEFAULT_MAX_BYTES} bytes allowed", hint=hint)
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputError(f"cannot read {path.name}: {reason}", hint=hint) from error
    if b"\0" in data:
        raise InputError(f"{path.name}: holds NUL characters, so this is not a text file", hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "".join(_decode_line(line) for line in data.splitlines(keepends=True))
    return text.translate(_CONTROLS_AS_CP1252)


def _decode_line(line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return line.decode("latin-1")  # equals Windows-1252 from 0xA0; `_CONTROLS_AS_CP1252` maps the codes below


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table. line: its line in the file. values: by column."""

    path: Path
    line: int
    values: Mapping[str, str]

    def error(self, message: str, *, hint: str = "") -> InputError:
        """Return an InputError that names the file and the line."""
        return InputError(f"{self.path.name}, line {self.line}: {message}", hint=hint)

    def number(self, column: str) -> int:
        """Parse a whole number from 0 to 999,999,999.

        Raises: InputError: the value is none.
        """
        value = self.values[column].strip()
        if not (value.isascii() and value.isdigit() and len(value) <= 9):
            raise self.error(f"{column} {quote(value)} is not a whole number")
        return int(value)


def read_table(path: Path, columns: Sequence[str], *, delimiters: str = ",", hint: str = "") -> Iterator[TableRow]:
    """Yield the rows of a CSV file whose first line names at least `columns`; empty lines are skipped.

    Names are compared ignoring case and surrounding space; rows have the spelling of `columns`.
    delimiters: candidates; the one that occurs most often in the first line is used.
    Raises: InputError: it cannot be read, a column is missing, or a row has another number of values than the header.
    """
    text = read_text(path, hint=hint)
    header = text.partition("\n")[0].strip()
    delimiter = max(delimiters, key=header.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().casefold() for name in next(rows, [])]
        absent = [column for column in columns if column.casefold() not in names]
        if absent:
            raise InputError(f"{path.name}: no column {', '.join(absent)} in the first line", hint=hint)
        position = {column: names.index(column.casefold()) for column in columns}
        for values in rows:
            if not values:
                continue
            row = TableRow(path, rows.line_num, {})
            if len(values) != len(names):
                raise row.error(f"{len(values)} values for {len(names)} columns", hint=hint)
            yield replace(row, values={column: values[at] for column, at in position.items()})
    except csv.Error as error:
        raise InputError(f"{path.name}, line {rows.line_num}: {error}", hint=hint) from error


def why_unusable(path: Path, probe: Probe | None) -> str | None:
    """Return the reason why a recording cannot be used, None where it can.

    probe: None only checks the file's size.
    """
    try:
        status = path.stat()
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size == 0:
        return "empty"
    if probe is None:
        return None
    try:
        probe(path)
    except MediaError as error:
        return str(error).removeprefix(f"{path.name}: ")
    return None


def keep_usable_clips(
    labelled: Sequence[LabelledConversation], clip_name: Callable[[str, int], str], probe: Probe | None
) -> tuple[tuple[LabelledConversation, ...], tuple[Problem, ...]]:
    """Remove clips that cannot be used from their utterances, and report them; no utterance is removed.

    labelled: with the clips that were found. clip_name: (conversation id, utterance id) -> expected name of a clip, for
        those that were not found.
    Raises: MediaError: no clip is left.
    """
    problems: list[Problem] = []

    def checked(conversation: str, utterance: Utterance) -> Utterance:
        if utterance.media is None:
            problems.append(Problem(clip_name(conversation, utterance.id), "missing"))
            return utterance
        reason = why_unusable(utterance.media, probe)
        if reason is None:
            return utterance
        problems.append(Problem(utterance.media.name, reason))
        return replace(utterance, media=None)

    kept = []
    for one in labelled:
        utterances = tuple(checked(one.conversation.id, utterance) for utterance in one.conversation.utterances)
        kept.append(replace(one, conversation=replace(one.conversation, utterances=utterances)))
    if problems and count_media(kept) == 0:
        raise MediaError(
            f"none of {len(problems)} clips can be used; {problems[0].name}: {problems[0].reason}",
            hint="check that the clips were unpacked whole",
        )
    return tuple(kept), tuple(problems)


def count_utterances(labelled: Sequence[LabelledConversation]) -> int:
    """Count the utterances of all conversations."""
    return sum(len(one.emotions) for one in labelled)


def count_media(labelled: Sequence[LabelledConversation]) -> int:
    """Count the utterances with a recording: their own clip, or their conversation's."""
    return sum(
        utterance.media is not None or one.conversation.media is not None
        for one in labelled
        for utterance in one.conversation.utterances
    )
