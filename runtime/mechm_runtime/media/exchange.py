"""One request to the decoding process and its replies, under one time limit.

Every reply is checked (`replies`) before it is used, since the process decodes data that may be hostile.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import Any, cast

from mechm_runtime.errors import MediaError
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.protocol import MAX_REPLY_BYTES, ProtocolError, read_header, write_message
from mechm_runtime.media.replies import parse_index, parse_info, parse_notes, printable_line, read_segment
from mechm_runtime.media.segments import Segment
from mechm_runtime.system.time_limit import OutOfTimeError, wait_s

EXIT_S = 1.0  # a process whose pipe has closed needs milliseconds to end


class RefusalError(Exception):
    """The decoding process answered that it cannot read the recording; the process itself can go on.

    error: the `MediaError` to raise to the caller.
    """

    def __init__(self, error: MediaError) -> None:
        super().__init__(str(error))
        self.error = error


class Exchange:
    """One request and its replies.

    process: has pipes for `stdin` and `stdout`. limits: `timeout_s` counts the time spent waiting for the process, not
    the time in which the caller uses a segment. name: of the recording, for messages. The time limit of the caller's
    request (`system.time_limit`) ends it too.
    """

    def __init__(self, process: subprocess.Popen[bytes], limits: MediaLimits, name: str) -> None:
        self._process = process
        self._requests = cast(BufferedIOBase, process.stdin)  # both are pipes, see `start_decoder`
        self._replies = cast(BufferedIOBase, process.stdout)
        self._limits = limits
        self._name = name
        self._left_s = limits.timeout_s
        self._timed_out = False
        self._is_late = False

    def run(self, request: dict[str, Any], facts: dict[str, Any]) -> Iterator[tuple[int, Segment]]:
        """Send the request and yield (index of the span, segment) until the process says that it is done.

        facts: receives `info` (a `MediaInfo`) and `notes` (a list of lines).
        Raises: RefusalError: the recording cannot be read; MediaError: the process failed or was killed;
            OutOfTimeError: the time limit of the caller's request passed.
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
                        index = parse_index(header, waiting)
                        segment = read_segment(
                            self._replies, header, spans[index], request["n_frames"], self._limits.max_side
                        )
                if header is None:
                    raise ProtocolError("the stream ended")
                if kind == "segment":
                    waiting.remove(index)
                    yield index, segment
                elif kind == "info":
                    facts["info"] = parse_info(header.get("info"))
                elif kind == "error":
                    message, hint = printable_line(header.get("message")), printable_line(header.get("hint"))
                    raise RefusalError(MediaError(f"{self._name}: {message}", hint=hint))
                elif kind == "done" and not waiting and "info" in facts:
                    facts["notes"] = parse_notes(header.get("notes"))
                    return
                else:
                    raise ProtocolError(f"a message out of order: {kind!r}")
        except (ProtocolError, OSError) as error:
            if self._is_late:
                raise OutOfTimeError from error
            raise self._failure() from error
        except ValueError as error:
            if not self._replies.closed:
                raise
            raise MediaError(f"{self._name}: the reader was closed before it was done") from error

    @contextmanager
    def _clock(self) -> Iterator[None]:
        """Subtract the time inside from the time that is left, and kill the process when none is left."""
        limit_s = wait_s()
        if limit_s is not None and limit_s < self._left_s:
            timer = threading.Timer(limit_s, self._end_late)
        else:
            timer = threading.Timer(self._left_s, self._time_out)
        timer.daemon = True
        begun_s = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._left_s = max(0.0, self._left_s - (time.monotonic() - begun_s))

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()  # the read that waits for it sees the end of the stream

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _failure(self) -> MediaError:
        """The error for a process that stopped, was killed, or sent something that is not a valid message."""
        try:
            code = self._process.wait(EXIT_S)  # the exit code of a process that stopped by itself gives the reason
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
            hint="convert it to mp4 (H.264, AAC) or wav; `mechm doctor` checks whether decoding works on this machine",
        )
