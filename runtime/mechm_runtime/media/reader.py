"""Read samples and frames of recordings; decoding runs in a process of its own (`decoder_process`, `exchange`).

`read_segments` and `probe` answer one question each; a `MediaReader` keeps the process for many recordings (one clip
per utterance, a service) and can yield segments one at a time. Requests are checked here, before they are sent.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mechm_runtime.errors import MediaError, MissingExtraError
from mechm_runtime.media.decoder_process import kill_decoder, start_decoder
from mechm_runtime.media.exchange import Exchange, RefusalError
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.replies import printable_line
from mechm_runtime.media.segments import MediaInfo, MediaSegments, Segment
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.progress import StageProgress

MAX_FRAMES_PER_SPAN = 64


def probe(path: Path, limits: MediaLimits | None = None) -> MediaInfo:
    """Read the facts of one recording from its container and first frames.

    Raises: MediaError: not readable as media, or above a limit; MissingExtraError: without the `media` extra.
    """
    with MediaReader(limits) as reader:
        return reader.probe(path)


def read_segments(
    path: Path,
    spans: Sequence[tuple[float, float]],
    *,
    n_frames: int = 3,
    limits: MediaLimits | None = None,
    progress: StageProgress | None = None,
) -> MediaSegments:
    """Read samples and frames of spans of one recording; see `MediaReader.read_segments`.

    limits: None for the defaults of `MediaLimits`.
    """
    with MediaReader(limits) as reader:
        return reader.read_segments(path, spans, n_frames=n_frames, progress=progress)


class MediaReader:
    """Reads recordings through one decoding process, which is started early and replaced when it had to be killed.

    Safe to share between threads: calls wait for each other. Use as a context manager, or call `close`.

    Raises: MissingExtraError: without the `media` extra.
    """

    def __init__(self, limits: MediaLimits | None = None) -> None:
        for module, package in (("av", "av"), ("PIL", "pillow")):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(package, extra="media")
        self.limits = limits or MediaLimits()
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose request is being answered
        self._process: subprocess.Popen[bytes] | None = None
        tell_after_fork(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the decoding process now, without waiting for it; the first call would start it otherwise."""
        with self._exclusive():
            self._running()

    def close(self) -> None:
        """End the decoding process, also in the middle of an answer; a later call starts another one."""
        self._kill()

    def after_fork(self) -> None:
        """Forget the decoding process, which belongs to the parent process; the next call starts another one."""
        self._lock = threading.Lock()
        self._owner = None
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # no child of this process: nothing to wait for

    def probe(self, path: Path) -> MediaInfo:
        """Read the facts of one recording.

        Raises: MediaError: not readable as media, or above a limit.
        """
        return self.read_segments(path, ()).info

    def read_segments(
        self,
        path: Path,
        spans: Sequence[tuple[float, float]],
        *,
        n_frames: int = 3,
        progress: StageProgress | None = None,
    ) -> MediaSegments:
        """Read samples and frames of spans of one recording, all in memory.

        spans: (start_s, end_s) from the recording's start, in any order, overlapping or past its end.
        n_frames: frames per span, evenly spaced by time (the middles of equal parts); 0 for none.
        progress: called with the number of spans done and of all spans, from the calling thread.
        Raises: MediaError: the file cannot be read, breaks a limit or takes too long, or a span is not a stretch of
            time. A span that holds nothing is no error; its segment says what is missing and why.
        """
        segments: list[Segment | None] = [None] * len(spans)
        facts: dict[str, Any] = {}
        n_bytes = 0
        for done, (index, segment) in enumerate(self._segments(path, spans, n_frames, facts), start=1):
            segments[index] = segment
            n_bytes += sum(array.nbytes for array in (segment.samples, segment.frames) if array is not None)
            if n_bytes > self.limits.max_result_bytes:
                raise MediaError(
                    f"{display_name(path)}: its segments take more than {self.limits.max_result_bytes:,} bytes",
                    hint="read fewer spans at a time, or use MediaReader.iter_segments",
                )
            if progress is not None:
                progress(done, len(spans))
        return MediaSegments(facts["info"], tuple(s for s in segments if s is not None), tuple(facts["notes"]))

    def iter_segments(
        self, path: Path, spans: Sequence[tuple[float, float]], *, n_frames: int = 3
    ) -> Iterator[tuple[int, Segment]]:
        """Yield the segments of `read_segments` one at a time, each with its span's index, in the order of starts.

        Memory holds one segment. Other calls of this reader wait until the iterator is used up or closed.
        """
        return self._segments(path, spans, n_frames, {})

    def _segments(
        self, path: Path, spans: Sequence[tuple[float, float]], n_frames: int, facts: dict[str, Any]
    ) -> Iterator[tuple[int, Segment]]:
        """Request spans and yield their segments; `facts` receives `info` and `notes`."""
        name = display_name(path)
        request = {
            "path": os.path.abspath(path),  # noqa: PTH100 (resolve() would follow links)
            "spans": _checked_spans(name, spans, self.limits),
            "n_frames": _checked_n_frames(n_frames),
            "limits": self.limits.to_dict(),
        }
        with self._exclusive():
            finished = False
            try:
                yield from Exchange(self._running(), self.limits, name).run(request, facts)
                finished = True
            except RefusalError as refused:
                finished = True  # only the recording is broken: the process can take the next request
                raise refused.error from None
            finally:
                if not finished:
                    self._kill()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Wait until no other thread's request is being answered, and keep other threads out meanwhile.

        Raises: RuntimeError: a request of this very thread is being answered, and it would wait for itself.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("use up or close the reader's segment iterator before the next call")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _running(self) -> subprocess.Popen[bytes]:
        """The decoding process, started where none is alive."""
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            self._process = start_decoder()
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            kill_decoder(process)


def display_name(path: Path) -> str:
    """A file's name for a message: without its folder, which may say more than a log should hold."""
    return printable_line(Path(path).name or path)


def _checked_spans(name: str, spans: Sequence[tuple[float, float]], limits: MediaLimits) -> list[tuple[float, float]]:
    """Spans as plain numbers.

    Raises: MediaError: too many, not finite, before the start, backwards or past `max_duration_s`.
    """
    if len(spans) > limits.max_spans:
        raise MediaError(
            f"{name}: {len(spans):,} spans, above the limit of {limits.max_spans:,}",
            hint="read them in parts, or raise MediaLimits.max_spans",
        )
    checked = []
    for start_s, end_s in spans:
        if not (math.isfinite(start_s) and math.isfinite(end_s)) or start_s < 0:
            raise MediaError(f"{name}: a span from {start_s} to {end_s} s is not a stretch of a recording")
        if end_s < start_s:
            raise MediaError(f"{name}: a span ends at {end_s:.3f} s, before it starts at {start_s:.3f} s")
        if end_s > limits.max_duration_s:
            raise MediaError(
                f"{name}: a span ends at {end_s:,.0f} s, above the limit of {limits.max_duration_s:,.0f} s",
                hint="check the transcript's times, or raise MediaLimits.max_duration_s",
            )
        checked.append((float(start_s), float(end_s)))
    return checked


def _checked_n_frames(n_frames: int) -> int:
    """Frames per span.

    Raises: MediaError: negative or above `MAX_FRAMES_PER_SPAN`.
    """
    if not 0 <= n_frames <= MAX_FRAMES_PER_SPAN:
        raise MediaError(f"{n_frames} frames per span, where 0 to {MAX_FRAMES_PER_SPAN} are possible")
    return int(n_frames)
