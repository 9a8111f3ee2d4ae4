"""Merges a LoRA adapter into its base and writes a plain Hugging Face folder, completely or not at all.

The weights are summed in fp32 and rounded once, to the requested dtype. Before the folder is put in place, its answers
are compared with those of the base with the unmerged adapter: first the merged weights in fp32, with a tight tolerance;
then the written files, loaded again. One copy of the weights is in memory at a time: 4 bytes per parameter.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from mechm.llm.combination import ADAPTER_FILE, COMBINATION_FILE
from mechm.llm.comparison import AnswerDifference, Answers, answer, compare_answers
from mechm.llm.model_folder import MAX_SHARD, check_space, check_vocabulary, copy_companions, written_beside
from mechm.llm.scorer import AnswerScores, load_llama
from mechm.llm.stored_adapter import StoredAdapter, check_fit, read_adapter
from mechm.llm.stored_base import StoredBase, read_base
from mechm.llm.stored_projector import PROJECTOR_FOLDER, has_projector
from mechm.model.build import CARD_FILE, DECISION_FILE
from mechm.model.transformers_output import quiet_transformers
from mechm.weights.from_folder import sha256_of
from mechm_runtime.errors import InputError, VerificationError, WeightsError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.readers import read_transcript
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.types import Conversation

DType = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[DType, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

TOLERANCE = 1e-3
"""Largest difference of log-probabilities, in nats, between merged and unmerged fp32 weights. Rounding alone causes
1e-5 (SmolLM2-135M, rank 16, torch 2.13)."""

MAX_KL = 0.1
"""Largest mean divergence of the written weights from the fp32 ones, in nats per question. It lies between weights that
kept their labels (8 bits, 0.03) and weights that did not (4 bits, 0.2; both SmolLM2-135M in onnxruntime 1.32)."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Result of a merge.

    conversations: name of the set that the answers were compared on. merged: merged fp32 weights against unmerged ones.
    written: the files, loaded in `dtype`, against unmerged fp32 weights. base_fingerprint: see `mechm.llm.stored_base`.
    """

    dtype: DType
    n_parameters: int
    base_fingerprint: str
    adapter_sha256: str
    conversations: str
    n_conversations: int
    merged: AnswerDifference
    written: AnswerDifference


def check_conversations() -> tuple[Conversation, ...]:
    """Return the default conversations for comparing answers: four, written for this purpose, CC0 1.0."""
    with resources.as_file(resources.files("mechm.llm") / "conversations.json") as path:
        return read_transcript(path)


def merge_adapter(
    adapter_folder: Path,
    base_folder: Path,
    out: Path,
    *,
    dtype: DType = "bf16",
    conversations: tuple[str, Sequence[Conversation]] | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> MergeReport:
    """Merge, verify and write.

    conversations: a name and the conversations to compare answers on; None for `check_conversations`.
    device: torch device that computes.
    Raises: WeightsError: `out` exists or cannot be written, the adapter does not fit the base, or either is damaged.
        InputError: no conversations. VerificationError: the merged model's answers differ; nothing is written.
    """
    if out.exists():
        raise WeightsError(f"{out} exists", hint="choose another --out, or remove it first")
    name, asked = ("mechm merge conversations", check_conversations()) if conversations is None else conversations
    if not asked:
        raise InputError("no conversations to compare the answers on")
    report = on_progress or no_progress
    report("reading the adapter and the base", 0, 0)
    adapter, base = read_adapter(adapter_folder), read_base(base_folder)
    fingerprint = check_fit(adapter, base)
    tokenizer = QuestionTokenizer(base_folder / "tokenizer.json")
    check_vocabulary(base)
    check_space(out, base.n_parameters * DTYPES[dtype].itemsize)
    with quiet_transformers(), _enough_memory(base, device):
        reference, merged, llama = _merge(adapter, base, tokenizer, asked, device, report)
        difference = compare_answers(reference, merged, adapter.decision)
        _require_equal(difference, name)
        report(f"rounding to {dtype}", 0, 0)
        llama = llama.cpu().to(DTYPES[dtype])
        _require_finite(llama, f"does not fit into {dtype}", hint="choose --dtype bf16 or fp32")
        with written_beside(out) as folder:
            report("writing", 0, 0)
            _write(llama, base_folder, folder)
            # The memory is needed for loading the written files, which are what users will load.
            del llama
            gc.collect()
            loaded = _answer_written(folder, dtype, tokenizer, asked, device, report)
            written = compare_answers(reference, loaded, adapter.decision)
            _require_close(written, dtype, name)
            adapter_sha256 = sha256_of(adapter_folder / ADAPTER_FILE)
            made = MergeReport(
                dtype, base.n_parameters, fingerprint, adapter_sha256, name, len(asked), difference, written
            )
            _write_companions(adapter, made, folder)
    return made


def _merge(
    adapter: StoredAdapter,
    base: StoredBase,
    tokenizer: QuestionTokenizer,
    conversations: Sequence[Conversation],
    device: str,
    report: Progress,
) -> tuple[list[Answers], list[Answers], Any]:
    """Return the answers of the unmerged adapter, those of the merged weights, and the merged weights, all in fp32."""
    from peft import PeftModel

    report("loading the base in fp32", 0, 0)
    llama = _load(base.folder, torch.float32)
    absent = [name for name, _ in llama.named_parameters() if name not in base.tensors]
    if absent:
        raise WeightsError(
            f"{base} lacks {len(absent)} of its weights, the first is {absent[0]}", hint="fetch the base again"
        )
    _require_finite(llama, f"is not finite in {base.folder}", hint="fetch the base again")
    adapted = PeftModel.from_pretrained(llama, str(adapter.folder), local_files_only=True)
    _require_finite(adapted, f"is not finite in {adapter.folder}", hint="train the adapter again")
    scores = AnswerScores(adapted, tokenizer).to(device)
    reference = answer(scores, tokenizer, conversations, lambda done, n: report("asking with the adapter", done, n))
    report("merging", 0, 0)
    scores.llama = adapted.merge_and_unload()
    merged = answer(scores, tokenizer, conversations, lambda done, n: report("asking the merged weights", done, n))
    return reference, merged, scores.llama


def _answer_written(
    folder: Path,
    dtype: DType,
    tokenizer: QuestionTokenizer,
    conversations: Sequence[Conversation],
    device: str,
    report: Progress,
) -> list[Answers]:
    """Load the written files in `dtype` and return their answers."""
    scores = AnswerScores(_load(folder, DTYPES[dtype]), tokenizer).to(device)
    return answer(scores, tokenizer, conversations, lambda done, n: report("asking what was written", done, n))


def _write_companions(adapter: StoredAdapter, made: MergeReport, folder: Path) -> None:
    """Write decision, combination, projector and card; merging invalidates none of the adapter's."""
    shutil.copyfile(adapter.folder / DECISION_FILE, folder / DECISION_FILE)
    if (adapter.folder / COMBINATION_FILE).is_file():
        shutil.copyfile(adapter.folder / COMBINATION_FILE, folder / COMBINATION_FILE)
    if has_projector(adapter.folder):
        shutil.copytree(adapter.folder / PROJECTOR_FOLDER, folder / PROJECTOR_FOLDER)
    card = {**adapter.card, "merged": asdict(made) | {"versions": _versions()}}
    (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _load(folder: Path, dtype: torch.dtype) -> Any:
    try:
        return load_llama(folder, dtype)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"transformers cannot load {folder}: {reason}", hint="fetch the base again") from error


def _write(llama: Any, base_folder: Path, folder: Path) -> None:
    """Write weights and config with transformers, and copy the base's tokenizer and generation settings."""
    from transformers import GenerationConfig

    # transformers refuses to write settings that it warns about (Llama-2's own), so that file is copied instead.
    llama.generation_config = GenerationConfig.from_model_config(llama.config)
    llama.save_pretrained(folder, max_shard_size=MAX_SHARD)
    copy_companions(base_folder, folder)


@contextmanager
def _enough_memory(base: StoredBase, device: str) -> Iterator[None]:
    """Raises: WeightsError: the device has too little memory for the model in fp32."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise WeightsError(
            f"the memory of {device} is too small: {base.n_parameters * 4 / 1e9:.1f} GB of weights, and the answers",
            hint="choose --device cpu",
        ) from error


def _require_finite(model: torch.nn.Module, what: str, *, hint: str) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise WeightsError(f"{name} {what}", hint=hint)


def _require_equal(difference: AnswerDifference, name: str) -> None:
    if difference.largest > TOLERANCE or difference.n_labels_changed or difference.n_pairs_changed:
        raise VerificationError(
            f"merged and unmerged answer differently on {name}: {describe(difference)}",
            hint="nothing was written; report this with the adapter's adapter_config.json",
        )


def _require_close(difference: AnswerDifference, dtype: DType, name: str) -> None:
    # "not <=" also refuses NaN.
    if not difference.mean_kl <= MAX_KL:
        raise VerificationError(
            f"in {dtype} the merged model answers differently on {name}: {describe(difference)}",
            hint="nothing was written; choose --dtype fp32" if dtype != "fp32" else "nothing was written",
        )


def describe(difference: AnswerDifference) -> str:
    """Format a difference as one line."""
    return (
        f"largest log-probability difference {difference.largest:.1e}, KL {difference.mean_kl:.1e}, "
        f"{difference.n_labels_changed} of {difference.n_labels:,} labels and {difference.n_pairs_changed} pairs "
        f"(of {difference.n_pairs:,}) changed"
    )


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("mechm", "torch", "transformers", "peft", "safetensors")}
