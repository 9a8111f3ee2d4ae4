"""Architectures that `mechm export encoder` takes, and the largest difference of each graph from torch.

    python benchmarks/encoder_architectures.py [--only NAME ...] [--out benchmarks/results/encoders/architectures.json]

Makes a small model with random weights of every architecture in TRIED, exports it (and its classifier, where
transformers has one) in fp32, and compares the graph with torch at several sizes and batch sizes, as the command does.
--out keeps the rows, architecture by architecture, and writes a Markdown table beside them. A row takes about 20
seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from mechm.model.transformers_output import quiet_transformers
from mechm_export.encoders.architectures import ARCHITECTURES, CLASSIFICATION, EMBEDDING, Modality
from mechm_export.encoders.export import export_encoder
from mechm_export.encoders.optimum_tasks import (
    classes_for,
    classifier_for,
    count_classifiers,
    count_encoders,
)
from mechm_runtime import MechmError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 3,
}
SPEECH: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
STAGES: dict[str, Any] = {
    "num_attention_heads": None,
    "hidden_size": None,
    "embed_dim": 16,
    "depths": (1, 1),
    "num_heads": (2, 2),
    "window_size": 4,
    "patch_size": 4,
}
CONVOLUTIONS: dict[str, Any] = {"hidden_sizes": (16, 32), "depths": (1, 1), "num_stages": 2, "embedding_size": 16}
# None leaves a size at the architecture's own default.
TRIED: dict[Modality, dict[str, dict[str, Any]]] = {
    "text": {
        "albert": {"embedding_size": 16},
        "bert": {},
        "camembert": {},
        "convbert": {"embedding_size": 32},
        "data2vec-text": {},
        "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48},
        "electra": {"embedding_size": 16},
        "ernie": {},
        "eurobert": {"num_key_value_heads": 2},
        "flaubert": {"emb_dim": 32, "n_layers": 1, "n_heads": 2},
        "fnet": {},
        "ibert": {},
        "megatron-bert": {},
        "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
        "modernbert": {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3},
        "mpnet": {},
        "nystromformer": {},
        "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
        "roberta": {},
        "roberta-prelayernorm": {},
        "roformer": {"embedding_size": 32},
        "squeezebert": {"embedding_size": 32},
        "xlm-roberta": {},
        "xlm-roberta-xl": {},
        "xmod": {"default_language": "en_XX"},
        "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
        "qwen2": {"num_key_value_heads": 1},
        "xlnet": {"max_position_embeddings": None, "d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 48},
    },
    "audio": {
        "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
        "data2vec-audio": {**SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
        "hubert": {**SPEECH, "use_weighted_layer_sum": True},
        "sew": {**SPEECH, "squeeze_factor": 2},
        "sew-d": {**SPEECH, "squeeze_factor": 2},
        "unispeech": SPEECH,
        "unispeech-sat": SPEECH,
        "wav2vec2": {**SPEECH, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
        "wav2vec2-bert": {"feature_projection_input_dim": 16, "output_hidden_size": 32, "classifier_proj_size": 16},
        "wav2vec2-conformer": SPEECH,
        "wavlm": SPEECH,
    },
    "vision": {
        "beit": {},
        "convnext": {**CONVOLUTIONS, "patch_size": 4},
        "convnextv2": {**CONVOLUTIONS, "patch_size": 4},
        "data2vec-vision": {},
        "deit": {},
        "dinov2": {},
        "dinov2_with_registers": {},
        "dinov3_vit": {"num_register_tokens": 4},
        "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
        "hiera": {"image_size": (64, 64), "patch_size": None, "hidden_size": None, "num_attention_heads": None},
        "ijepa": {},
        "mobilenet_v2": {},
        "mobilevit": {"hidden_sizes": (16, 24, 32), "neck_hidden_sizes": (8, 8, 16, 16, 24, 32, 64)},
        "pvt_v2": {"num_attention_heads": None, "patch_size": None, "image_size": 64, "hidden_size": None},
        "resnet": CONVOLUTIONS,
        "siglip2_vision_model": {"num_patches": 16},
        "swin": STAGES,
        "swinv2": STAGES,
        "timesformer": {"num_frames": 2},
        "videomae": {"num_frames": 4, "tubelet_size": 2},
        "vit": {},
        "vit_msn": {},
    },
}
PAGE = """# Architectures that `mechm export encoder` takes

Of `python benchmarks/encoder_architectures.py --out {out}`; {versions}.

Own table: {own}. Through optimum, encoders: {encoders}; classifiers: {classifiers}. Tried with random weights:
{tried} architectures, {exported} of {rows} graphs exported and equal to torch within 1e-3 of their largest value.
The difference is the largest of all outputs at several sizes and batch sizes, in fp32; behind it, where padding exists,
the largest between a row of a padded batch and the same input alone.

| architecture | task | largest difference | padded - single | largest value |
| --- | --- | ---: | ---: | ---: |
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture and task. padding: None where there is none. problem: why there is no graph, or empty."""

    architecture: str
    task: str
    difference: float = 0.0
    padding: float | None = None
    value: float = 0.0
    problem: str = ""


def main() -> None:
    """Export, print a line per graph and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures, in place of all")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="keep the rows, beside those of others")
    given = parser.parse_args()
    names = [name for tried in TRIED.values() for name in tried]
    if unknown := sorted(set(given.only or []) - set(names)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
    rows: list[Row] = []
    for modality, tried in TRIED.items():
        for name, changes in tried.items():
            if given.only and name not in given.only:
                continue
            for row in try_architecture(name, modality, changes):
                print(_line(row), file=sys.stderr, flush=True)
                rows.append(row)
            if given.out is not None:
                keep(given.out, rows, names)
    print(json.dumps([asdict(row) for row in rows]))


def try_architecture(name: str, modality: Modality, changes: Mapping[str, Any]) -> list[Row]:
    """Export an architecture's vector and, where it has a class for it, its classifier."""
    rows = []
    encoder = classes_for("feature-extraction").get(name)
    for task, loader in ((EMBEDDING[modality], encoder), (CLASSIFICATION[modality], classifier_for(name, modality))):
        decodes = modality == "text" and name in ("gpt2", "qwen2", "xlnet") and task == EMBEDDING[modality]
        if not loader or decodes:
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            try:
                save_random(name, str(loader), changes, model)
                report = export_encoder(str(model), Path(folder) / "out", task=task)
            except MechmError as error:
                rows.append(Row(name, task, problem=str(error).replace("\n", " ")[:200]))
                continue
            except Exception as error:  # noqa: BLE001 (a model that cannot be made is a row, too)
                rows.append(Row(name, task, problem=f"{type(error).__name__}: {str(error)[:150]}".replace("\n", " ")))
                continue
        (graph,) = report.graphs
        check = graph.check
        rows.append(Row(name, task, check.largest_difference, check.padding_difference, check.largest_value))
    return rows


def save_random(name: str, loader: str, changes: Mapping[str, Any], folder: Path) -> None:
    """A small model of an architecture, with weights so large that inputs differ in its outputs."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in (SIZES | dict(changes)).items() if value is not None}
    config = tf.CONFIG_MAPPING[name](**sizes)
    with quiet_transformers():
        model = getattr(tf, loader)(config).eval()
        model.save_pretrained(folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    for key, value in state.items():
        if value.is_floating_point() and "running_var" not in key:
            scale = 3.0 if value.ndim > 1 else 1.0
            state[key] = value * scale + (0.1 * torch.randn_like(value) if value.ndim == 1 else 0)
    save_file(state, path, metadata={"format": "pt"})


def keep(out: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Put rows into a JSON file in place of those of the same architectures, and write the page beside it."""
    kept = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    measured = {row.architecture for row in rows}
    merged = [Row(**row) for row in kept if row["architecture"] not in measured] + list(rows)
    merged.sort(key=lambda row: names.index(row.architecture))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([asdict(row) for row in merged], indent=1) + "\n", encoding="utf-8")
    made = [row for row in merged if not row.problem]
    head = PAGE.format(
        out="FILE.json",
        versions=", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "optimum", "onnx")),
        own=len(ARCHITECTURES),
        encoders=_counts(count_encoders()),
        classifiers=_counts(count_classifiers()),
        tried=len({row.architecture for row in merged}),
        exported=len(made),
        rows=len(merged),
    )
    failed = [f"- {row.architecture}, {row.task}: {row.problem}" for row in merged if row.problem]
    tail = "\n## Not exported\n\n" + "\n".join(failed) + "\n" if failed else ""
    page = head + "".join(f"{_line(row)}\n" for row in made) + tail
    out.with_suffix(".md").write_text(page, encoding="utf-8")


def _counts(counts: Mapping[Modality, int]) -> str:
    return ", ".join(f"{number} {modality}" for modality, number in counts.items())


def _line(row: Row) -> str:
    if row.problem:
        return f"{row.architecture}, {row.task}: {row.problem}"
    padding = "" if row.padding is None else f"{row.padding:.1e}"
    return f"| {row.architecture} | {row.task} | {row.difference:.1e} | {padding} | {row.value:.2g} |"


if __name__ == "__main__":
    main()
