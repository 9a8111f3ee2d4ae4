"""The decoding process, started by `decoder_process`; it can be killed at any time.

Reads requests from standard input and answers on standard output (`protocol`), until standard input ends. Before the
first request it gives up the rights that decoding does not need: it can no longer write to a file or dump core, and its
memory, processor time and open files are limited, where the system has such limits. It prints nothing, stores nothing
of a recording, and imports neither numpy nor the rest of the runtime, so that it starts fast.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from io import BufferedIOBase
from typing import Any, cast

import av

from mechm_runtime.errors import MediaError
from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.protocol import MAX_REQUEST_BYTES, read_header, write_message
from mechm_runtime.media.recording import Recordings

MAX_OPEN_FILES = 64


def main() -> None:
    """Answer requests until standard input ends."""
    requests = cast(BufferedIOBase, sys.stdin.buffer)
    replies = cast(BufferedIOBase, os.fdopen(os.dup(1), "wb"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # output that a library prints must not mix with the replies
    give_up_rights()
    recordings = Recordings()
    while (request := read_header(requests, max_bytes=MAX_REQUEST_BYTES)) is not None:
        limits = MediaLimits.from_dict(request["limits"])
        limit_resources(limits)
        try:
            answer(request, limits, recordings, replies)
        except MediaError as error:
            write_message(replies, {"kind": "error", "message": str(error), "hint": error.hint})
        except (MemoryError, av.error.MemoryError):
            write_message(
                replies,
                {
                    "kind": "error",
                    "message": f"needs more than {limits.memory_bytes >> 20:,} MiB of memory to decode",
                    "hint": "cut the recording, or raise MediaLimits.memory_bytes",
                },
            )


def give_up_rights() -> None:
    """Limit for the whole life of the process what no request needs."""
    try:
        import resource
    except ImportError:  # Windows: the reader's timeout is the only limit there
        return
    for name, cap in (("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", MAX_OPEN_FILES)):
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (cap, cap))


def limit_resources(limits: MediaLimits) -> None:
    """Limit address space and processor time for one request; the kernel ends a process that needs more time."""
    try:
        import resource
    except ImportError:
        return
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = math.ceil(usage.ru_utime + usage.ru_stime + limits.timeout_s) + 1
    for name, cap in (("RLIMIT_AS", limits.memory_bytes), ("RLIMIT_CPU", cpu_s)):
        with suppress(AttributeError, ValueError, OSError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (cap if hard == resource.RLIM_INFINITY else min(cap, hard), hard))


def answer(request: dict[str, Any], limits: MediaLimits, recordings: Recordings, replies: BufferedIOBase) -> None:
    """Send the recording's facts, then one message per span in the order of their starts, then `done`.

    request: `path`, `spans` ([[start_s, end_s], …], empty where only the facts are wanted) and `n_frames`.
    Raises: MediaError: the recording cannot be read at all, or breaks a limit.
    """
    spans: list[tuple[float, float]] = [(start, end) for start, end in request["spans"]]
    with recordings.open(str(request["path"]), limits, keep=not spans) as recording:
        write_message(replies, {"kind": "info", "info": recording.info})
        for index in sorted(range(len(spans)), key=spans.__getitem__):
            header, arrays = recording.segment(*spans[index], n_frames=int(request["n_frames"]))
            write_message(replies, {"kind": "segment", "index": index, **header}, arrays)
        write_message(replies, {"kind": "done", "notes": recording.notes()})
