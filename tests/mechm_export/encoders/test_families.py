"""Every architecture, exported and run by onnxruntime, against transformers' own answers to single inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as tf

from mechm_export.encoders.axes import Axes, parse_axes
from mechm_export.encoders.export import export_encoder
from mechm_export.encoders.part import encoder_part
from mechm_export.encoders.report import FILES, EncoderReport
from mechm_export.encoders.source import find_source
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError

Folders = Callable[[str], Path]
ATOL = 2e-5


def run(folder: Path, feeds: dict[str, Any], precision: str = "fp32") -> dict[str, Any]:
    name = FILES[precision]  # type: ignore[index]
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == list(feeds)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def check(report: EncoderReport) -> None:
    (graph,) = report.graphs
    assert graph.precision == "fp32"
    assert graph.check.largest_difference < ATOL
    assert graph.check.cosine > 0.99999


def padded(longest: int, lengths: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)


# Text


def padded_words() -> dict[str, Any]:
    """A padded batch of words."""
    return {"input_ids": np.random.default_rng(1).integers(5, 64, (3, 12)), "attention_mask": padded(12, (12, 4, 1))}


def mean_alone(folder: Path, feeds: dict[str, Any], row: int) -> Any:
    """transformers' own states of one sentence without padding, their mean."""
    model = tf.AutoModel.from_pretrained(folder).eval()
    ids = feeds["input_ids"][row : row + 1, : feeds["attention_mask"][row].sum()]
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids)).last_hidden_state.mean(1).numpy()


@pytest.mark.parametrize("name", ["bert", "mpnet", "roberta"])
def test_sentence_encoders(name: str, encoders: Folders, tmp_path: Path) -> None:
    """The mean over words of a padded batch is that of each sentence alone, in transformers."""
    report = export_encoder(str(encoders(name)), tmp_path / "out")
    check(report)
    assert report.part.outputs == (Tensor("sentence_embedding", "float32", ("batch", 32)),)
    assert report.graphs[0].check.padding_difference is not None
    feeds = padded_words()
    vectors = run(tmp_path / "out", feeds)["sentence_embedding"]
    for row in range(3):
        assert np.abs(mean_alone(encoders(name), feeds, row) - vectors[row]).max() < ATOL


@pytest.mark.parametrize("name", ["camembert", "distilbert", "electra", "xlm-roberta"])
def test_relatives_with_the_same_graph(name: str, encoders: Folders) -> None:
    """The module that is traced; tracing itself differs in nothing from the above."""
    part = encoder_part(find_source(str(encoders(name))), Axes())
    feeds = padded_words()
    vectors = part.reference(feeds)["sentence_embedding"]
    for row in range(3):
        assert np.abs(mean_alone(encoders(name), feeds, row) - vectors[row]).max() < ATOL
    longest = max(sizes["tokens"] for sizes in part.trial_sizes)
    part.reference(part.trial_inputs({"batch": 2, "tokens": longest}, np.random.default_rng(0)))


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", True), ("cls", False)])
def test_pooling_is_what_the_folder_says(pooling: str, normalize: bool, encoders: Folders, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in encoders("bert").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if normalize else [])]
    kinds = [{"idx": i, "type": f"sentence_transformers.models.{k}", "path": p} for i, (k, p) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(kinds))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    part = encoder_part(find_source(str(folder)), Axes())
    feeds = part.trial_inputs({"batch": 3, "tokens": 9}, np.random.default_rng(0))
    model = tf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).last_hidden_state
    mask = torch.from_numpy(feeds["attention_mask"])[..., None]
    expected = states[:, 0] if pooling == "cls" else (states * mask).sum(1) / mask.sum(1)
    if normalize:
        expected = expected / expected.norm(dim=1, keepdim=True)
    assert np.abs(part.reference(feeds)["sentence_embedding"] - expected.numpy()).max() < 1e-6
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(WeightsError, match="pools by max_tokens"):
        encoder_part(find_source(str(folder)), Axes())


def test_clips_text(encoders: Folders, tmp_path: Path) -> None:
    folder = encoders("clip")
    report = export_encoder(str(folder), tmp_path / "out", task="sentence-embedding")
    check(report)
    ids = np.full((2, 10), 0)
    ids[0, :7] = [2, 9, 11, 30, 12, 8, 3]
    ids[1] = [2, 40, 41, 42, 43, 44, 45, 46, 47, 3]
    vectors = run(tmp_path / "out", {"input_ids": ids, "attention_mask": padded(10, (7, 10))})["text_embeds"]
    model = tf.CLIPModel.from_pretrained(folder).eval()
    for row, length in enumerate((7, 10)):
        with torch.inference_mode():
            states = model.text_model(input_ids=torch.from_numpy(ids[row : row + 1, :length])).pooler_output
            expected = model.text_projection(states)
        assert np.abs(expected.numpy() - vectors[row]).max() < ATOL


def test_siglips_text_is_padded_to_its_length(encoders: Folders, tmp_path: Path) -> None:
    folder = encoders("siglip")
    report = export_encoder(str(folder), tmp_path / "out", task="sentence-embedding")
    check(report)
    assert report.part.inputs == (Tensor("input_ids", "int64", ("batch", 40)),)
    ids = np.random.default_rng(1).integers(0, 64, (3, 40))
    vectors = run(tmp_path / "out", {"input_ids": ids})["text_embeds"]
    with torch.inference_mode():
        expected = tf.SiglipModel.from_pretrained(folder).eval().text_model(input_ids=torch.from_numpy(ids))
    assert np.abs(expected.pooler_output.numpy() - vectors).max() < ATOL


# Vision


def images(side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(2).normal(size=(4, 3, side, side)).astype(np.float32)


def embed(name: str, folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The outputs of transformers' own classes, interpolating positions where the images have another size."""
    larger = {"interpolate_pos_encoding": True} if pixels.shape[-1] != 28 and name != "dinov2" else {}
    with torch.inference_mode():
        if name == "clip":
            model = tf.CLIPModel.from_pretrained(folder).eval()
            return model.visual_projection(model.vision_model(pixel_values=pixels, **larger).pooler_output)
        if name == "siglip":
            model = tf.SiglipModel.from_pretrained(folder).eval()
            return model.vision_model(pixel_values=pixels, **larger).pooler_output
        model = tf.AutoModel.from_pretrained(folder).eval() if name == "dinov2" else None
        if model is not None:
            return model(pixel_values=pixels).pooler_output
        eva = tf.Blip2VisionModel.from_pretrained(folder).eval()
        return eva(pixel_values=pixels, **larger).last_hidden_state[:, 0]


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "eva-clip"])
@pytest.mark.parametrize("side", [28, 56])
def test_image_encoders(name: str, side: int, encoders: Folders, tmp_path: Path) -> None:
    folder = encoders(name)
    axes = parse_axes(None if side == 28 else f"batch,height={side}")
    source = find_source(str(folder), task="image-embedding")
    if side != 28:  # exported elsewhere; here the positions, which are resized before
        part = encoder_part(source, axes)
        vectors = part.reference({"pixel_values": images(side)})["image_embeds"]
        assert part.inputs[0].axes == ("batch", 3, 56, 56)
        # DINOv2 interpolates by a scale factor with an offset against rounding, which is not quite the size asked for.
        atol = 2e-2 if name == "dinov2" else ATOL
    else:
        check(export_encoder(str(folder), tmp_path / "out", task="image-embedding"))
        vectors = run(tmp_path / "out", {"pixel_values": images(side)})["image_embeds"]
        atol = ATOL
    expected = embed(name, folder, torch.from_numpy(images(side))).numpy()
    assert expected.shape == vectors.shape
    assert np.abs(expected - vectors).max() < atol
    assert np.abs(vectors - vectors[0]).max() > 0.01  # images that all look alike would prove nothing


def test_an_images_patches(encoders: Folders) -> None:
    part = encoder_part(find_source(str(encoders("siglip")), task="feature-extraction", modality="vision"), Axes())
    assert part.outputs == (Tensor("last_hidden_state", "float32", ("batch", 4, 32)),)
    assert part.reference({"pixel_values": images(28)})["last_hidden_state"].shape == (4, 4, 32)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("batch,height", "cannot be dynamic"),
        ("batch,height=30", "patches of 14"),
        ("batch,height=28,width=42", "28 x 42"),
    ],
)
def test_images_that_do_not_fit(axes: str, words: str, encoders: Folders) -> None:
    with pytest.raises(InputError, match=words):
        encoder_part(find_source(str(encoders("dinov2"))), parse_axes(axes))


# Speech


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own WavLM
@pytest.mark.parametrize(
    ("name", "exported"),
    [
        ("hubert-base", False),
        ("hubert-large", True),
        ("wav2vec2-base", True),
        ("wav2vec2-large", False),
        ("wavlm", True),
    ],
)
def test_padded_recordings_answer_as_single_ones(name: str, exported: bool, encoders: Folders, tmp_path: Path) -> None:
    """Base models norm over time: transformers' own padded batches fail this test, and their single inputs pass it."""
    folder = encoders(name)
    lengths = (4000, 1777, 2600)
    mask = padded(4000, lengths)
    waves = np.random.default_rng(3).normal(size=(3, 4000)).astype(np.float32)  # noise behind the ends, too
    feeds = {"input_values": waves, "attention_mask": mask}
    if exported:
        report = export_encoder(str(folder), tmp_path / "out", task="feature-extraction")
        check(report)
        padding = report.graphs[0].check.padding_difference
        assert padding is not None
        assert padding < ATOL
        answer = run(tmp_path / "out", feeds)
    else:
        answer = encoder_part(find_source(str(folder), task="feature-extraction"), Axes()).reference(feeds)
    model = tf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        silent = torch.from_numpy(waves * mask.astype(np.float32))
        batched = model(silent, attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
    worst = 0.0
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            alone = model(torch.from_numpy(waves[row : row + 1, :length])).last_hidden_state[0].numpy()
        kept = answer["position_mask"][row].astype(bool)
        assert kept.sum() == len(alone)
        assert np.abs(answer["last_hidden_state"][row][kept] - alone).max() < ATOL
        worst = max(worst, float(np.abs(batched[row, : len(alone)] - alone).max()))
    assert (worst > 100 * ATOL) == (name in ("hubert-base", "wav2vec2-base", "wavlm"))


def test_whisper_on_the_inputs_own_length(encoders: Folders, tmp_path: Path) -> None:
    folder = encoders("whisper")
    report = export_encoder(str(folder), tmp_path / "out", task="feature-extraction")
    check(report)
    assert report.part.inputs[0].axes == ("batch", 8, "frames")
    mel = np.random.default_rng(4).normal(size=(2, 8, 100)).astype(np.float32)
    whole = run(tmp_path / "out", {"input_features": mel, "attention_mask": padded(100, (100, 100))})
    model = tf.WhisperModel.from_pretrained(folder).eval().encoder
    with torch.inference_mode():
        expected = model(torch.from_numpy(mel)).last_hidden_state.numpy()
    assert np.abs(whole["last_hidden_state"] - expected).max() < ATOL
    batch = run(tmp_path / "out", {"input_features": mel, "attention_mask": padded(100, (100, 31))})
    alone = run(tmp_path / "out", {"input_features": mel[1:, :, :31], "attention_mask": padded(31, (31,))})
    assert batch["position_mask"].sum(1).tolist() == [50, 16]
    assert np.abs(batch["last_hidden_state"][1, :16] - alone["last_hidden_state"][0]).max() < ATOL


# Real weights


@pytest.mark.weights
@pytest.mark.parametrize(
    ("part", "axes", "precision"), [("audio", None, "int8"), ("scene", "batch,height=224", "fp16")]
)
def test_real_weights_pass(
    part: str,
    axes: str | None,
    precision: Any,
    small_weights: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Whisper-tiny and DINOv2-small."""
    if precision == "int8":
        request.getfixturevalue("exact_int8")
    report = export_encoder(str(small_weights / part), tmp_path / "out", axes=parse_axes(axes), precisions=(precision,))
    assert [graph.precision for graph in report.graphs] == [precision]
    assert report.graphs[0].check.cosine > 0.999
    assert not report.refused
