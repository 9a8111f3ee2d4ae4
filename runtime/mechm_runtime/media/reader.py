"""The caller's side of decoding: starts the decoding process, asks it, checks what it sends, kills it when it must.

`read_segments` and `probe` answer one question each; a `MediaReader` keeps the process for many recordings (a clip per
utterance, a service) and hands out segments one at a time. Nothing is decoded in the calling process, and nothing that
arrives is believed: shapes are held against the request before memory is taken, samples are checked for finiteness.
"""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from mechm_runtime.errors import MediaError, MissingExtraError
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.protocol import (
    MAX_REPLY_BYTES,
    ArraySpec,
    ProtocolError,
    array_spec,
    read_exactly,
    read_header,
    write_message,
)
from mechm_runtime.media.segments import SAMPLE_RATE, MediaInfo, MediaSegments, Segment
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.progress import StageProgress

MAX_FRAMES_PER_SPAN = 64
MAX_TEXT = 300
PIPE_BYTES = 1 << 20
"""What the decoding process may be ahead of its reader, where the system lets a pipe hold it (Linux: 64 KiB by itself).
Three frames are 2 MB: with less, each of them waits many times for the other on busy cores."""
EXIT_S = 1.0  # a process whose pipe has closed needs milliseconds to end

PASSED_ON = (
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PATH",
    "PYTHONHOME",
    "SYSTEMROOT",
    "TMP",
    "TEMP",
    "LANG",
    "LC_ALL",
)
"""The environment of the decoding process: what a Python needs to start. No keys or tokens reach it."""

START = """
import sys, types
for name, *folders in (("mechm_runtime",), ("mechm_runtime.media", "media")):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = ["/".join([sys.argv[1], *folders])]
from mechm_runtime.media.worker import main
main()
"""
"""What the decoding process runs: `worker.main`, without the `__init__` of its packages. That of `media` imports this
module and numpy, with which the process would start in 220 ms instead of 100."""


def probe(path: Path, limits: MediaLimits | None = None) -> MediaInfo:
    """The facts of one recording, from its container and first frames.

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
    """Samples and frames of spans of one recording; see `MediaReader.read_segments`.

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
        self._owner: int | None = None  # the thread whose answer is under way
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
        """Start the decoding process now, without waiting for it; a call would start it otherwise."""
        with self._turn():
            self._running()

    def close(self) -> None:
        """End the decoding process, also in the middle of an answer; a later call starts another one."""
        self._kill()

    def after_fork(self) -> None:
        """Leave the decoding process to the one that started it; a call starts another."""
        self._lock = threading.Lock()
        self._owner = None
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # no child of this process: nothing to wait for

    def probe(self, path: Path) -> MediaInfo:
        """The facts of one recording.

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
        """Samples and frames of spans of one recording, all in memory.

        spans: (start_s, end_s) from the recording's start, in any order, overlapping or past its end.
        n_frames: frames per span, evenly spaced by time (the middles of equal parts); 0 for none.
        progress: called with the spans done and their number, from the calling thread.
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
                    f"{shown(path)}: its segments take more than {self.limits.max_result_bytes:,} bytes",
                    hint="read fewer spans at a time, or use MediaReader.iter_segments",
                )
            if progress is not None:
                progress(done, len(spans))
        return MediaSegments(facts["info"], tuple(s for s in segments if s is not None), tuple(facts["notes"]))

    def iter_segments(
        self, path: Path, spans: Sequence[tuple[float, float]], *, n_frames: int = 3
    ) -> Iterator[tuple[int, Segment]]:
        """The segments of `read_segments` one at a time, each with the index of its span, in the order of their starts.

        Memory holds one segment. Other calls of this reader wait until the iterator is used up or closed.
        """
        return self._segments(path, spans, n_frames, {})

    def _segments(
        self, path: Path, spans: Sequence[tuple[float, float]], n_frames: int, facts: dict[str, Any]
    ) -> Iterator[tuple[int, Segment]]:
        """Ask for spans and yield their segments; `facts` gets `info` and `notes`."""
        name = shown(path)
        request = {
            "path": os.path.abspath(path),  # noqa: PTH100 (resolve() would follow links, which is the system's to do)
            "spans": self._checked_spans(name, spans),
            "n_frames": _checked_n_frames(n_frames),
            "limits": self.limits.to_dict(),
        }
        with self._turn():
            finished = False
            try:
                yield from _Exchange(self._running(), self.limits, name).run(request, facts)
                finished = True
            except _RefusalError as refused:
                finished = True  # the process is well, the recording is not
                raise refused.error from None
            finally:
                if not finished:
                    self._kill()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other thread's answer is under way.

        Raises: RuntimeError: this thread's own is, and would wait for itself.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("use up or close the reader's segment iterator before asking it for something else")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _checked_spans(self, name: str, spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Spans as plain numbers.

        Raises: MediaError: too many, not finite, before the start, backwards or past `max_duration_s`.
        """
        if len(spans) > self.limits.max_spans:
            raise MediaError(
                f"{name}: {len(spans):,} spans, above the limit of {self.limits.max_spans:,}",
                hint="read them in parts, or raise MediaLimits.max_spans",
            )
        checked = []
        for start_s, end_s in spans:
            if not (math.isfinite(start_s) and math.isfinite(end_s)) or start_s < 0:
                raise MediaError(f"{name}: a span from {start_s} to {end_s} s is not a stretch of a recording")
            if end_s < start_s:
                raise MediaError(f"{name}: a span ends at {end_s:.3f} s, before it starts at {start_s:.3f} s")
            if end_s > self.limits.max_duration_s:
                raise MediaError(
                    f"{name}: a span ends at {end_s:,.0f} s, above the limit of {self.limits.max_duration_s:,.0f} s",
                    hint="check the transcript's times, or raise MediaLimits.max_duration_s",
                )
            checked.append((float(start_s), float(end_s)))
        return checked

    def _running(self) -> subprocess.Popen[bytes]:
        """The decoding process, started where there is none alive."""
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._process is None:
            environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
            environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and words, no shell)
                # -P: the folder of the caller's shell is no place to import from.
                [sys.executable, "-P", "-c", START, str(Path(__file__).parents[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            _widen(self._process.stdout)
        return self._process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # a request that it did not live to read
                    stream.close()
        process.wait()


def _widen(pipe: IO[bytes] | None) -> None:
    """Let a pipe hold `PIPE_BYTES`, where there is that and the user's pipes may."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        if pipe is not None:
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


class _RefusalError(Exception):
    """The decoding process answered that it cannot read the recording."""

    def __init__(self, error: MediaError) -> None:
        super().__init__(str(error))
        self.error = error


class _Exchange:
    """One request and its replies, under one time limit."""

    def __init__(self, process: subprocess.Popen[bytes], limits: MediaLimits, name: str) -> None:
        self._process = process
        self._requests = cast(BufferedIOBase, process.stdin)  # both are pipes, see MediaReader._running
        self._replies = cast(BufferedIOBase, process.stdout)
        self._limits = limits
        self._name = name
        self._left_s = limits.timeout_s
        self._timed_out = False

    def run(self, request: dict[str, Any], facts: dict[str, Any]) -> Iterator[tuple[int, Segment]]:
        """Send the request and yield segments until the process says that it is done.

        Raises: _RefusalError: the recording cannot be read; MediaError: the process failed or was killed.
        """
        spans: list[tuple[float, float]] = request["spans"]
        waiting = set(range(len(spans)))
        try:
            with self._clock():
                write_message(self._requests, request)
            while True:
                with self._clock():
                    header = read_header(self._replies, max_bytes=MAX_REPLY_BYTES)
                    kind = None if header is None else header.get("kind")
                    if header is not None and kind == "segment":
                        index = _index(header, waiting)
                        segment = self._segment(header, spans[index], request["n_frames"])
                if header is None:
                    raise ProtocolError("the stream ended")
                if kind == "segment":
                    waiting.remove(index)
                    yield index, segment
                elif kind == "info":
                    facts["info"] = _info(header.get("info"))
                elif kind == "error":
                    raise _RefusalError(
                        MediaError(f"{self._name}: {_text(header.get('message'))}", hint=_text(header.get("hint")))
                    )
                elif kind == "done" and not waiting and "info" in facts:
                    notes = header.get("notes")
                    facts["notes"] = [_text(note) for note in notes] if isinstance(notes, list) else []
                    return
                else:
                    raise ProtocolError(f"a message out of order: {kind!r}")
        except (ProtocolError, OSError) as error:
            raise self._failure() from error
        except ValueError as error:
            if not self._replies.closed:
                raise
            raise MediaError(f"{self._name}: the reader was closed before it was done") from error

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Count the time inside against the limit, and kill the process when none is left."""
        timer = threading.Timer(self._left_s, self._give_up)
        timer.daemon = True
        begun_s = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._left_s = max(0.0, self._left_s - (time.monotonic() - begun_s))

    def _give_up(self) -> None:
        self._timed_out = True
        self._process.kill()  # the read that waits for it sees the end of the stream

    def _failure(self) -> MediaError:
        """The error for a process that stopped, was killed or sent something else than a message."""
        try:
            code = self._process.wait(EXIT_S)  # one that stopped by itself tells why
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        cpu_limit: int | None = getattr(signal, "SIGXCPU", None)  # not a signal of every system
        if self._timed_out or (cpu_limit is not None and code == -cpu_limit):
            return MediaError(
                f"{self._name}: decoding took longer than {self._limits.timeout_s:g} s",
                hint="cut the recording, or raise MediaLimits.timeout_s",
            )
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return MediaError(
            f"{self._name}: the decoding process failed on it ({how})",
            hint="convert it to mp4 (H.264, AAC) or wav; `mechm doctor` tells whether decoding works here at all",
        )

    def _segment(self, header: dict[str, Any], span: tuple[float, float], n_frames: int) -> Segment:
        """Read the arrays of one segment.

        Raises: ProtocolError: not what was asked for, or larger.
        """
        start_s, end_s = span
        listed = header.get("arrays")
        reasons = header.get("missing")
        if not isinstance(listed, list) or not isinstance(reasons, dict):
            raise ProtocolError("a segment without arrays or reasons")
        missing = {key: _text(reasons[key]) for key in ("audio", "video") if key in reasons}
        expected = [key for key in ("samples", "frames") if header.get(key) is True]
        if len(listed) != len(expected):
            raise ProtocolError("a segment with another number of arrays than it says")
        arrays: dict[str, NDArray[Any]] = {}
        for key, entry in zip(expected, listed, strict=True):
            if key == "samples":
                most = (math.ceil((end_s - start_s) * SAMPLE_RATE) + 1,)
                arrays[key] = self._array(array_spec(entry, dtype="float32", max_shape=most))
            else:
                side = self._limits.max_side
                arrays[key] = self._array(array_spec(entry, dtype="uint8", max_shape=(n_frames, side, side, 3)))
        samples = arrays.get("samples")
        if samples is not None and not np.isfinite(samples).all():
            samples, missing["audio"] = None, "its samples are not numbers"
        if samples is not None:
            np.clip(samples, -1.0, 1.0, out=samples)
        frames = arrays.get("frames")
        if frames is not None:
            if frames.shape[-1] != 3:
                raise ProtocolError("frames without three colours")
            frames = _turned(frames, header.get("turn", [False, False, False]))
        return Segment(start_s, end_s, samples, frames, missing)

    def _array(self, spec: ArraySpec) -> NDArray[Any]:
        array = np.empty(spec.shape, dtype=np.dtype(spec.dtype).newbyteorder("<"))
        read_exactly(self._replies, array.data.cast("B"))
        return array.astype(spec.dtype, copy=False)


def _index(header: dict[str, Any], waiting: set[int]) -> int:
    """The span a segment belongs to.

    Raises: ProtocolError: none that is still waited for.
    """
    index = header.get("index")
    if not isinstance(index, int) or index not in waiting:
        raise ProtocolError("a segment that was not asked for")
    return index


def _turned(frames: NDArray[np.uint8], turn: object) -> NDArray[np.uint8]:
    """Frames (n, height, width, 3) turned upright: axes swapped first, then mirrored.

    Raises: ProtocolError: `turn` is not three flags.
    """
    if not isinstance(turn, list) or len(turn) != 3 or not all(isinstance(flag, bool) for flag in turn):
        raise ProtocolError("a turn that is not three flags")
    transpose, flip_x, flip_y = turn
    if transpose:
        frames = frames.swapaxes(1, 2)
    if flip_x:
        frames = frames[:, :, ::-1]
    if flip_y:
        frames = frames[:, ::-1]
    return np.ascontiguousarray(frames)


def _info(sent: object) -> MediaInfo:
    """The facts as the process sent them.

    Raises: ProtocolError: a field of another type than `MediaInfo` has.
    """
    if not isinstance(sent, dict):
        raise ProtocolError("facts that are not an object")

    def number(key: str) -> float | None:
        value = sent.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ProtocolError(f"a fact {key} that is not a number")
        return float(value)

    def whole(key: str) -> int | None:
        value = number(key)
        return None if value is None else int(value)

    def word(key: str) -> str | None:
        return None if sent.get(key) is None else _text(sent[key])

    return MediaInfo(
        container=word("container") or "",
        duration_s=number("duration_s"),
        has_audio=sent.get("has_audio") is True,
        has_video=sent.get("has_video") is True,
        audio_missing=word("audio_missing") or "",
        video_missing=word("video_missing") or "",
        audio_codec=word("audio_codec"),
        sample_rate=whole("sample_rate"),
        channels=whole("channels"),
        video_codec=word("video_codec"),
        width=whole("width"),
        height=whole("height"),
        rotation_degrees=whole("rotation_degrees") or 0,
        mirrored=sent.get("mirrored") is True,
    )


def _text(sent: object) -> str:
    """One printable line of limited length, whatever was sent."""
    return "".join(character if character.isprintable() else "?" for character in str(sent)[:MAX_TEXT])


def shown(path: Path) -> str:
    """A file's name for a message: without its folder, which may say more than a log should hold."""
    return _text(Path(path).name or path)


def _checked_n_frames(n_frames: int) -> int:
    """Frames per span, checked.

    Raises: MediaError: negative or above `MAX_FRAMES_PER_SPAN`.
    """
    if not 0 <= n_frames <= MAX_FRAMES_PER_SPAN:
        raise MediaError(f"{n_frames} frames per span, where 0 to {MAX_FRAMES_PER_SPAN} are possible")
    return int(n_frames)
