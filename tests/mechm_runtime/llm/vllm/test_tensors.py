"""Tensors as a server reads them: torch's own loader must find what was put in, bit for bit."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch

from mechm_runtime.llm.vllm.tensors import DTYPES, Matrix, cast, to_torch_file

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (300, 64)])
def test_torch_reads_what_was_written(dtype: str, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    file = base64.b64decode(to_torch_file(Matrix(cast(values, dtype), dtype)), validate=True)
    loaded = torch.load(io.BytesIO(file), weights_only=True)
    assert loaded.dtype == TORCH[dtype]
    assert torch.equal(loaded, torch.from_numpy(values).to(TORCH[dtype]))


def test_rows_are_written_in_their_order() -> None:
    whole = Matrix(np.arange(12, dtype=np.float32).reshape(4, 3), "F32")
    file = base64.b64decode(to_torch_file(whole.rows(np.array([3, 1]))))
    assert torch.load(io.BytesIO(file), weights_only=True).tolist() == [[9, 10, 11], [3, 4, 5]]


def test_bfloat16_rounds_as_torch_does() -> None:
    # Ties to both sides, the largest values, the smallest, and both zeros.
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F0000, 0x00000001, 0x80000000], np.uint32)
    values = np.concatenate([bits.view(np.float32), np.random.default_rng(1).normal(size=1000).astype(np.float32)])
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(cast(values, "BF16"), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_what_is_not_finite_is_not_sent(value: float, dtype: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        cast(np.array([[0.0, value]], np.float32), dtype)


def test_what_the_dtype_cannot_hold_is_not_sent() -> None:
    with pytest.raises(ValueError, match="too large for F16"):
        cast(np.array([[1e6]], np.float32), "F16")
    with pytest.raises(ValueError, match="too large for BF16"):
        cast(np.array([[3.4e38]], np.float32), "BF16")
