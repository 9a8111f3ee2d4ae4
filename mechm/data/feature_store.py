"""Stores features of a corpus's recordings on disk in half precision, so that they are computed once.

    <folder>/features.json              fingerprint of the encoders
    <folder>/3f9c2a71d0b4.safetensors   up to `SPANS_PER_FILE` utterances: the arrays of `Features` with one row per
                                        utterance, and the rows' keys as metadata

Files are written atomically, so extraction continues after an interruption and loses only the rows not yet written. A
recording is identified by its name, its folder's name, its size and its modification time; a changed one is read again.
Ten thousand clips of preset `small` take about 90 MB. The files contain neither words nor names of people.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mechm.data.corpora.types import Problem
from mechm.data.feature_extraction import FeatureExtractor, Features, Span
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaLimits, MediaReader
from mechm_runtime.system.atomic_write import replaced_file, write_atomically
from mechm_runtime.system.progress import StageProgress

INDEX_FILE = "features.json"
SPANS_PER_FILE = 64
"""About a minute of work on two cores, the most that an interruption loses."""

CLIP_LIMITS = MediaLimits(timeout_s=300.0)
"""Limits for one recording. The runtime's 15 minutes are meant for hours of video; here a broken clip is given up
sooner, so that ten thousand others do not wait."""

ARRAYS = tuple(item.name for item in fields(Features) if item.name != "missing")

Row = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """Features of N utterances.

    row_of: span -> row. arrays: as in `Features` with a first axis of N; float16 and bool.
    problems: recordings that could not be used, with the reason.
    """

    row_of: Mapping[Span, int]
    arrays: Row
    problems: tuple[Problem, ...] = ()

    @property
    def voices(self) -> npt.NDArray[np.float32]:
        """Audio tokens of the utterances with a voice, float32 (voices, audio tokens, audio width)."""
        return np.asarray(self.arrays["audio"][self.arrays["audio_mask"]], np.float32)


def read_features(
    spans: Sequence[Span],
    extractor: FeatureExtractor,
    folder: Path,
    *,
    n_jobs: int = 1,
    limits: MediaLimits = CLIP_LIMITS,
    progress: StageProgress | None = None,
) -> FeatureTable:
    """Return the features of all spans; those that `folder` does not hold yet are computed and stored there.

    Only one process computes into a folder at a time; others wait and then read the result.
    n_jobs: recordings decoded in parallel, each in its own process.
    progress: called with the spans done and their total.
    Raises: InputError: the folder cannot be written, is damaged, or holds features of other encoders; or none of the
        spans can be used. MissingExtraError: without the `media` extra.
    """
    wanted = list(dict.fromkeys(spans))
    keys, absent = _keys(wanted)
    _open_folder(folder, extractor.fingerprint)
    problems = list(absent.items())
    with FileLock(folder / ".lock"):
        rows = _stored_rows(folder, set(keys.values()))
        todo: defaultdict[Path, list[Span]] = defaultdict(list)
        for span, key in keys.items():
            if key not in rows:
                todo[span.path].append(span)
        writer = _Writer(folder)
        done = len(wanted) - sum(map(len, todo.values()))
        if progress is not None:
            progress(done, len(wanted))
        try:
            for recording in _computed(list(todo.values()), extractor, n_jobs, limits):
                problems += ((recording.spans[0].path, problem) for problem in recording.problems)
                for span, row in recording.rows.items():
                    rows[keys[span]] = row
                    writer.add(keys[span], row)
                done += len(recording.spans)
                if progress is not None:
                    progress(done, len(wanted))
        finally:
            writer.flush()  # after Ctrl-C, too
    position = {span.path: index for index, span in enumerate(wanted)}
    # Threads finish in any order; problems are reported in that of the spans.
    named = tuple(problem for _, problem in sorted(problems, key=lambda found: position[found[0]]))
    present = [span for span in wanted if keys.get(span) in rows]
    if not present:
        first = f"; {named[0].name}: {named[0].reason}" if named else ""
        raise InputError(
            f"none of {len(wanted)} recordings can be used{first}", hint="check that the clips were unpacked whole"
        )
    arrays = {name: np.stack([rows[keys[span]][name] for span in present]) for name in ARRAYS}
    return FeatureTable({span: row for row, span in enumerate(present)}, arrays, named)


@dataclass(frozen=True, slots=True)
class _Recording:
    """Result of one recording: a row for each usable span, and the reasons for the others."""

    spans: Sequence[Span]
    rows: Mapping[Span, Row]
    problems: Sequence[Problem]


def _read(spans: Sequence[Span], extractor: FeatureExtractor, reader: MediaReader) -> _Recording:
    rows: dict[Span, Row] = {}
    problems: list[Problem] = []
    try:
        for span, features in extractor.read_spans(spans, reader):
            if features.usable:
                rows[span] = {name: _halved(getattr(features, name)) for name in ARRAYS}
            else:
                reason = "; ".join(dict.fromkeys(features.missing.values()))
                problems.append(Problem(_shown(span), reason or "nothing in it"))
    except MediaError as error:
        name = spans[0].path.name
        problems.append(Problem(name, str(error).removeprefix(f"{name}: ")))
    return _Recording(spans, rows, problems)


def _computed(
    recordings: Sequence[Sequence[Span]], extractor: FeatureExtractor, n_jobs: int, limits: MediaLimits
) -> Iterator[_Recording]:
    """Yield every recording as soon as it is read; each thread has its own decoding process."""
    if not recordings:
        return
    own = threading.local()
    with ExitStack() as stack, ThreadPoolExecutor(n_jobs) as threads:

        def read(spans: Sequence[Span]) -> _Recording:
            if not hasattr(own, "reader"):
                own.reader = stack.enter_context(MediaReader(limits))
            return _read(spans, extractor, own.reader)

        waiting: set[Future[_Recording]] = set()
        queue = iter(recordings)
        try:
            while True:
                # Only a few are queued, so that an interruption does not wait for ten thousand.
                while len(waiting) < 2 * n_jobs and (spans := next(queue, None)) is not None:
                    waiting.add(threads.submit(read, spans))
                if not waiting:
                    return
                ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            for future in waiting:
                future.cancel()
            stack.close()  # ends running decoders


class _Writer:
    """Collects rows and writes them in files of `SPANS_PER_FILE`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, Row] = {}

    def add(self, key: str, row: Row) -> None:
        self._rows[key] = row
        if len(self._rows) >= SPANS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected.

        Raises: InputError: the folder cannot be written.
        """
        if not self._rows:
            return
        keys = list(self._rows)
        arrays = {name: np.stack([self._rows[key][name] for key in keys]) for name in ARRAYS}
        # Named by its content, so that trainings that share a folder do not overwrite each other's files.
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        try:
            # Features are personal data, so only their owner can read them.
            with replaced_file(self._folder / f"{name}.safetensors", mode=0o600) as beside:
                save_file(arrays, beside, metadata={"keys": json.dumps(keys)})
        except (OSError, SafetensorError) as error:
            raise _unwritable(self._folder, error) from error
        self._rows = {}


def _open_folder(folder: Path, fingerprint: str) -> None:
    index = folder / INDEX_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not index.exists():
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise InputError(f"{folder} holds other files", hint="give --features a folder of its own")
            write_atomically(index, json.dumps({"encoders": fingerprint}) + "\n")
        found = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unwritable(folder, error) from error
    except ValueError as error:
        raise InputError(f"{index} is damaged", hint="delete its folder, the features are computed again") from error
    if found != {"encoders": fingerprint}:
        raise InputError(
            f"the features in {folder} are of other encoders",
            hint="give --features another folder, or delete this one",
        )


def _unwritable(folder: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(
        f"features cannot be kept in {folder}: {reason}", hint="free disk space, or give --features another folder"
    )


def _stored_rows(folder: Path, wanted: set[str]) -> dict[str, Row]:
    """Read the stored rows among `wanted`, by key.

    Raises: InputError: a file is damaged.
    """
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                keys = json.loads(file.metadata()["keys"])
                if wanted.isdisjoint(keys):
                    continue
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged", hint="delete it, its features are computed again") from error
        rows.update(
            (key, {name: array[at] for name, array in arrays.items()}) for at, key in enumerate(keys) if key in wanted
        )
    return rows


def _keys(spans: Sequence[Span]) -> tuple[dict[Span, str], dict[Path, Problem]]:
    """Compute a key for each span, and list the recordings that are missing."""
    states: dict[Path, str | None] = {}
    problems: dict[Path, Problem] = {}
    for path in dict.fromkeys(span.path for span in spans):
        try:
            status = path.stat()
            states[path] = f"{path.parent.name}/{path.name}|{status.st_size}|{status.st_mtime_ns}"
        except OSError as error:
            states[path] = None
            problems[path] = Problem(path.name, error.strerror or "cannot be read")
    keys = {
        span: hashlib.sha256(f"{state}|{span.start_s}|{span.end_s}".encode()).hexdigest()[:24]
        for span in spans
        if (state := states[span.path]) is not None
    }
    return keys, problems


def _halved(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.dtype == bool else values.astype(np.float16)


def _shown(span: Span) -> str:
    return span.path.name if span.start_s is None else f"{span.path.name}, {span.start_s:.1f} s"
