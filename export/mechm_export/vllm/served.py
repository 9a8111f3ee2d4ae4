"""Put the Llama into a bundle as a server loads it: merged, in the Hugging Face layout, beside the graph of the edge.

What is asked, the answers' tokens and how the answers are weighed are in the bundle already (`llama.part`), and hold
for these weights too: they are merged from the adapter that the graph was made from. The old bundle stays valid until
the new manifest is in place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mechm.llm.combination import ADAPTER_FILE, COMBINATION_FILE
from mechm.llm.comparison import answer
from mechm.llm.merge import DTYPES, DType, MergeReport, merge_adapter
from mechm.llm.packed import TorchLlama
from mechm.llm.scorer import AnswerScores, load_llama
from mechm.llm.stored_projector import PROJECTOR_FOLDER
from mechm.model.build import DECISION_FILE
from mechm.model.transformers_output import quiet_transformers
from mechm_export.bundle.manifest import file_facts, replace_manifest
from mechm_export.check_data import check_conversations
from mechm_export.gate.comparison import TaskCheck, check_task
from mechm_export.gate.judge import SHIPPED_SPLIT
from mechm_export.llama.compressed import SCHEMES, SchemeName, even_out, round_layers, write_compressed
from mechm_runtime.bundle.manifest import LLAMA, SERVED, Bundle, PartFiles, ServedLlama
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, VerificationError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.system.atomic_write import in_place
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.types import Conversation

SERVED_FOLDER = f"llm/{SERVED}"

NOT_SERVED = (DECISION_FILE, COMBINATION_FILE, PROJECTOR_FOLDER)
"""What a merged folder has for training and the bundle has elsewhere."""


def add_served_llama(
    folder: Path,
    adapter: Path,
    base: Path,
    *,
    dtype: DType = "bf16",
    quantization: SchemeName | None = None,
    conversations: tuple[str, Sequence[Conversation]] | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> tuple[MergeReport, TaskCheck | None]:
    """Merge the adapter of a bundle's Llama into its base and put the result into the bundle, whole or not at all.

    quantization: of the linear layers; judged on the same conversations.
    adapter, base, conversations, device, on_progress: as in `mechm.llm.merge.merge_adapter`.
    Returns: what was merged, and how the bundle answers with the quantized weights where they are.
    Raises: BundleError: the bundle has no Llama, or another than the adapter's, or cannot be written. WeightsError,
        VerificationError: see `merge_adapter`; or quantized it changes too many answers.
    """
    bundle = open_bundle(folder)
    check_adapter(bundle, adapter)
    with tempfile.TemporaryDirectory(prefix=".served.", dir=folder.parent, ignore_cleanup_errors=True) as beside:
        made = Path(beside) / SERVED
        report = merge_adapter(
            adapter, base, made, dtype=dtype, conversations=conversations, device=device, on_progress=on_progress
        )
        for name in NOT_SERVED:
            path = made / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        check = None
        try:
            if quantization is not None:
                (on_progress or no_progress)(f"quantizing to {quantization}", 0, 0)
                check = _quantize(bundle, made, quantization, DTYPES[dtype], conversations)
            _put_in_place(bundle, made, report, quantization or "none")
        except OSError as error:
            raise BundleError(f"cannot write {folder}: {error.strerror or error}", hint="free some space") from error
    return report, check


def _quantize(
    bundle: Bundle,
    made: Path,
    quantization: SchemeName,
    dtype: torch.dtype,
    given: tuple[str, Sequence[Conversation]] | None,
) -> TaskCheck:
    """Quantize a merged folder in place, and judge the task's answers with it.

    given: a name and what to judge them on; None for the shipped conversations, which are annotated.
    Raises: VerificationError: too many change.
    """
    scheme = SCHEMES[quantization]
    checks = check_conversations() if given is None else ()
    name, conversations = (SHIPPED_SPLIT, [one.conversation for one in checks]) if given is None else given
    with quiet_transformers():
        llama = load_llama(made, torch.float32).eval()
    tokenizer = _questions(bundle)
    scores = AnswerScores(llama, tokenizer)
    even_out(llama, lambda: answer(scores, tokenizer, conversations))
    write_compressed(llama, scheme, dtype, made)
    round_layers(llama, scheme)
    rounded = TorchLlama(scores)
    exact = Pipeline(bundle, precisions=dict.fromkeys(bundle.parts, "fp32"), asked_below=1.0)

    def load(part: PartFiles) -> GraphRunner:
        return rounded if part.name == LLAMA else OnnxRuntimeEngine(bundle.path(part.files["fp32"]), EngineConfig())

    expected = [exact.analyze(conversation) for conversation in conversations]
    found = Pipeline(bundle, load_part=load, asked_below=1.0)
    check = check_task(name, quantization, conversations, expected, found, checks)
    if check.problem:
        raise VerificationError(f"the Llama in {quantization}: {check.problem}", hint="leave its weights as they are")
    return check


def _questions(bundle: Bundle) -> QuestionTokenizer:
    if bundle.llama is None:
        raise BundleError(f"{bundle.folder} has no Llama")
    return QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)


def check_adapter(bundle: Bundle, adapter: Path) -> None:
    """Raises: BundleError: the bundle's Llama is not this adapter's."""
    if bundle.llama is None:
        raise BundleError(
            f"{bundle.folder} has no Llama", hint="mechm export bundle --llm DIR --out DIR makes one that has"
        )
    weights = bundle.manifest.get("weights", {})
    if not isinstance(weights, dict) or weights.get("adapter") != file_sha256(adapter / ADAPTER_FILE):
        raise BundleError(
            f"the Llama of {bundle.folder} was made from another adapter than {adapter}",
            hint="name the one it was made from with --adapter, or export the bundle again",
        )


def _put_in_place(bundle: Bundle, made: Path, report: MergeReport, quantization: str) -> None:
    """Move the folder in and replace the manifest; the files of an older one go last."""
    target = bundle.folder.joinpath(*SERVED_FOLDER.split("/"))
    target.parent.mkdir(exist_ok=True)
    with in_place(made, target):
        _write_manifest(bundle, target, ServedLlama(SERVED_FOLDER, report.dtype, quantization))


def _write_manifest(bundle: Bundle, target: Path, served: ServedLlama) -> None:
    kept = {name: facts for name, facts in bundle.manifest["files"].items() if not name.startswith(f"{SERVED_FOLDER}/")}
    added = {
        f"{SERVED_FOLDER}/{path.relative_to(target).as_posix()}": file_facts(path)
        for path in target.rglob("*")
        if path.is_file()
    }
    replace_manifest(bundle, {"files": dict(sorted({**kept, **added}.items())), SERVED: asdict(served)})
