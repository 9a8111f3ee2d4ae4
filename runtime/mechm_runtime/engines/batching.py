"""Join runs of one graph that several callers ask for at the same time. No run waits for others to come.

A run that is asked for while the graph is free starts at once. Those that are asked for while it is busy queue; when it
is free, the first of them takes along what can be joined with it. It pays where a larger batch costs less than its
parts, as on GPUs; `benchmarks/batching.py` measures it on a machine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mechm_runtime.bundle.modality import ENCODER_PARTS, MODALITY_SPECS, Padding
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import InputError
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.time_limit import OutOfTimeError, wait_s


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Limits of joined runs.

    max_rows: of a joined batch; a caller that brings more runs by itself.
    max_runs: how many runs may be under way before callers queue: 1 on a GPU, on a CPU as many as there are cores that
        a run leaves idle.
    max_padding: the part of a joined batch that may be padding, where inputs of different lengths are joined.

    Raises: InputError: a value out of range.
    """

    max_rows: int = 32
    max_runs: int = 1
    max_padding: float = 0.25

    def __post_init__(self) -> None:
        if min(self.max_rows, self.max_runs) < 1 or not 0 <= self.max_padding < 1:
            raise InputError("a batch has at least one row and one run, and is not padding alone")


FUSION_PADDING = Padding(
    dict.fromkeys(
        (
            "utterance_mask",
            *(name for spec in MODALITY_SPECS for name in (spec.name, spec.mask)),
            "speaker_ids",
        ),
        (1,),
    ),
    {"emotion_logits": (1,), "hidden_states": (1,), "pair_logits": (1, 2)},
)
PADDING: Mapping[str, Padding | None] = {
    **{part.name: part.padding for part in ENCODER_PARTS if part.is_batched},
    "fusion": FUSION_PADDING,
}
"""Part of a bundle -> how its runs are joined across conversations; None joins equal shapes only. Runs of parts that
are not listed are not joined."""


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's run. It is `ready` when it has its outputs, or its error, or is to run by itself (neither)."""

    inputs: Arrays
    n_rows: int
    length: int
    kind: tuple[Any, ...]
    ready: threading.Event = field(default_factory=threading.Event)
    outputs: dict[str, Array] | None = None
    error: Exception | None = None
    is_abandoned: bool = False


class BatchingRunner:
    """A graph that joins what different threads ask of it. `run` may be called from any number of them.

    The first in the queue always runs next, so that nobody starves. Where a joined run fails, its requests are run one
    by one: an error reaches only whose it is. A caller who gives up while it waits (an interrupt, or the time limit of
    its request) leaves the queue.
    """

    def __init__(self, runner: GraphRunner, config: BatchConfig, padding: Padding | None = None) -> None:
        """padding: where inputs of different lengths may be joined; None joins equal shapes only."""
        self._runner = runner
        self._config = config
        self._padding = padding
        self._queue: deque[_Request] = deque()
        self._n_runs = 0
        self._lock = threading.Lock()
        self.n_joined = 0
        """Requests that were run together with others so far."""
        tell_after_fork(self)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name, as the graph gives them.

        Raises: what the graph does. OutOfTimeError: the request's time limit passed in the queue.
        """
        request = self._request(inputs)
        with self._lock:
            if self._n_runs < self._config.max_runs:
                self._n_runs += 1
                request.ready.set()
            else:
                self._queue.append(request)
        try:
            if not request.ready.wait(wait_s()):
                self._withdraw(request)
            request.ready.wait()
        except BaseException:
            self._leave(request)
            raise
        if request.error is not None:
            raise request.error
        if request.outputs is not None:
            return request.outputs
        return self._lead(request)

    def after_fork(self) -> None:
        """Go on without other threads: whoever ran or queued is not there."""
        self._lock = threading.Lock()
        self._queue.clear()
        self._n_runs = 0

    def _request(self, inputs: Arrays) -> _Request:
        kind = []
        for name in sorted(inputs):
            shape: list[int] = list(inputs[name].shape[1:])
            for axis in () if self._padding is None else self._padding.inputs.get(name, ()):
                shape[axis - 1] = -1
            kind.append((name, inputs[name].dtype.str, tuple(shape)))
        length = 0
        if self._padding is not None:
            name, axes = next(iter(self._padding.inputs.items()))
            length = inputs[name].shape[axes[0]]
        return _Request(inputs, len(next(iter(inputs.values()))), length, tuple(kind))

    def _lead(self, request: _Request) -> dict[str, Array]:
        """Run a request, and with it what has queued and fits; then hand the graph to the first who still waits."""
        batch = [request]
        try:
            batch += self._company(request)
            if len(batch) == 1:
                return self._runner.run(request.inputs)
            self._run_joined(batch)
        finally:
            with self._lock:
                # Left without an answer (an interrupt): back to the head of the queue.
                left = [r for r in batch[1:] if r.outputs is None and r.error is None]
                self._queue.extendleft(reversed(left))
                self._pass_on()
            for other in batch[1:]:
                if other not in left:
                    other.ready.set()
        if request.outputs is None:
            raise request.error or RuntimeError("a request without an answer")
        return request.outputs

    def _company(self, request: _Request) -> list[_Request]:
        """Take from the queue what can be joined with a request, in order."""
        taken: list[_Request] = []
        n_rows, used, longest = request.n_rows, request.n_rows * request.length, request.length
        with self._lock:
            for other in [r for r in self._queue if not r.is_abandoned]:
                rows, widest = n_rows + other.n_rows, max(longest, other.length)
                filled = used + other.n_rows * other.length
                if (
                    other.kind == request.kind
                    and rows <= self._config.max_rows
                    and filled >= (1 - self._config.max_padding) * rows * widest
                ):
                    self._queue.remove(other)
                    taken.append(other)
                    n_rows, used, longest = rows, filled, widest
            if taken:
                self.n_joined += 1 + len(taken)
        return taken

    def _run_joined(self, batch: Sequence[_Request]) -> None:
        """Give every request of a batch its outputs or its error."""
        try:
            outputs = self._runner.run(self._joined(batch))
        except Exception:  # noqa: BLE001 (whose error it is shows when each is run by itself)
            for request in batch:
                try:
                    request.outputs = self._runner.run(request.inputs)
                except Exception as error:  # noqa: BLE001 (it is raised where it belongs)
                    request.error = error
            return
        first = 0
        for request in batch:
            request.outputs = {
                name: self._cut(name, array[first : first + request.n_rows], request.length)
                for name, array in outputs.items()
            }
            first += request.n_rows

    def _joined(self, batch: Sequence[_Request]) -> dict[str, Array]:
        longest = max(request.length for request in batch)
        joined = {}
        for name in batch[0].inputs:
            arrays = [request.inputs[name] for request in batch]
            axes = () if self._padding is None else self._padding.inputs.get(name, ())
            joined[name] = np.concatenate([_padded(array, axes, longest) for array in arrays])
        return joined

    def _cut(self, name: str, rows: Array, length: int) -> Array:
        """Some rows of an output without what was padded; a copy, which keeps no other caller's rows in memory."""
        window = [slice(None)] * rows.ndim
        for axis in () if self._padding is None else self._padding.outputs.get(name, ()):
            window[axis] = slice(length)
        return np.array(rows[tuple(window)])

    def _withdraw(self, request: _Request) -> None:
        """Take a request out of the queue, unless its run goes on already: that is waited for.

        Raises: OutOfTimeError: it was taken out.
        """
        with self._lock:
            if request not in self._queue:
                return
            self._queue.remove(request)
        raise OutOfTimeError

    def _leave(self, request: _Request) -> None:
        """Give up a request that waits, or the turn that it was just given."""
        with self._lock:
            request.is_abandoned = True  # it may be in a batch that comes back to the queue
            if request.ready.is_set() and request.outputs is None and request.error is None:
                self._pass_on()

    def _pass_on(self) -> None:
        """Give the turn to the first in the queue, or free it. The lock is held."""
        while self._queue:
            request = self._queue.popleft()
            if not request.is_abandoned:
                request.ready.set()
                return
        self._n_runs -= 1


def _padded(array: Array, axes: Sequence[int], length: int) -> Array:
    widths = [(0, length - array.shape[axis] if axis in axes else 0) for axis in range(array.ndim)]
    return np.pad(array, widths) if any(after for _, after in widths) else array
