"""Softmax in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from mechm_runtime.system.arrays import log_softmax, softmax


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_add_up_in_the_dtype_of_the_logits(dtype: type[np.floating]) -> None:
    logits = np.array([[0.0, 1000.0, -1000.0], [-np.inf, 2.0, 2.0]], dtype)
    probabilities = softmax(logits)
    assert probabilities.dtype == log_softmax(logits).dtype == dtype
    np.testing.assert_array_equal(probabilities, [[0, 1, 0], [0, 0.5, 0.5]])
    assert log_softmax(logits)[0].tolist() == [-1000, 0, -2000]
    assert np.isneginf(log_softmax(logits)[1, 0])
