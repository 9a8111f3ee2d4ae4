"""The output of `mechm analyze`: files, checked before the work and written after it, and what is printed.

The formats themselves are in `mechm_runtime.output`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from mechm_runtime.errors import InputError, MechmError
from mechm_runtime.types import Analysis, Conversation

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, slots=True)
class Outputs:
    """One path per format; None where the format was not asked for.

    json: `STANDARD_OUTPUT` prints it and writes no file.
    vtt: several conversations get one file each beside it, see `mechm_runtime.output.writers.vtt_paths`.
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
        """Refuse outputs that would fail, or overwrite an input, after the work.

        conversations: all that will be analysed.
        inputs: files from the command line, which no output may replace; clips and recordings are added to them.
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
        self, analyses: Sequence[Analysis], conversations: Sequence[Conversation], *, title: str, terms: str = ""
    ) -> tuple[tuple[Path, ...], tuple[InputError, ...]]:
        """Write every file; the others are still written when one fails.

        analyses: those that succeeded, at least one. conversations: all that were read; file names and formats follow
            these, so that a failed conversation does not change the files of the others.
        title, terms: of the report, see `render_report`.
        Returns: the files written, and one error per file that was not.
        """
        from mechm_runtime.output.report import write_report
        from mechm_runtime.output.writers import vtt_paths, write_json, write_submission, write_vtt

        jobs: list[tuple[Path, Callable[[Path], None]]] = []
        if self.json_file is not None:
            jobs.append((self.json_file, partial(write_json, analyses, as_list=len(conversations) > 1)))
        if self.vtt is not None:
            names = [conversation.id for conversation in conversations]
            paths = dict(zip(names, vtt_paths(names, self.vtt), strict=True))
            jobs += [(paths[analysis.conversation_id], partial(write_vtt, analysis)) for analysis in analyses]
        if self.submission is not None:
            jobs.append((self.submission, partial(write_submission, analyses)))
        if self.report is not None:
            jobs.append((self.report, partial(write_report, analyses, title=title, terms=terms)))
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


class AnalysisPrinter:
    """Prints analyses on standard output: as tables, as lines of JSON, or not at all.

    When standard output fails (a full disk, `| head`), the analyses may still go to files: the error is kept for
    `check`, and raised at once only if there are no files to write.
    """

    def __init__(self, outputs: Outputs, *, heading: bool, quiet: bool) -> None:
        """`heading`: print the conversation's id above its table."""
        self._as_json = outputs.json_to_stdout
        self._silent = quiet and not self._as_json
        self._heading = heading
        self._has_files = outputs.has_files
        self._failure: OSError | None = None

    def __call__(self, analysis: Analysis) -> None:
        """Print one analysis."""
        if self._silent or self._failure is not None:
            return
        try:
            if self._as_json:
                click.echo(analysis.to_json().encode("utf-8", errors="backslashreplace"))
            else:
                self._table(analysis)
        except OSError as error:
            self._failure = error
            if not self._has_files:
                self.check()

    def check(self) -> None:
        """Raise the error that printing failed with, if it did.

        Raises: MechmError; or BrokenPipeError, on which click ends quietly: the reader of the pipe wanted no more.
        """
        if isinstance(self._failure, BrokenPipeError):
            raise self._failure
        if self._failure is not None:
            raise MechmError(
                f"cannot print: {self._failure.strerror or self._failure}", hint="write to a file: --json FILE"
            ) from self._failure

    def _table(self, analysis: Analysis) -> None:
        from mechm_runtime.output.formatting import printable
        from mechm_runtime.output.table import render_table

        text = render_table(analysis)
        if self._heading:
            text = f"Conversation {printable(analysis.conversation_id)}\n{text}"
        # Where the terminal's encoding has no arrows, question marks are better than no table.
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(text.encode(encoding, errors="replace").decode(encoding), nl=self._heading)


def _media(conversations: Sequence[Conversation]) -> Iterator[Path]:
    for conversation in conversations:
        if conversation.media is not None:
            yield conversation.media
        yield from (utterance.media for utterance in conversation.utterances if utterance.media is not None)


def _check_writable(option: str, path: Path) -> bool:
    """Check that a file can be written there; returns whether it is a device or a pipe, which is written in place.

    Raises: InputError: it is a folder or `-`, its folder is missing or not writable, or the path is not usable.
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
