"""The files that `mechm analyze` was asked for: checked before the work, written after it.

It knows which file goes where; the forms themselves are `mechm_runtime.output.writers` and
`mechm_runtime.output.report`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mechm_runtime.errors import InputError
from mechm_runtime.types import Analysis, Conversation

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where to write what; None where nothing was asked for.

    json: `STANDARD_OUTPUT` prints it and writes no file.
    vtt: a file beside it for each of several conversations, see `mechm_runtime.output.writers.write_vtts`.
    """

    json: Path | None = None
    vtt: Path | None = None
    submission: Path | None = None
    report: Path | None = None

    @property
    def json_file(self) -> Path | None:
        """The JSON file, None where JSON is printed or not wanted."""
        return None if self.json_to_stdout else self.json

    @property
    def json_to_stdout(self) -> bool:
        """Whether JSON is printed."""
        return self.json == STANDARD_OUTPUT

    @property
    def wanted(self) -> bool:
        """Whether anything was asked for."""
        return self.json_to_stdout or self.has_files

    @property
    def has_files(self) -> bool:
        """Whether a file was asked for."""
        return any((self.json_file, self.vtt, self.submission, self.report))

    def check(self, conversations: Sequence[Conversation], inputs: Sequence[Path]) -> None:
        """Refuse now what would fail, or destroy something, when the work is done.

        conversations: those to be analysed, all of them.
        inputs: files given on the command line, which no output may replace; clips and recordings are added to them.
        Raises: InputError: a folder in a file's place, a folder that is missing or not writable, one file for two
            outputs or for an input and an output, or subtitles without times.
        """
        read = {path.resolve() for path in (*inputs, *_media(conversations))}
        written: dict[Path, str] = {}
        for option, path in self._files(conversations):
            is_device = _check_writable(option, path)
            target = path.resolve()
            if target in read:
                raise InputError(f"{option} {path} would replace what is analysed", hint="give another name")
            if target in written and not is_device:
                raise InputError(f"{written[target]} and {option} both name {path}", hint="give each its own file")
            written[target] = option
        if self.vtt is not None:
            from mechm_runtime.output.writers import require_times

            for conversation in conversations:
                require_times(conversation.id, conversation.utterances)

    def write(
        self, analyses: Sequence[Analysis], conversations: Sequence[Conversation], *, title: str
    ) -> tuple[tuple[Path, ...], tuple[InputError, ...]]:
        """Write every file; one that fails stops no other.

        analyses: those that succeeded, at least one; conversations: all that were read. Names and forms follow the
            latter, so that a conversation that failed does not change the others' files.
        Returns: the files written, and what went wrong with the others.
        """
        from mechm_runtime.output.report import write_report
        from mechm_runtime.output.writers import vtt_paths, write_json, write_submission, write_vtt

        jobs: list[tuple[Path, Callable[[Path], None]]] = []
        if self.json_file is not None:
            jobs.append((self.json_file, partial(write_json, analyses, as_lines=len(conversations) > 1)))
        if self.vtt is not None:
            names = [conversation.id for conversation in conversations]
            paths = dict(zip(names, vtt_paths(names, self.vtt), strict=True))
            jobs += [(paths[analysis.conversation_id], partial(write_vtt, analysis)) for analysis in analyses]
        if self.submission is not None:
            jobs.append((self.submission, partial(write_submission, analyses)))
        if self.report is not None:
            jobs.append((self.report, partial(write_report, analyses, title=title)))
        written: list[Path] = []
        errors: list[InputError] = []
        for path, write_to in jobs:
            try:
                write_to(path)
                written.append(path)
            except InputError as error:
                errors.append(error)
        return tuple(written), tuple(errors)

    def _files(self, conversations: Sequence[Conversation]) -> Iterator[tuple[str, Path]]:
        """Option and path of every file that will be written."""
        if self.json_file is not None:
            yield "--json", self.json_file
        if self.vtt is not None:
            from mechm_runtime.output.writers import vtt_paths

            for path in vtt_paths([conversation.id for conversation in conversations], self.vtt):
                yield "--vtt", path
        if self.submission is not None:
            yield "--submission", self.submission
        if self.report is not None:
            yield "--report", self.report


def _media(conversations: Sequence[Conversation]) -> Iterator[Path]:
    for conversation in conversations:
        if conversation.media is not None:
            yield conversation.media
        yield from (utterance.media for utterance in conversation.utterances if utterance.media is not None)


def _check_writable(option: str, path: Path) -> bool:
    """Whether the path is a device or pipe, which is written as it is.

    Raises: InputError: it is a folder or `-`, its folder is missing or may not be written, or it is no usable path.
    """
    if path == STANDARD_OUTPUT:
        raise InputError(f"{option} - : only --json goes to standard output", hint="give the name of a file")
    try:
        folder = path.resolve().parent  # where a link leads to, as the writers follow it
        if not folder.is_dir():
            raise InputError(f"{option} {path}: its folder does not exist", hint=f"mkdir -p {folder}")
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle; ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputError(f"{option} {path} cannot be written ({reason})", hint="give another name") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{option} {path} is a folder", hint="give the name of a file")
    if not stat.S_ISREG(mode):
        return True
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option} {path}: its folder may not be written to", hint="write to another folder")
    return False
