"""Cache of encoder outputs by input content, so that the same content is not encoded twice.

An `OutputCache` holds outputs in memory, the least recently used go first; where a folder is configured, on disk too. A
`CachedRunner` is a graph that looks there before it runs. The key is a SHA-256 over what identifies the graph and over
every input's name, dtype, shape and bytes, so that no two contents share outputs. By default nothing is written.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.output_store import Outputs, OutputStore
from mechm_runtime.errors import InputError
from mechm_runtime.system.after_fork import tell_after_fork
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.time_limit import OutOfTimeError, wait_s

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Sizes of the cache of encoder outputs.

    memory_bytes: of all outputs in memory together; 0 keeps none there.
    folder: where outputs are kept on disk; None writes nothing. They are features of people's words, voices and faces:
        treat the folder as you treat the recordings.
    folder_bytes: of all files there together.

    Raises: InputError: a negative size.
    """

    memory_bytes: int = 64 * MIB
    folder: Path | None = None
    folder_bytes: int = 1024 * MIB

    def __post_init__(self) -> None:
        if min(self.memory_bytes, self.folder_bytes) < 0:
            raise InputError("a cache cannot hold fewer than 0 bytes")

    @property
    def remembers(self) -> bool:
        """Whether any outputs are kept."""
        return self.memory_bytes > 0 or self.folder is not None


NO_CACHE = CacheConfig(memory_bytes=0)
"""Every graph is run every time, as measurements want it."""


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Counts of a cache's use so far.

    n_hits: outputs that were there, or under way for another caller. n_misses: those that had to be computed.
    n_bytes: outputs in memory.
    """

    n_hits: int
    n_misses: int
    n_bytes: int


class _Pending:
    """Outputs that some thread is computing. outputs: None where that failed."""

    __slots__ = ("done", "outputs")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.outputs: Outputs | None = None


class OutputCache:
    """Outputs by key. Threads that ask for the same at the same time compute it once.

    What comes out is read-only: it is shared.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._max_bytes = config.memory_bytes
        self._store = None if config.folder is None else OutputStore(config.folder, config.folder_bytes)
        self._entries: OrderedDict[str, Outputs] = OrderedDict()
        self._n_hits = self._n_misses = self._n_bytes = 0
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()
        tell_after_fork(self)

    def fetch(self, keys: Sequence[str], compute: Callable[[Sequence[int]], Sequence[Outputs]]) -> list[Outputs]:
        """The outputs of some keys, of which those that nobody has yet are computed together.

        compute: positions in `keys` -> their outputs, in that order. What it raises reaches this caller; others who
            waited for the same compute for themselves.
        Raises: OutOfTimeError: the request's time limit passed while another caller computed.
        """
        found: list[Outputs | None] = [None] * len(keys)
        while missing := [position for position, outputs in enumerate(found) if outputs is None]:
            mine: dict[int, _Pending] = {}
            try:
                theirs = self._claim(keys, missing, found, mine)
                self._work(keys, mine, compute, found)
            finally:  # also of what an interrupt stopped: others wait for it
                self._hand_over(keys, mine, found)
            for position, pending in theirs.items():
                if not pending.done.wait(wait_s()):
                    raise OutOfTimeError
                found[position] = pending.outputs
        return [outputs for outputs in found if outputs is not None]

    @property
    def counts(self) -> CacheCounts:
        """Counts of its use so far."""
        with self._lock:
            return CacheCounts(self._n_hits, self._n_misses, self._n_bytes)

    def clear(self) -> None:
        """Drop what is in memory; files stay."""
        with self._lock:
            self._entries.clear()
            self._n_bytes = 0

    def _claim(
        self, keys: Sequence[str], missing: Sequence[int], found: list[Outputs | None], mine: dict[int, _Pending]
    ) -> dict[int, _Pending]:
        """Take what is in memory; `mine` gets what this thread is to compute. Returns what another one is computing.

        A key that comes twice is computed for its first position.
        """
        theirs: dict[int, _Pending] = {}
        with self._lock:
            for position in missing:
                key = keys[position]
                if key in self._entries:
                    self._entries.move_to_end(key)
                    found[position] = self._entries[key]
                elif key in self._pending:
                    theirs[position] = self._pending[key]
                else:
                    mine[position] = self._pending[key] = _Pending()
            self._n_hits += len(missing) - len(mine)
        return theirs

    def _work(
        self,
        keys: Sequence[str],
        mine: Mapping[int, _Pending],
        compute: Callable[[Sequence[int]], Sequence[Outputs]],
        found: list[Outputs | None],
    ) -> None:
        """Read what this thread has claimed from disk, or compute it."""
        unknown = []
        for position in mine:
            stored = None if self._store is None else self._store.find(keys[position])
            if stored is None:
                unknown.append(position)
            else:
                found[position] = _read_only(stored)
        with self._lock:
            self._n_hits += len(mine) - len(unknown)
            self._n_misses += len(unknown)
        if not unknown:
            return
        for position, outputs in zip(unknown, compute(unknown), strict=True):
            found[position] = _read_only(outputs)
            if self._store is not None:
                self._store.keep(keys[position], outputs)

    def _hand_over(self, keys: Sequence[str], mine: Mapping[int, _Pending], found: Sequence[Outputs | None]) -> None:
        """Keep what was computed, and wake the threads that wait for it."""
        with self._lock:
            for position, pending in mine.items():
                pending.outputs = found[position]
                if pending.outputs is not None:
                    self._remember(keys[position], pending.outputs)
                self._pending.pop(keys[position], None)
        for pending in mine.values():
            pending.done.set()

    def _remember(self, key: str, outputs: Outputs) -> None:
        size = _size(outputs)
        if size > self._max_bytes:
            return
        self._entries[key] = outputs
        self._n_bytes += size
        while self._n_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._n_bytes -= _size(oldest)

    def after_fork(self) -> None:
        """Go on without other threads: what they were computing nobody will."""
        self._lock = threading.Lock()
        self._pending.clear()
        if self._store is not None:
            self._store.after_fork()


class CachedRunner:
    """A graph that runs only on inputs whose outputs are not in a cache.

    cache: may be shared by several graphs. identity: two graphs with the same one give the same outputs: the bundle's
        id, the part, its precision, the engine. by_row: whether a batch's rows are looked up one by one, and those that
        are not known are run together; for graphs whose rows do not depend on each other, and that have one batch axis,
        the first.
    """

    def __init__(self, runner: GraphRunner, cache: OutputCache, identity: Sequence[str], *, by_row: bool) -> None:
        self._runner = runner
        self._cache = cache
        self._by_row = by_row
        self._seed = hashlib.sha256()
        for word in (*identity, "by row" if by_row else "whole"):
            self._seed.update(len(word).to_bytes(4, "big") + word.encode())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name, as the graph gives them. Raises what the graph does."""
        if not self._by_row:
            (outputs,) = self._cache.fetch([self._key(inputs)], lambda _: [self._runner.run(inputs)])
            return {name: array.copy() for name, array in outputs.items()}
        (n_rows,) = {len(array) for array in inputs.values()}
        keys = [self._key({name: array[row] for name, array in inputs.items()}) for row in range(n_rows)]
        rows = self._cache.fetch(keys, lambda unknown: self._rows(inputs, unknown))
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _rows(self, inputs: Arrays, which: Sequence[int]) -> list[Outputs]:
        """The outputs of some rows, each by itself."""
        outputs = self._runner.run({name: array[list(which)] for name, array in inputs.items()})
        # Copies: a view would keep the whole batch in memory.
        return [{name: np.array(array[row]) for name, array in outputs.items()} for row in range(len(which))]

    def _key(self, inputs: Arrays) -> str:
        digest = self._seed.copy()
        for name in sorted(inputs):
            words = f"{name} {inputs[name].dtype.str} {inputs[name].shape}".encode()
            digest.update(len(words).to_bytes(4, "big") + words)
            digest.update(np.ascontiguousarray(inputs[name]).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


def _read_only(outputs: Outputs) -> Outputs:
    for array in outputs.values():
        array.flags.writeable = False
    return outputs


def _size(outputs: Outputs) -> int:
    return sum(array.nbytes for array in outputs.values())
