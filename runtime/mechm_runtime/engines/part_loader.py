"""Load parts of a bundle: chooses the file, the engine and the threads, and adds caching and joining of runs.

A part is loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.bundle.modality import ENCODER_PARTS
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.batching import PADDING, BatchConfig, BatchingRunner
from mechm_runtime.engines.load import load_built_engine, load_engine
from mechm_runtime.engines.output_cache import CachedRunner, OutputCache
from mechm_runtime.engines.run_queue import QueuedRunner, RunQueue
from mechm_runtime.engines.spec import GPU_ENGINE
from mechm_runtime.engines.threads_by_length import MEL, SHORT_MEL_FRAMES, ThreadsByLength
from mechm_runtime.errors import BundleError, InputError

SINGLE_THREADED_PARTS = frozenset(part.name for part in ENCODER_PARTS if part.is_single_threaded)
"""Parts that compute in one thread always."""

FINAL_PART = "fusion"
"""The part that puts a result together. It is small, and does not queue: the request has had its turns."""

CACHED_PARTS = {part.name: part.cached == "rows" for part in ENCODER_PARTS}
"""Parts whose outputs an output cache keeps, where there is one -> whether row by row (frame by frame)."""


class PartLoader:
    """Loads parts of a bundle.

    precisions: part -> precision; what the bundle has for the engine for parts that are not named or have None.
    cache: where outputs of encoders are kept; None keeps none. batching: how runs of several callers are joined; None
        joins none. queue: for runs of requests with a time limit that are not joined; None for no queue.
    Raises: BundleError: a part or a precision of it that was asked for is not there. InputError: the engine does not
        run it. Both now rather than when the first recording comes.
    """

    def __init__(
        self,
        bundle: Bundle,
        precisions: Mapping[str, str | None],
        config: EngineConfig,
        *,
        cache: OutputCache | None = None,
        batching: BatchConfig | None = None,
        queue: RunQueue | None = None,
    ) -> None:
        self._bundle = bundle
        self._config = config
        self._cache = cache
        self._batching = batching
        self._queue = queue
        self._precisions = {name: precision for name, precision in precisions.items() if precision is not None}
        for name, precision in self._precisions.items():
            self._check(name, precision)

    def __call__(self, part: PartFiles) -> GraphRunner:
        """The runner of a part.

        Raises: MissingExtraError, ProviderError, BundleError.
        """
        runner = self._load(part)
        config, precision = self._config, self.precision(part)
        # In onnxruntime's int8 one scale serves a whole batch: a row's outputs depend on the rows beside it.
        rows_are_alone = precision != "int8"
        if self._batching is not None and rows_are_alone and part.name in PADDING:
            runner = BatchingRunner(runner, self._batching, PADDING[part.name])
        elif self._queue is not None and part.name != FINAL_PART:
            runner = QueuedRunner(runner, self._queue)
        if self._cache is not None and part.name in CACHED_PARTS:
            identity = (self._bundle.id, part.name, precision, config.engine, config.execution_provider)
            runner = CachedRunner(runner, self._cache, identity, by_row=rows_are_alone and CACHED_PARTS[part.name])
        return runner

    def _load(self, part: PartFiles) -> GraphRunner:
        if self._config.spec.is_built:
            return load_built_engine(self._bundle, part.name, self._config)
        precision = self.precision(part)
        self._check(part.name, precision)
        path, config = self._bundle.path(part.files[precision]), self._config
        alone = replace(config, n_threads=1)
        if part.name in SINGLE_THREADED_PARTS:
            return load_engine(path, alone)
        reads_mel = any(tensor.name == MEL for tensor in part.inputs)
        if reads_mel and config.threads > 1 and config.is_onnxruntime_on_cpu:
            return ThreadsByLength(
                partial(load_engine, path, alone), partial(load_engine, path, config), MEL, SHORT_MEL_FRAMES
            )
        return load_engine(path, config)

    def precision(self, part: PartFiles) -> str:
        """The precision that is loaded where the engine does not bring its own."""
        return self._precisions.get(part.name, self._config.spec.default_precision(part))

    def _check(self, name: str, precision: str) -> None:
        engine, spec = self._config.engine, self._config.spec
        if precision in spec.refused:
            raise InputError(
                f"{spec.refused[precision]}, and {engine} is to run them",
                hint="leave the precision out, or the engine",
            )
        if spec.is_built:
            raise InputError(
                f"an engine of {engine} has the precision it was built in",
                hint="leave the precision out; with mechm[export], mechm export engines --precision builds in another",
            )
        files = self._bundle.parts[name].files if name in self._bundle.parts else {}
        if precision not in files:
            raise BundleError(
                f"the bundle has no {precision} file of its {name} part",
                hint=f"it has {', '.join(files) or 'no such part'}",
            )
        if precision == "bf16" and self._config.is_onnxruntime_on_cpu:
            raise InputError(
                f"onnxruntime computes no bf16 on a CPU, and the {name} part is to be run in it",
                hint=f"run it on a GPU: --engine {GPU_ENGINE}; or use the bundle that it was split from",
            )
