"""Trained classification heads: kept by their task, named where they are left out, refused where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from mechm.cli import main
from mechm_export.encoders.axes import Axes
from mechm_export.encoders.checkpoint import stored_shapes, summarize_names
from mechm_export.encoders.export import convert_graph, export_encoder
from mechm_export.encoders.part import load_part
from mechm_export.encoders.report import FILES, REPORT, EncoderReport
from mechm_export.encoders.source import find_source
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError

Folders = Callable[[str], Path]
ATOL = 2e-5
LABELS = ("anger", "joy", "Überraschung")


def run(path: Path, feeds: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["logits"], feeds)[0]


def padded(longest: int, lengths: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)


def words() -> tuple[dict[str, Any], tuple[int, ...]]:
    lengths = (12, 4, 1)
    mask = padded(12, lengths)
    ids = np.random.default_rng(1).integers(5, 64, (3, 12))
    return {"input_ids": np.where(mask == 1, ids, 0), "attention_mask": mask}, lengths


def waves() -> tuple[dict[str, Any], tuple[int, ...]]:
    lengths = (4000, 1777, 2600)
    noise = np.random.default_rng(3).normal(size=(3, 4000)).astype(np.float32)  # behind the ends, too
    return {"input_values": noise, "attention_mask": padded(4000, lengths)}, lengths


def alone(model: Any, feature: str, values: Any, length: int) -> Any:
    """transformers' own logits of one input without padding."""
    with torch.inference_mode():
        return model.eval()(**{feature: torch.from_numpy(values[None, :length])}).logits[0].numpy()


def lost(names: tuple[str, ...]) -> list[str]:
    """Left-out names without those that only training reads."""
    return [name for name in names if not name.endswith("masked_spec_embed")]


def labels_of(path: Path) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert entries["task"].endswith("-classification")
    return dict(json.loads(entries["id2label"]))


@pytest.fixture(scope="module")
def roberta(encoders: Folders, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncoderReport]:
    """A trained RoBERTa classifier in two precisions."""
    out = tmp_path_factory.mktemp("heads") / "out"
    folder = encoders("roberta-classifier")
    return out, export_encoder(str(folder), out, task="text-classification", precisions=("fp32", "fp16"))


# Kept


def test_a_text_head_and_its_labels(roberta: tuple[Path, EncoderReport], encoders: Folders) -> None:
    out, report = roberta
    assert report.part.outputs == (Tensor("logits", "float32", ("batch", 3)),)
    assert report.graphs[0].check.largest_difference < ATOL
    feeds, lengths = words()
    logits = run(out / FILES["fp32"], feeds)
    model = tf.RobertaForSequenceClassification.from_pretrained(encoders("roberta-classifier"))
    for row, length in enumerate(lengths):
        assert np.abs(alone(model, "input_ids", feeds["input_ids"][row], length) - logits[row]).max() < ATOL
    assert np.abs(logits - logits[0]).max() > 0.01  # inputs that all look alike would prove nothing
    assert report.labels == LABELS
    assert not report.left_out
    written = json.loads((out / REPORT).read_text())
    named = {str(number): label for number, label in enumerate(LABELS)}
    assert written["id2label"] == named
    assert written["left_out"] == []
    for precision in ("fp32", "fp16"):
        assert labels_of(out / FILES[precision]) == named  # type: ignore[index]


def test_labels_survive_a_conversion(roberta: tuple[Path, EncoderReport], tmp_path: Path) -> None:
    report = convert_graph(roberta[0], tmp_path / "out", precisions=("fp16",))
    assert report.labels == LABELS
    assert report.task == "text-classification"
    assert tuple(labels_of(tmp_path / "out" / FILES["fp16"]).values()) == LABELS


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own WavLM
@pytest.mark.parametrize(("name", "exported"), [("hubert-classifier", True), ("wavlm-classifier", False)])
def test_a_speech_head_on_padded_batches(name: str, exported: bool, encoders: Folders, tmp_path: Path) -> None:
    """The weighted sum over layers of SUPERB's HuBERT, and a norm over time that must not see padding."""
    folder = encoders(name)
    feeds, lengths = waves()
    if exported:
        report = export_encoder(str(folder), tmp_path / "out", task="audio-classification")
        padding = report.graphs[0].check.padding_difference
        assert padding is not None
        assert padding < ATOL
        assert not lost(report.left_out)
        logits = run(tmp_path / "out" / FILES["fp32"], feeds)
    else:
        loaded = load_part(find_source(str(folder), task="audio-classification"), Axes())
        assert (loaded.labels, lost(loaded.left_out)) == (LABELS, [])
        logits = loaded.part.reference(feeds)["logits"]
    model = tf.AutoModelForAudioClassification.from_pretrained(folder)
    for row, length in enumerate(lengths):
        assert np.abs(alone(model, "input_values", feeds["input_values"][row], length) - logits[row]).max() < ATOL
    assert np.abs(logits - logits[0]).max() > 0.01


@pytest.fixture
def audeering(encoders: Folders, tmp_path: Path) -> Path:
    """wav2vec2 below a dense and an output layer, of a class that transformers does not have."""
    folder = tmp_path / "audeering"
    folder.mkdir()
    config = json.loads((encoders("wav2vec2-large") / "config.json").read_text())
    config |= {
        "architectures": ["Wav2Vec2ForSpeechClassification"],
        "pooling_mode": "mean",
        "id2label": {"0": "arousal", "1": "dominance", "2": "valence"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(encoders("wav2vec2-large") / "model.safetensors")
    torch.manual_seed(1)
    head = {"dense.weight": (32, 32), "dense.bias": (32,), "out_proj.weight": (3, 32), "out_proj.bias": (3,)}
    tensors = {f"wav2vec2.{name}": value for name, value in state.items()}
    tensors |= {f"classifier.{name}": torch.randn(shape) * 0.3 for name, shape in head.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_speech_layout_without_a_class(pooling: str, audeering: Path, encoders: Folders) -> None:
    config = json.loads((audeering / "config.json").read_text()) | {"pooling_mode": pooling}
    (audeering / "config.json").write_text(json.dumps(config))
    loaded = load_part(find_source(str(audeering), task="audio-classification"), Axes())
    assert loaded.labels == ("arousal", "dominance", "valence")
    assert not lost(loaded.left_out)
    feeds, lengths = waves()
    logits = loaded.part.reference(feeds)["logits"]
    encoder = tf.Wav2Vec2Model.from_pretrained(encoders("wav2vec2-large")).eval()
    head = load_file(audeering / "model.safetensors")
    for row, length in enumerate(lengths):
        with torch.inference_mode():
            states = encoder(torch.from_numpy(feeds["input_values"][row : row + 1, :length])).last_hidden_state[0]
            pooled = states.mean(0) if pooling == "mean" else states.max(0).values
            dense = torch.tanh(head["classifier.dense.weight"] @ pooled + head["classifier.dense.bias"])
            expected = head["classifier.out_proj.weight"] @ dense + head["classifier.out_proj.bias"]
        assert np.abs(expected.numpy() - logits[row]).max() < ATOL
    (audeering / "config.json").write_text(json.dumps(config | {"pooling_mode": "attentive"}))
    with pytest.raises(WeightsError, match="pools by 'attentive'"):
        load_part(find_source(str(audeering), task="audio-classification"), Axes())


@pytest.mark.parametrize("name", ["bert-classifier", "distilbert-classifier"])
def test_other_text_heads(name: str, encoders: Folders) -> None:
    """The module alone, without tracing. BERT's token types are an input, since classifiers of pairs read them."""
    loaded = load_part(find_source(str(encoders(name)), task="text-classification"), Axes())
    names = [tensor.name for tensor in loaded.part.inputs]
    assert ("token_type_ids" in names) == (name == "bert-classifier")
    assert (loaded.labels, loaded.left_out) == (LABELS, ())
    feeds, lengths = words()
    given = {one: feeds.get(one, np.zeros_like(feeds["input_ids"])) for one in names}
    model = tf.AutoModelForSequenceClassification.from_pretrained(encoders(name))
    logits = loaded.part.reference(given)["logits"]
    for row, length in enumerate(lengths):
        assert np.abs(alone(model, "input_ids", feeds["input_ids"][row], length) - logits[row]).max() < ATOL


def test_an_image_head(encoders: Folders) -> None:
    loaded = load_part(find_source(str(encoders("vit-classifier")), task="image-classification"), Axes())
    assert (loaded.labels, loaded.left_out) == (LABELS, ())
    pixels = np.random.default_rng(2).normal(size=(2, 3, 28, 28)).astype(np.float32)
    model = tf.ViTForImageClassification.from_pretrained(encoders("vit-classifier")).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels)).logits.numpy()
    assert np.abs(loaded.part.reference({"pixel_values": pixels})["logits"] - expected).max() < 1e-6


# Left out


def test_the_command_names_a_head_that_it_leaves_out(
    encoders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["export", "encoder", "--model", str(encoders("roberta-classifier")), "--out", str(out)])
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    names = [f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("bias", "weight")]
    assert f"left out: {', '.join(names)}" in lines
    assert "  --task text-classification keeps the classification head" in lines
    assert json.loads((out / REPORT).read_text())["left_out"] == names


@pytest.mark.parametrize(
    ("name", "options", "left_out"),
    [
        ("hubert-classifier", {}, ["classifier.bias", "layer_weights", "projector.weight"]),
        ("bert", {}, ["pooler.dense.weight"]),
        ("clip", {"modality": "vision"}, ["logit_scale", "text_model.final_layer_norm.bias", "text_projection.weight"]),
        ("clip", {"modality": "vision", "task": "feature-extraction"}, ["visual_projection.weight"]),
        ("whisper", {}, ["model.decoder.layer_norm.weight"]),
        ("vit", {"task": "feature-extraction"}, ["pooler.dense.weight"]),
    ],
)
def test_every_tensor_is_in_the_graph_or_named(
    name: str, options: dict[str, Any], left_out: list[str], encoders: Folders
) -> None:
    """Those that are named can change without changing the output; all others cannot."""
    source = find_source(str(encoders(name)), **options)
    loaded = load_part(source, Axes())
    stored = stored_shapes(source.folder)
    assert set(left_out) <= set(loaded.left_out) <= stored.keys()
    n_parameters = sum(np.prod(stored[one], dtype=int) for one in stored.keys() - set(loaded.left_out))
    in_module = {id(parameter): parameter.numel() for parameter in loaded.part.module.parameters()}
    assert 0 < n_parameters <= sum(in_module.values())


def test_many_names_are_counted() -> None:
    names = [f"decoder.layers.{layer}.fc.{kind}" for layer in range(4) for kind in ("bias", "weight")]
    assert summarize_names([*names, "logit_scale"]) == "decoder.* (8 tensors), logit_scale"
    assert summarize_names(names[:2]) == "decoder.layers.0.fc.bias, decoder.layers.0.fc.weight"


# Refused


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("roberta-classifier", "audio-classification", "roberta has no audio-classification"),
        ("hubert-classifier", "text-classification", "hubert has no text-classification"),
        ("vit-classifier", "text-classification", "vit has no text-classification"),
    ],
)
def test_another_modalitys_task(name: str, task: Any, words: str, encoders: Folders) -> None:
    with pytest.raises(InputError, match=words) as refused:
        find_source(str(encoders(name)), task=task)
    own = {"roberta": "text", "hubert": "audio", "vit": "image"}[name.partition("-")[0]]
    assert f"--task {own}-classification" in refused.value.hint


def test_a_checkpoint_without_a_head(encoders: Folders) -> None:
    """Random weights are never exported as if they were trained."""
    with pytest.raises(WeightsError, match="weights of BertForSequenceClassification, classifier") as refused:
        load_part(find_source(str(encoders("bert")), task="text-classification"), Axes())
    assert "--task sentence-embedding" in refused.value.hint


def test_a_pooler_that_the_head_needs(encoders: Folders, tmp_path: Path) -> None:
    """BERT's pooler may be missing where no output depends on it, and only there."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_bytes((encoders("bert-classifier") / "config.json").read_bytes())
    state = load_file(encoders("bert-classifier") / "model.safetensors")
    kept = {name: value for name, value in state.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_part(find_source(str(folder)), Axes()).left_out == ("classifier.bias", "classifier.weight")
    with pytest.raises(WeightsError, match=r"lacks 2 weights that the output depends on, bert\.pooler"):
        load_part(find_source(str(folder), task="text-classification"), Axes())
