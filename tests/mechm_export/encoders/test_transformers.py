"""Encoders that are found through optimum, against transformers' own answers to single inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as tf
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings

from mechm_export.encoders.architectures import ARCHITECTURES
from mechm_export.encoders.axes import Axes, parse_axes
from mechm_export.encoders.export import export_encoder
from mechm_export.encoders.optimum_tasks import classifier_for, find_encoder, task_of_class
from mechm_export.encoders.part import encoder_part
from mechm_export.encoders.report import FILES
from mechm_export.encoders.siglip2 import resize_positions
from mechm_export.encoders.source import find_source
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError

Folders = Callable[[str], Path]
ATOL = 2e-5


def padded(longest: int, lengths: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)


# What optimum knows


def test_what_optimum_knows() -> None:
    for name in (
        "deberta-v2",
        "modernbert",
        "wav2vec2-bert",
        "dinov2_with_registers",
        "dinov3_vit",
        "vit",
        "xlm-roberta",
    ):
        assert find_encoder(name) is not None
    for name in ("llama", "gpt2", "t5", "bart", "nothing"):
        assert find_encoder(name) is None
    assert classifier_for("hubert", "audio") == "HubertForSequenceClassification"
    assert classifier_for("audio-spectrogram-transformer", "audio") == "ASTForAudioClassification"
    assert classifier_for("whisper", "audio") == "WhisperForAudioClassification"
    assert classifier_for("swin", "vision") == "SwinForImageClassification"
    assert classifier_for("videomae", "vision") == "VideoMAEForVideoClassification"
    assert classifier_for("hubert", "text") == ""
    assert task_of_class("RobertaForSequenceClassification") == "text-classification"
    assert task_of_class("BertForTokenClassification") == "token-classification"
    assert task_of_class("Wav2Vec2ForSpeechClassification") == ""
    assert not {"bert", "roberta", "electra"} & ARCHITECTURES.keys()  # its own forward serves them


# Text


@pytest.mark.parametrize("name", ["deberta-v2", "modernbert"])
def test_texts(name: str, encoders: Folders) -> None:
    part = encoder_part(find_source(str(encoders(name))), Axes())
    assert part.outputs == (Tensor("sentence_embedding", "float32", ("batch", 32)),)
    lengths = (12, 4, 1)
    ids = np.random.default_rng(1).integers(5, 64, (3, 12))
    vectors = part.reference({"input_ids": ids, "attention_mask": padded(12, lengths)})["sentence_embedding"]
    model = tf.AutoModel.from_pretrained(encoders(name)).eval()
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids[row : row + 1, :length])).last_hidden_state.mean(1).numpy()
        assert np.abs(expected - vectors[row]).max() < ATOL


# Speech


@pytest.mark.parametrize("name", ["data2vec-audio", "unispeech-base"])
def test_padded_recordings_answer_as_single_ones(name: str, encoders: Folders) -> None:
    """UniSpeech's base model norms over time, as HuBERT's does."""
    part = encoder_part(find_source(str(encoders(name)), task="feature-extraction"), Axes())
    assert [tensor.axes for tensor in part.outputs] == [("batch", "positions", 32), ("batch", "positions")]
    lengths = (4000, 1777, 2600)
    waves = np.random.default_rng(3).normal(size=(3, 4000)).astype(np.float32)
    answer = part.reference({"input_values": waves, "attention_mask": padded(4000, lengths)})
    model = tf.AutoModel.from_pretrained(encoders(name)).eval()
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            alone = model(torch.from_numpy(waves[row : row + 1, :length])).last_hidden_state[0].numpy()
        kept = answer["position_mask"][row].astype(bool)
        assert kept.sum() == len(alone)
        assert np.abs(answer["last_hidden_state"][row][kept] - alone).max() < ATOL


def test_w2v_bert_reads_features(encoders: Folders) -> None:
    part = encoder_part(find_source(str(encoders("w2v-bert"))), Axes())
    assert part.inputs[0] == Tensor("input_features", "float32", ("batch", "frames", 16))
    features = np.random.default_rng(3).normal(size=(2, 20, 16)).astype(np.float32)
    vectors = part.reference({"input_features": features, "attention_mask": padded(20, (20, 9))})["audio_embeds"]
    model = tf.AutoModel.from_pretrained(encoders("w2v-bert")).eval()
    for row, length in enumerate((20, 9)):
        with torch.inference_mode():
            expected = model(torch.from_numpy(features[row : row + 1, :length])).last_hidden_state.mean(1).numpy()
        assert np.abs(expected - vectors[row]).max() < ATOL


# Vision


@pytest.mark.parametrize(
    ("name", "field"), [("vit", "pooler"), ("dinov2-registers", "pooler"), ("dinov3", "pooler"), ("videomae", "mean")]
)
def test_images(name: str, field: str, encoders: Folders) -> None:
    part = encoder_part(find_source(str(encoders(name))), Axes())
    shape = [axis if isinstance(axis, int) else 2 for axis in part.inputs[0].axes]
    assert shape == ([2, 4, 3, 28, 28] if name == "videomae" else [2, 3, 28, 28])
    pixels = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    with torch.inference_mode():
        answer = tf.AutoModel.from_pretrained(encoders(name)).eval()(torch.from_numpy(pixels))
    expected = answer.pooler_output if field == "pooler" else answer.last_hidden_state.mean(1)
    assert np.abs(part.reference({"pixel_values": pixels})["image_embeds"] - expected.numpy()).max() < ATOL


def test_a_random_pooler_is_not_used(encoders: Folders) -> None:
    """A classifier's ViT has no pooling layer: its class token is the image's vector."""
    part = encoder_part(find_source(str(encoders("vit-classifier"))), Axes())
    pixels = np.random.default_rng(2).normal(size=(2, 3, 28, 28)).astype(np.float32)
    model = tf.ViTForImageClassification.from_pretrained(encoders("vit-classifier")).eval().vit
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels)).last_hidden_state[:, 0].numpy()
    assert np.abs(part.reference({"pixel_values": pixels})["image_embeds"] - expected).max() < ATOL


def test_another_size_of_image_is_refused(encoders: Folders) -> None:
    with pytest.raises(InputError, match="28 x 28 pixels only"):
        encoder_part(find_source(str(encoders("vit"))), parse_axes("batch,height=56,width=56"))


def test_siglip2_takes_any_grid_of_patches(encoders: Folders, tmp_path: Path) -> None:
    """Positions are resized in the graph, for each image's own grid."""
    report = export_encoder(str(encoders("siglip2")), tmp_path / "out", modality="vision")
    assert report.graphs[0].check.largest_difference < ATOL
    assert report.part.inputs[0].axes == ("batch", "patches", 48)
    shapes = np.array([[4, 5], [9, 2], [1, 3]])
    mask = padded(20, (20, 18, 3))
    pixels = np.random.default_rng(2).normal(size=(3, 20, 48)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / FILES["fp32"], providers=["CPUExecutionProvider"])
    feeds = {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    (vectors,) = session.run(["image_embeds"], feeds)
    model = tf.Siglip2Model.from_pretrained(encoders("siglip2")).eval().vision_model
    for row, length in enumerate(mask.sum(1)):
        alone = {name: torch.from_numpy(value[row : row + 1]) for name, value in feeds.items()}
        alone |= {name: alone[name][:, :length] for name in ("pixel_values", "pixel_attention_mask")}
        with torch.inference_mode():
            expected = model(**alone).pooler_output[0].numpy()
        assert np.abs(expected - vectors[row]).max() < ATOL


def test_positions_are_resized_as_torch_does() -> None:
    positions = torch.randn(16, 16, 8, generator=torch.Generator().manual_seed(0))
    shapes = torch.tensor([[16, 16], [7, 20], [32, 8], [1, 5], [3, 3]])
    expected = Siglip2VisionEmbeddings.resize_positional_embeddings(positions, shapes, 256)
    assert (expected - resize_positions(positions, shapes, 256)).abs().max() < 1e-5


# What does not run


def test_an_architecture_that_answers_otherwise(tmp_path: Path) -> None:
    """DPR's encoder gives its own vector and no states."""
    config = tf.DPRConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    tf.DPRQuestionEncoder(config).save_pretrained(tmp_path / "model")
    with pytest.raises(WeightsError, match="does not run for sentence-embedding"):
        encoder_part(find_source(str(tmp_path / "model")), Axes())
