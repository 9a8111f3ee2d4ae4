"""Search for the layers that make a lower precision fail, and for the fewest that have to stay in fp32 for it to pass.

Each layer is lowered alone on real inputs; the change of the graph's outputs is its error. Layers are then kept in fp32
from the worst on until the gate passes, and those that turn out not to be needed are lowered again. The caller gives
the gate: the task's answers, or a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechm_export.diagnose.layer_switches import LayerSwitches, LoweredRunner
from mechm_export.precision.smoothing import MIN_MAGNITUDE, channel_peaks
from mechm_runtime.system.arrays import Arrays, Float64Array, log_softmax
from mechm_runtime.system.progress import Progress, no_progress

Gate = Callable[[LoweredRunner], str]
"""Returns the reason why a lowered graph is not good enough, or an empty string."""

N_RANKING_INPUTS = 3
"""Inputs on which every layer is lowered alone."""
MAX_PRUNED_LAYERS = 24
"""Most kept layers that are each tried in the lower precision again: every trial costs a run of the gate."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of lowered outputs from exact ones, the worst over outputs and inputs.

    relative_error: root mean square difference, relative to the output's own; infinite where a value is not finite.
    cosine: the lowest. kl: Kullback-Leibler divergence in nats, the largest mean over positions, of outputs that are
    logits or log-probabilities; None where there are none.
    """

    relative_error: float
    cosine: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class LayerError:
    """Difference made by lowering one layer alone.

    outliers: the largest channel of a linear layer's input as a multiple of the median one; None for other layers.
    """

    name: str
    operator: str
    difference: Difference
    outliers: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Errors of a graph's layers, and the layers to keep in fp32.

    layers: worst first. problem: the reason why the graph fails with all of them lowered, an empty string where it
    passes. together: the difference with all of them lowered. kept: names of the layers to keep in fp32, none where it
    passes with all lowered. solved: whether the gate passes with these kept.
    """

    layers: tuple[LayerError, ...]
    problem: str
    together: Difference
    kept: tuple[str, ...]
    solved: bool


def find_failing_layers(
    graph: LayerSwitches, feeds: Sequence[Arrays], gate: Gate, on_progress: Progress | None = None
) -> Diagnosis:
    """Rank a graph's layers and propose the fewest to keep in fp32.

    feeds: real inputs, the first N_RANKING_INPUTS of which are used. gate: decides whether a lowered graph is good
    enough.
    """
    step = on_progress or no_progress
    ranking_feeds = feeds[:N_RANKING_INPUTS]
    exact = [graph.lower(()).run(feed) for feed in ranking_feeds]

    def difference(runner: LoweredRunner) -> Difference:
        return compare_outputs(exact, [runner.run(feed) for feed in ranking_feeds])

    outliers = _outliers(graph, ranking_feeds)
    layers = []
    for number, layer in enumerate(graph.layers):
        step("lowering each layer alone", number, len(graph.layers))
        alone = difference(graph.lower({layer.name}))
        layers.append(LayerError(layer.name, layer.operator, alone, outliers.get(layer.source)))
    layers.sort(key=lambda one: -one.difference.relative_error)
    step("running the gate with all layers lowered", 0, 0)
    problem = gate(graph.lower_all_except(()))
    kept = _fewest_layers(graph, [layer.name for layer in layers], gate, step) if problem else ()
    return Diagnosis(
        tuple(layers),
        problem,
        difference(graph.lower_all_except(())),
        kept or (),
        kept is not None,
    )


def compare_outputs(exact: Sequence[Arrays], lowered: Sequence[Arrays]) -> Difference:
    """Compare outputs for the same inputs, output by output. Values that are infinite in both count as equal."""
    errors, cosines = [0.0], [1.0]
    divergences: list[float] = []
    for one, other in zip(exact, lowered, strict=True):
        for name, value in one.items():
            expected, found = np.asarray(value, np.float64), np.asarray(other[name], np.float64)
            if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
                return Difference(float("inf"), 0.0, None)
            finite = np.isfinite(expected)
            a, b = expected[finite], found[finite]
            size = max(float(np.linalg.norm(a)), MIN_MAGNITUDE)
            errors.append(float(np.linalg.norm(a - b)) / size)
            cosines.append(float(a @ b) / max(size * float(np.linalg.norm(b)), MIN_MAGNITUDE))
            if name.endswith(("logits", "log_probabilities")) and finite.all():
                divergences.append(_divergence(expected, found))
    return Difference(max(errors), min(cosines), max(divergences, default=None))


def _divergence(expected: Float64Array, found: Float64Array) -> float:
    """Mean Kullback-Leibler divergence of the distributions on the last axis, in nats."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _outliers(graph: LayerSwitches, feeds: Sequence[Arrays]) -> dict[str | None, float]:
    """The largest channel of each linear layer's input as a multiple of the median one, by the tensor's name."""
    sources = sorted({layer.source for layer in graph.layers if layer.source is not None})
    peaks = channel_peaks(graph.model, sources, feeds) if sources else {}
    return {
        name: float(peak.max(initial=0) / max(float(np.median(peak)), MIN_MAGNITUDE)) for name, peak in peaks.items()
    }


def _fewest_layers(
    graph: LayerSwitches, worst_first: Sequence[str], gate: Gate, step: Progress
) -> tuple[str, ...] | None:
    """The fewest layers to keep in fp32, worst first; None where the gate fails even with all of them in fp32."""
    tried: dict[int, bool] = {}

    def passes(count: int) -> bool:
        if count not in tried:
            step(f"running the gate with {count} layers in fp32", 0, 0)
            tried[count] = not gate(graph.lower_all_except(worst_first[:count]))
        return tried[count]

    enough = 1
    while not passes(enough):
        if enough == len(worst_first):
            return None
        enough = min(2 * enough, len(worst_first))
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if passes(middle):
            enough = middle
        else:
            too_few = middle
    kept = list(worst_first[:enough])
    for name in reversed(kept[:-1] if enough <= MAX_PRUNED_LAYERS else []):
        fewer = [other for other in kept if other != name]
        step(f"running the gate with {name} lowered again", 0, 0)
        if not gate(graph.lower_all_except(fewer)):
            kept = fewer
    return tuple(kept)
