"""The memory estimate is that of the models as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.memory import LlamaShape, estimate_memory, read_shape

LLAMA_2_7B = LlamaShape(32_000, 4096, 11_008, 32, 32, 32, 128, 4096, tie_word_embeddings=False)


def test_llama_2_7b_has_its_published_size() -> None:
    assert LLAMA_2_7B.n_parameters == 6_738_415_616  # of its model card's safetensors
    needed = estimate_memory(LLAMA_2_7B, "fp16", concurrency=16, context=2048)
    assert needed.weights_bytes == 13_476_831_232
    assert needed.cache_bytes == 16 * 2048 * 512 * 1024  # half a MiB a token
    assert needed.total_bytes == needed.weights_bytes + needed.cache_bytes


def test_in_8_bits_its_linear_layers_take_a_byte_each() -> None:
    needed = estimate_memory(LLAMA_2_7B, "fp16", concurrency=16, context=2048, quantized=True)
    # 4 projections of 4096 x 4096 and 3 of 4096 x 11008 a layer; two matrices of the vocabulary and the norms stay.
    assert needed.weights_bytes == 13_476_831_232 - 32 * (4 * 4096**2 + 3 * 4096 * 11_008)
    assert needed.cache_bytes == 16 * 2048 * 512 * 1024


def test_the_preset_smalls_llama_is_read_from_its_config(small_weights: Path) -> None:
    shape = read_shape(small_weights / "llm" / "config.json")
    stored = (small_weights / "llm" / "model.safetensors").stat().st_size
    assert shape.n_parameters == 134_515_008
    # The file has a header, and its weights may be of 2 or 4 bytes.
    assert any(0 <= stored - n_bytes * shape.n_parameters < 1 << 20 for n_bytes in (2, 4))
    assert shape.cache_bytes_per_token("bf16") == 2 * 30 * 3 * 64 * 2


def test_sizes_that_a_config_leaves_out_follow_from_the_others(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    sizes = {
        "vocab_size": 10,
        "hidden_size": 64,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "max_position_embeddings": 99,
    }
    file.write_text(
        json.dumps({**sizes, "num_attention_heads": 4, "num_key_value_heads": None, "max_position_embeddings": 99})
    )
    assert read_shape(file) == LlamaShape(10, 64, 8, 1, 4, 4, 16, 99, tie_word_embeddings=False)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"vocab_size": "x"}', '{"num_attention_heads": 0}', "null"])
def test_what_is_no_llamas_config_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(BundleError, match="is not the config of a Llama"):
        read_shape(file)
    with pytest.raises(BundleError, match="is not the config of a Llama"):
        read_shape(tmp_path / "absent.json")
