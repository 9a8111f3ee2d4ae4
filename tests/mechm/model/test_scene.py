"""Scene encoders equal transformers' own models, on images of another size than the weights were made for too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel, Dinov2Config, Dinov2Model

from mechm.model.config import LLAMA2_7B, TINY, SceneEncoderConfig
from mechm.model.scene import Dinov2SceneEncoder, EvaSceneEncoder, interpolate_positions
from mechm_runtime.errors import WeightsError

DINO = SceneEncoderConfig(
    hidden_size=32,
    n_layers=3,
    n_heads=2,
    intermediate_size=64,
    image_size=56,
    weights_image_size=98,
    pooled_layer=2,
)
EVA = replace(DINO, architecture="blip2", n_layers=2, image_size=84, weights_image_size=42)


def dino_folder(folder: Path) -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=98, patch_size=14
    )
    model = Dinov2Model(config).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    return model


def eva_folder(folder: Path) -> Blip2VisionModel:
    torch.manual_seed(0)
    config = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
    )
    model = Blip2VisionModel(config).eval()
    torch.nn.init.normal_(model.embeddings.position_embedding)
    model.save_pretrained(folder)
    return model


@torch.inference_mode()
def test_dinov2_equals_transformers_at_another_size(tmp_path: Path) -> None:
    model = dino_folder(tmp_path)
    encoder = Dinov2SceneEncoder.from_folder(tmp_path, DINO)
    pixel_values = torch.randn(3, 3, 56, 56)
    theirs = model(pixel_values, output_hidden_states=True).hidden_states[DINO.pooled_layer][:, 0]
    ours = encoder(pixel_values)
    assert ours.shape == (3, 32)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours[1:2] - encoder(pixel_values[1:2])).abs().max() < 1e-5


@torch.inference_mode()
def test_eva_equals_transformers_at_another_size(tmp_path: Path) -> None:
    model = eva_folder(tmp_path)
    encoder = EvaSceneEncoder.from_folder(tmp_path, EVA)
    pixel_values = torch.randn(2, 3, 84, 84)
    theirs = model(pixel_values, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert (encoder(pixel_values) - theirs).abs().max() < 1e-5


def test_layers_above_the_pooled_one_are_dropped(tmp_path: Path) -> None:
    dino_folder(tmp_path)
    assert len(Dinov2SceneEncoder.from_folder(tmp_path, DINO).vit.encoder.layer) == 2


def test_folders_of_another_size_are_refused(tmp_path: Path) -> None:
    dino_folder(tmp_path / "dino")
    eva_folder(tmp_path / "eva")
    wider = {"hidden_size": 64, "intermediate_size": 128}
    with pytest.raises(WeightsError, match=r"\(32, 14\)"):
        Dinov2SceneEncoder.from_folder(tmp_path / "dino", replace(DINO, **wider))
    with pytest.raises(WeightsError, match="3 layers"):
        Dinov2SceneEncoder.from_folder(tmp_path / "dino", replace(DINO, n_layers=5, pooled_layer=4))
    with pytest.raises(WeightsError, match=r"\(32, 14\)"):
        EvaSceneEncoder.from_folder(tmp_path / "eva", replace(EVA, **wider))
    with pytest.raises(WeightsError, match="2 layers"):
        EvaSceneEncoder.from_folder(tmp_path / "eva", replace(EVA, n_layers=3, pooled_layer=3))


def test_positions_keep_what_they_say() -> None:
    positions = torch.randn(1, 1 + 9, 4)
    assert torch.equal(interpolate_positions(positions, 3), positions)
    larger = interpolate_positions(positions, 6)
    assert larger.shape == (1, 37, 4)
    assert torch.equal(larger[:, 0], positions[:, 0])
    level = interpolate_positions(torch.full((1, 10, 4), 2.5), 7)
    assert (level - 2.5).abs().max() < 1e-5
    # A ramp along the rows stays one: rows and columns are not exchanged.
    ramp = torch.cat([torch.zeros(1, 1), torch.arange(3.0).repeat_interleave(3)[None]], 1)[..., None]
    grid = interpolate_positions(ramp, 6)[0, 1:, 0].view(6, 6)
    assert (grid.diff(dim=0) > 0).all()
    assert grid.diff(dim=1).abs().max() < 1e-5


def test_the_vit_g_of_minigpt_has_its_size() -> None:
    with torch.device("meta"):
        encoder = EvaSceneEncoder(LLAMA2_7B.scene)
    assert 0.98e9 < sum(p.numel() for p in encoder.parameters()) < 1.02e9
    assert encoder.vit.embeddings.position_embedding.shape == (1, 1 + 32 * 32, 1408)


@torch.inference_mode()
def test_tiny_takes_its_preset_size() -> None:
    side = TINY.scene.image_size
    assert Dinov2SceneEncoder(TINY.scene).eval()(torch.zeros(1, 3, side, side)).shape == (1, TINY.scene.hidden_size)
