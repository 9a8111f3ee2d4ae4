"""Rows of a Llama's embeddings, read where they lie, from files that may be anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.embeddings import EMBEDDINGS, INDEX, WEIGHTS, EmbeddingTable

NONE = np.zeros(0, np.int64)


def embeddings(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


def write(folder: Path, file: str = WEIGHTS, dtype: torch.dtype = torch.bfloat16) -> Path:
    save_file({"model.norm.weight": torch.ones(3), EMBEDDINGS: embeddings(dtype)}, folder / file)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_and_soft_tokens_are_as_torch_would_place_them(tmp_path: Path, dtype: torch.dtype) -> None:
    table = EmbeddingTable(write(tmp_path, dtype=dtype))
    assert table.hidden_size == 8
    ids, soft = np.array([3, 0, 19, 3]), np.full((1, 8), 0.1, np.float32)
    expected = embeddings(dtype)[torch.from_numpy(ids)]
    expected[2] = torch.from_numpy(soft[0]).to(dtype)
    found = table.embed(ids, np.array([2]), soft)
    np.testing.assert_array_equal(found.values.view(np.uint8), expected.view(torch.uint8).numpy())


def test_several_files_are_found_by_their_index(tmp_path: Path) -> None:
    write(tmp_path, "model-00002-of-00002.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {EMBEDDINGS: "model-00002-of-00002.safetensors"}}))
    assert EmbeddingTable(tmp_path).embed(np.array([7]), NONE, np.zeros((0, 8), np.float32)).values.shape == (1, 8)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    table = EmbeddingTable(write(tmp_path))
    for soft in (np.zeros((1, 7), np.float32), np.zeros((2, 8), np.float32), np.zeros((8,), np.float32)):
        with pytest.raises(ValueError, match="of width 8"):
            table.embed(np.array([1, 2]), np.array([0]), soft)
    with pytest.raises(ValueError, match="not finite"):
        table.embed(np.array([1]), np.array([0]), np.full((1, 8), np.nan, np.float32))
    for token in (-1, 20):
        with pytest.raises(ValueError, match="not among the 20"):
            table.embed(np.array([token]), NONE, np.zeros((0, 8), np.float32))


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A file whose header was changed, and whose bytes are as they were."""

    def damage(file: Path) -> None:
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        change(entries)
        changed = json.dumps(entries).encode()
        file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[end:])

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes((1 << 60).to_bytes(8, "little") + b"{}"),
        lambda file: file.write_bytes((2).to_bytes(8, "little") + b"[]"),
        lambda file: file.write_bytes(file.read_bytes()[:-400]),
        header(lambda entries: entries.pop(EMBEDDINGS)),
        header(lambda entries: entries[EMBEDDINGS].update(shape=[20, 9])),
        header(lambda entries: entries[EMBEDDINGS].update(shape=[160])),
        header(lambda entries: entries[EMBEDDINGS].update(shape=[-20, -8])),
        header(lambda entries: entries[EMBEDDINGS].update(dtype="I8")),
        header(lambda entries: entries[EMBEDDINGS].update(data_offsets=[1 << 40, (1 << 40) + 320])),
        header(lambda entries: entries[EMBEDDINGS].update(data_offsets="no")),
        header(lambda entries: entries.update({EMBEDDINGS: []})),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(write(tmp_path) / WEIGHTS)
    with pytest.raises(BundleError, match=f"has no {EMBEDDINGS}"):
        EmbeddingTable(tmp_path)


@pytest.mark.parametrize("file", ["../other.safetensors", "sub/model.safetensors", "/etc/passwd", ".."])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {EMBEDDINGS: file}}))
    with pytest.raises(BundleError, match="that can be read"):
        EmbeddingTable(tmp_path)
