"""Which layers are to blame where a lower precision fails, and the fewest that have to stay in fp32 for it to pass.

Each layer is lowered by itself, on real inputs, and what that does to the graph's outputs is its error. Layers are then
kept in fp32 from the worst on until the gate passes, and those that turn out not to be needed are lowered again. What
the gate is, the caller says: the task's answers, or a distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mechm_export.diagnose.layer_switches import LoweredRunner, SwitchedGraph
from mechm_export.precision.smoothing import MIN_MAGNITUDE, channel_peaks

Arrays = Mapping[str, npt.NDArray[np.generic]]

Gate = Callable[[LoweredRunner], str]
"""Why a lowered graph is not good enough, or an empty string."""

RANKED_ON = 3
"""Inputs that every layer is tried on by itself."""
PRUNED_UP_TO = 24
"""Kept layers of which each is tried once more without: every trial costs a run of the gate."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Lowered outputs against exact ones: the worst over outputs and inputs.

    relative_error: root mean square difference as a share of the output's own size; infinite where something is not
    finite. cosine: lowest. kl: nats, largest mean over positions, of outputs that are logits or log-probabilities; None
    where there are none.
    """

    relative_error: float
    cosine: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class LayerError:
    """What lowering one layer alone does.

    outliers: of a linear layer, the loudest channel that goes in, as a multiple of the median one; None of others.
    """

    name: str
    operator: str
    difference: Difference
    outliers: float | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """layers: worst first. problem: why the graph fails with all of them lowered, an empty string where it passes.

    together: what lowering all of them does. kept: names of the layers to keep in fp32, none where it passes as it is.
    solved: whether the gate passes with these kept.
    """

    layers: tuple[LayerError, ...]
    problem: str
    together: Difference
    kept: tuple[str, ...]
    solved: bool


def find_blame(
    graph: SwitchedGraph, feeds: Sequence[Arrays], gate: Gate, on_progress: Progress | None = None
) -> Diagnosis:
    """Rank a graph's layers and propose the fewest to keep in fp32.

    feeds: real inputs, of which the first few are used. gate: judges a lowered graph.
    """
    step = on_progress or (lambda _doing, _done, _total: None)
    tried = feeds[:RANKED_ON]
    exact = [graph.lowered(()).run(feed) for feed in tried]

    def difference(runner: LoweredRunner) -> Difference:
        return compare_outputs(exact, [runner.run(feed) for feed in tried])

    outliers = _outliers(graph, tried)
    layers = []
    for number, layer in enumerate(graph.layers):
        step("lowering each layer by itself", number, len(graph.layers))
        alone = difference(graph.lowered({layer.name}))
        layers.append(LayerError(layer.name, layer.operator, alone, outliers.get(layer.source)))
    layers.sort(key=lambda one: -one.difference.relative_error)
    step("judging with all layers lowered", 0, 0)
    problem = gate(graph.all_but(()))
    kept = _fewest(graph, [layer.name for layer in layers], gate, step) if problem else ()
    return Diagnosis(
        tuple(layers),
        problem,
        difference(graph.all_but(())),
        kept or (),
        kept is not None,
    )


def compare_outputs(exact: Sequence[Arrays], lowered: Sequence[Arrays]) -> Difference:
    """Compare outputs of the same inputs, output by output. Places that are infinite in both count as equal."""
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


def _divergence(expected: npt.NDArray[np.float64], found: npt.NDArray[np.float64]) -> float:
    """Mean Kullback-Leibler divergence of the last axis' distributions, in nats."""
    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _outliers(graph: SwitchedGraph, feeds: Sequence[Arrays]) -> dict[str | None, float]:
    """The loudest channel of what goes into each linear layer, as a multiple of the median one, by the tensor."""
    sources = sorted({layer.source for layer in graph.layers if layer.source is not None})
    peaks = channel_peaks(graph.model, sources, feeds) if sources else {}
    return {
        name: float(peak.max(initial=0) / max(float(np.median(peak)), MIN_MAGNITUDE)) for name, peak in peaks.items()
    }


def _fewest(graph: SwitchedGraph, worst_first: Sequence[str], gate: Gate, step: Progress) -> tuple[str, ...] | None:
    """The layers to keep, worst first; None where even keeping all of them does not pass."""
    tried: dict[int, bool] = {}

    def passes(count: int) -> bool:
        if count not in tried:
            step(f"judging with {count} layers in fp32", 0, 0)
            tried[count] = not gate(graph.all_but(worst_first[:count]))
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
    for name in reversed(kept[:-1] if enough <= PRUNED_UP_TO else []):
        fewer = [other for other in kept if other != name]
        step(f"judging without {name}", 0, 0)
        if not gate(graph.all_but(fewer)):
            kept = fewer
    return tuple(kept)
