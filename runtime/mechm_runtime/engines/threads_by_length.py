"""A graph that computes short inputs in one thread and long ones in several.

Short ones take no longer so, and leave the other cores to the encoders beside: a voice of 3 s takes 6.8 ms in one
thread, 7.3 ms and half as much of the processor's time again in two (`benchmarks/second_thread.py`, preset small, int8,
Intel Xeon with two cores, onnxruntime 1.32).
"""

from __future__ import annotations

from collections.abc import Callable

from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.system.lazy import Lazy

MEL = "mel"
"""The input of the speech encoder whose last axis is the voice's length."""
SHORT_MEL_FRAMES = 400
"""4 s, up to which a second thread saved nothing."""


class ThreadsByLength:
    """Loads the graph twice, when each is first needed.

    short, long: load it for one thread, and for several. name: of the input whose last axis is the length. n_short: the
    longest that counts as short.
    """

    def __init__(
        self, short: Callable[[], GraphRunner], long: Callable[[], GraphRunner], name: str, n_short: int
    ) -> None:
        self._short, self._long = Lazy(short), Lazy(long)
        self._name = name
        self._n_short = n_short

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Arrays by input name to arrays by output name."""
        is_short = inputs[self._name].shape[-1] <= self._n_short
        return (self._short if is_short else self._long)().run(inputs)
