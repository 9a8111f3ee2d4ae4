"""The text encoder: MPNet's attention in one operator, and adapters that are learnt, stored and merged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechm.model.build import build_network, load_trained, save_trained
from mechm.model.config import TINY, ModelConfig
from mechm.model.text import LORA, TextEncoder
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError

ADAPTED = replace(TINY, text=replace(TINY.text, lora_rank=4))


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Two windows, the second of which is padded."""
    ids = torch.randint(5, 1000, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 20, dtype=torch.long)
    ids[1, 12:], mask[1, 12:] = 1, 0
    return ids, mask


def disturbed(encoder: TextEncoder) -> TextEncoder:
    """An encoder whose adapter changes what it says."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if f"{LORA}B." in name:
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    return encoder.eval()


@torch.inference_mode()
def test_attention_is_the_same_in_one_operator_and_written_out() -> None:
    encoder = TextEncoder(TINY.text).eval()
    ids, mask = tokens()
    states = []
    for implementation in ("eager", "sdpa"):
        encoder.encoder.config._attn_implementation = implementation
        states.append(encoder(ids, mask)[mask.bool()])
    torch.testing.assert_close(*states)
    assert not torch.equal(*states), "they were computed in two ways"
    ids[1, 12:] = 7
    torch.testing.assert_close(encoder(ids, mask)[1, :12], states[1][20:], msg="what is masked changes nothing")


@pytest.mark.parametrize("config", [TINY, ADAPTED], ids=["whole", "adapter"])
def test_gradients_reach_what_is_not_frozen(config: ModelConfig) -> None:
    network = build_network(config, None).train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not network.is_frozen(name))
    network.text(*tokens()).square().mean().backward()
    learnt = {name for name, p in network.text.named_parameters() if p.grad is not None}
    assert learnt == {name for name, _ in network.text.named_parameters() if not network.text.is_frozen(name)}
    assert all((LORA in name) == bool(config.text.lora_rank) for name in learnt)


@torch.inference_mode()
def test_a_merged_adapter_says_the_same() -> None:
    encoder, plain = disturbed(TextEncoder(ADAPTED.text)), TextEncoder(TINY.text)
    before = encoder(*tokens())
    assert not torch.allclose(before, build_network(ADAPTED, None).text(*tokens()), atol=1e-2)
    merged = encoder.merged()
    torch.testing.assert_close(merged(*tokens()), before, atol=1e-5, rtol=1e-4)
    assert merged.state_dict().keys() == plain.state_dict().keys()


@torch.inference_mode()
def test_only_the_adapter_is_stored_and_it_comes_back(tmp_path: Path) -> None:
    network = build_network(ADAPTED, None)
    disturbed(network.text)
    save_trained(network, DecisionConfig(), {}, tmp_path)
    stored = {name for name in network.trained_state() if name.startswith("text.")}
    assert stored
    assert all(LORA in name for name in stored)
    again = build_network(ADAPTED, None)
    load_trained(again, tmp_path)
    torch.testing.assert_close(again.text(*tokens()), network.text(*tokens()), atol=1e-2, rtol=1e-2)
    with pytest.raises(WeightsError):
        load_trained(build_network(TINY, None), tmp_path)


def test_an_encoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    TextEncoder(replace(TINY.text, architecture="bert")).encoder.save_pretrained(tmp_path)
    assert TextEncoder.from_folder(tmp_path, replace(TINY.text, architecture="bert")).config.architecture == "bert"
    with pytest.raises(WeightsError, match="the text encoder in"):
        TextEncoder.from_folder(tmp_path, TINY.text)
