"""Compare an exported encoder with its reference: values at several sizes, and padded batches with single inputs.

It does not decide what happens to a precision that fails; `export` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from mechm_export.encoders.axes import Precision
from mechm_export.encoders.trials import MASK
from mechm_export.gate.comparison import FP32_ATOL, compare_arrays
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.graphs.signature import check_signature
from mechm_export.precision.half import ELEMENT_TYPES
from mechm_export.precision.simulated import SimulatedHalfRunner
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError

POSITION_MASK = "position_mask"

MIN_COSINE: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.99}
"""The lowest cosine that a precision may have on any input. Two vectors at 0.99 are 8 degrees apart, which moves the
nearest of close neighbours; at 0.999, 2.6. fp16 and bf16 of the encoders that were measured lie above 0.999, so that
what is below has overflowed or lost a channel."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class EncoderCheck:
    """A precision against the reference.

    largest_difference: absolute, over all outputs. cosine: the lowest of an input's. padding_difference: between rows
    of a padded batch and the same inputs alone, None where the encoder takes no mask or has fixed sizes.
    """

    precision: Precision
    largest_difference: float
    cosine: float
    n_inputs: int
    largest_value: float
    padding_difference: float | None = None

    @property
    def problem(self) -> str:
        """Why the precision is not good enough, or an empty string."""
        limit = FP32_ATOL * max(1.0, self.largest_value)
        if self.precision == "fp32" and self.largest_difference > limit:
            return f"values differ by {self.largest_difference:.1e}, more than {limit:.1e}"
        if self.cosine < MIN_COSINE[self.precision]:
            return f"the lowest cosine is {self.cosine:.4f}, below {MIN_COSINE[self.precision]}"
        # Relative below 1 too: a padding that leaks into small logits by a thousandth of them may move labels.
        leak = FP32_ATOL * self.largest_value
        if self.padding_difference is not None and self.padding_difference > leak:
            return f"padded batches differ from single inputs by {self.padding_difference:.1e}, more than {leak:.1e}"
        return ""


def check_encoder(part: ExportPart, path: Path, precision: Precision, real: Iterable[Feeds] = ()) -> EncoderCheck:
    """Compare a graph file with its module on random inputs of several sizes, and on real ones where there are any.

    16-bit graphs are compared as `precision.simulated` computes them, and fp16 is run as it is besides. int8 that was
    calibrated on real inputs is measured on real ones, since nobody asks for random words, which lose more; those still
    show whether every size runs.
    Raises: VerificationError: names, axes or shapes differ, or an output is not finite.
    """
    check_signature(part, path)
    onnx.checker.check_model(path)
    config = EngineConfig()
    engine: GraphRunner = SimulatedHalfRunner(path) if precision in ELEMENT_TYPES else OnnxRuntimeEngine(path, config)
    plain = OnnxRuntimeEngine(path, config) if precision == "fp16" else None
    random = np.random.default_rng(0)
    made = [part.trial_inputs(sizes, random) for sizes in part.trial_sizes]
    sentences = list(real)
    measured_from = len(made) if precision == "int8" and sentences else 0
    largest, cosine, value, n_inputs = 0.0, 1.0, 0.0, 0
    padding: float | None = None
    for number, feeds in enumerate([*made, *sentences]):
        expected = part.reference(feeds)
        answers = [engine.run(feeds), *([plain.run(feeds)] if plain is not None else [])]
        for answer in answers:
            difference, alike = compare_rows(path.name, expected, answer, feeds)
            if number >= measured_from:
                largest, cosine = max(largest, difference), min(cosine, alike)
        value = max(value, *(float(np.abs(rows[0]).max()) for rows in _kept_rows(expected, expected, feeds)))
        n_inputs += len(next(iter(feeds.values()))) if number >= measured_from else 0
        if precision == "fp32" and can_pad(part):
            found = padding_difference(engine, feeds, answers[0])
            padding = max(padding or 0.0, found)
    return EncoderCheck(
        precision,
        float(f"{largest:.2e}"),
        round(cosine, 6),
        n_inputs,
        float(f"{value:.2e}"),
        None if padding is None else float(f"{padding:.2e}"),
    )


def compare_rows(name: str, expected: Arrays, actual: Arrays, feeds: Feeds) -> tuple[float, float]:
    """Largest difference and lowest cosine over inputs; what lies behind an input's end does not count.

    Raises: VerificationError: shapes or integers differ, or a value is not finite.
    """
    for output, values in expected.items():
        if actual[output].shape != values.shape:
            raise VerificationError(f"{name}: {output} is {actual[output].shape}, not {values.shape}")
        if values.dtype.kind in "iub" and not np.array_equal(values, actual[output]):
            raise VerificationError(f"{name}: {output} differs")
    rows = [compare_arrays(name, one, other) for one, other in _kept_rows(expected, actual, feeds)]
    return max(difference for difference, _ in rows), min(cosine for _, cosine in rows)


def can_pad(part: ExportPart) -> bool:
    """True where an input can be run alone, without its padding: there is a mask, and batch and time are dynamic."""
    masks = [tensor for tensor in part.inputs if tensor.name == MASK]
    return bool(masks) and all(isinstance(axis, str) for axis in masks[0].axes)


def padding_difference(engine: GraphRunner, feeds: Feeds, answers: Arrays) -> float:
    """Largest difference between the rows of a padded batch and each input alone.

    An input's time axis is the last one that is as long as the mask.
    Raises: VerificationError: an input alone has another shape.
    """
    lengths = feeds[MASK].sum(1)
    largest = 0.0
    for row, length in enumerate(lengths.tolist()):
        alone_feeds: Feeds = {
            name: _first_steps(array[row : row + 1], feeds[MASK].shape[1], length) for name, array in feeds.items()
        }
        alone = engine.run(alone_feeds)
        together = {name: values[row : row + 1] for name, values in answers.items()}
        kept = {name: array[row : row + 1] for name, array in feeds.items()}
        ((batched, _),) = _kept_rows(together, together, kept)
        ((single, _),) = _kept_rows(alone, alone, alone_feeds)
        largest = max(largest, compare_arrays("an input alone", batched, single)[0])
    return largest


def _first_steps(array: npt.NDArray[Any], longest: int, length: int) -> npt.NDArray[Any]:
    axis = max(number for number, size in enumerate(array.shape) if size == longest and number)
    return array[(*[slice(None)] * axis, slice(length))]


def _kept_rows(expected: Arrays, actual: Arrays, feeds: Feeds) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Each input's floating outputs, one behind the other, without padding."""
    mask = expected.get(POSITION_MASK, feeds.get(MASK))
    rows = []
    for row in range(len(next(iter(expected.values())))):
        pair: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = ([], [])
        for name, values in expected.items():
            if values.dtype.kind != "f":
                continue
            over_time = mask is not None and values.ndim == 3 and values.shape[1] == mask.shape[1]
            kept = mask[row].astype(bool) if over_time and mask is not None else ...
            pair[0].append(values[row][kept].ravel())
            pair[1].append(actual[name][row][kept].ravel())
        rows.append((np.concatenate(pair[0]), np.concatenate(pair[1])))
    return rows
