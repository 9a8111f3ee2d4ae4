"""Imports a MiniGPT-v2 checkpoint, its Llama and its ViT into one folder: `llm/` (Hugging Face layout), `vision/` and
`card.json`.

The LoRA is merged in fp32 and rounded once. Weights are read one at a time and files of 2 GB are written, so that a few
gigabytes of memory suffice for Llama-2-7b. The written weights' answers are compared with those of the unmerged LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechm.llm.merge import DTYPES, DType
from mechm.llm.model_folder import check_space, check_vocabulary, copy_companions, written_beside
from mechm.llm.stored_base import StoredBase, read_base
from mechm.minigpt.checkpoint import check_finite
from mechm.minigpt.comparison import Difference, compare, reader
from mechm.minigpt.config import ImageTokensConfig, Variant, VitShape
from mechm.minigpt.folder import LLAMA_FOLDER, VISION_FOLDER
from mechm.minigpt.image_tokens import CONFIG_FILE, WEIGHTS_FILE
from mechm.minigpt.lora import LoraPairs
from mechm.minigpt.parts import LnVision, llama_shapes, read_parts
from mechm.minigpt.prompt import PromptReader
from mechm.model.build import CARD_FILE
from mechm.model.transformers_output import quiet_transformers
from mechm.weights.from_folder import sha256_of
from mechm_runtime.errors import VerificationError, WeightsError
from mechm_runtime.system.progress import Progress, no_progress

SHARD = "2GB"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Result of an import.

    rank, alpha, n_pairs: of the LoRA. ln_vision: its source. unused: tensors that are not imported because the
    variant's code does not use them. inputs: role and file name -> sha256. merged: difference of the merged fp32
    weights. written: difference of the files, in `dtype`.
    """

    variant: Variant
    dtype: DType
    n_parameters: int
    rank: int
    alpha: float
    n_pairs: int
    ln_vision: LnVision
    unused: tuple[str, ...]
    inputs: Mapping[str, str]
    merged: Difference
    written: Difference


def import_minigpt(
    checkpoint: Path,
    llama: Path,
    vit: Path | None,
    out: Path,
    *,
    dtype: DType = "fp16",
    alpha: float | None = None,
    ln_vision: LnVision = "checkpoint",
    shape: VitShape | None = None,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Check, merge, verify and write.

    vit: the ViT's file; None where the checkpoint contains a ViT.
    alpha: of the LoRA; None for the checkpoint's, or MiniGPT-v2's where it has none.
    ln_vision: `identity` for checkpoints that were saved without it: the original then runs with weight 1 and bias 0.
    Raises: WeightsError: `out` exists or cannot be written, or files are damaged or do not fit each other. InputError:
        options contradict the files. VerificationError: the merged model's answers differ.
    """
    if out.exists():
        raise WeightsError(f"{out} exists", hint="choose another --out, or remove it first")
    report = on_progress or no_progress
    report("reading the checkpoint", 0, 0)
    base = read_base(llama)
    config, shapes = llama_shapes(base)
    check_vocabulary(base)
    parts = read_parts(checkpoint, vit, shapes, config.num_hidden_layers, alpha, ln_vision, shape or VitShape())
    prompts = PromptReader(llama / "tokenizer.json", parts.config.variant, parts.config.n_tokens)
    vision = {**parts.vit.state, **parts.projections}
    n_bytes = sum(tensor.nbytes for tensor in vision.values()) + base.n_parameters * DTYPES[dtype].itemsize
    check_space(out, n_bytes)
    with quiet_transformers(), written_beside(out) as folder:
        report("writing the image tokens", 0, 0)
        _write_vision(vision, parts.config, folder / VISION_FOLDER)
        _write_llama(base, config, shapes, parts.lora, dtype, folder / LLAMA_FOLDER, report)
        merged, written = compare(base, config, parts.lora, prompts, folder / LLAMA_FOLDER, dtype, report)
        files = {f"checkpoint/{checkpoint.name}": checkpoint} | ({} if vit is None else {f"vit/{vit.name}": vit})
        files |= {f"llama/{one.file.name}": one.file for one in base.tensors.values()}
        made = ImportReport(
            parts.config.variant,
            dtype,
            base.n_parameters + sum(tensor.numel() for tensor in vision.values()),
            parts.lora.rank,
            parts.lora.alpha,
            len(parts.lora.pairs),
            ln_vision,
            parts.unused,
            _hashes(files, report),
            merged,
            written,
        )
        card = {"imported": asdict(made) | {"versions": _versions()}}
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return made


def _write_vision(state: Mapping[str, Tensor], config: ImageTokensConfig, folder: Path) -> None:
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS_FILE, {"format": "pt"})
    (folder / WEIGHTS_FILE).chmod((folder / CONFIG_FILE).stat().st_mode)
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        if not torch.equal(tensor, state[name]):
            raise VerificationError(f"{name} was written with other values")


def _write_llama(
    base: StoredBase,
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    lora: LoraPairs,
    dtype: DType,
    folder: Path,
    report: Progress,
) -> None:
    """Write the Llama file by file; each weight is read, merged and rounded."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers import GenerationConfig

    folder.mkdir()
    planned = {name: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=SHARD)
    read, done = reader(base), 0
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name in names:
            rounded = lora.merged(name, check_finite(base.tensors[name].file, name, read(name))).to(DTYPES[dtype])
            if not bool(torch.isfinite(rounded).all()):
                raise WeightsError(f"{name} does not fit into {dtype}", hint="choose --dtype bf16 or fp32")
            shard[name] = rounded
            done += 1
            report("merging the LoRA", done, len(shapes))
        save_file(shard, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.architectures, config.dtype = ["LlamaForCausalLM"], DTYPES[dtype]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    copy_companions(base.folder, folder)


def _hashes(files: Mapping[str, Path], report: Progress) -> dict[str, str]:
    hashes = {}
    for done, (name, file) in enumerate(files.items(), 1):
        hashes[name] = sha256_of(file)
        report("hashing the source files", done, len(files))
    return hashes


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("mechm", "torch", "transformers", "safetensors")}
