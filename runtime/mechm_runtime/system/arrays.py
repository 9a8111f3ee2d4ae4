"""Names for the types of numpy arrays, and arithmetic of logits that several parts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Float = TypeVar("Float", bound=np.floating[Any])

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.floating]
"""Of any width."""
Arrays = Mapping[str, Array]
"""Arrays by name, as the inputs and outputs of a graph."""


def softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Probabilities over the last axis.

    logits: float (..., n). -inf is a probability of 0; at least one value of each row is finite.
    Returns: float (..., n), of the same dtype, in which it is computed.
    """
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponential / exponential.sum(-1, keepdims=True), logits.dtype)


def log_softmax(logits: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Log-probabilities over the last axis.

    logits: float (..., n). -inf stays -inf; at least one value of each row is finite.
    Returns: float (..., n), of the same dtype, in which it is computed.
    """
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), logits.dtype)
