"""Adding the Llama to a bundle in the layout that vLLM loads: merged, as a Hugging Face folder, beside its ONNX graph.

The questions, the tokens of the answers and the weights of the answers are in the bundle already (`llama.part`). They
hold for these weights too, which are merged from the same adapter as the graph. The old bundle stays valid until the
new manifest is in place.
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
from mechm_export.gate.check_set import SHIPPED_SPLIT
from mechm_export.gate.comparison import TaskCheck, check_task
from mechm_export.llama.compressed import SCHEMES, SchemeName, simulate_quantization, smooth_channels, write_compressed
from mechm_runtime.bundle.manifest import LLAMA, SERVED, Bundle, PartFiles, ServedLlama
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.bundle.staging import explain_write_errors
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, VerificationError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.system.atomic_write import in_place
from mechm_runtime.system.progress import Progress
from mechm_runtime.types import Conversation

SERVED_FOLDER = f"llm/{SERVED}"

EXCLUDED_FILES = (DECISION_FILE, COMBINATION_FILE, PROJECTOR_FOLDER)
"""Files and folders of a merged model that are for training, and that the bundle has elsewhere."""


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

    quantization: of the linear layers, None for none; its answers are checked on the same conversations.
    adapter, base, conversations, device, on_progress: as in `mechm.llm.merge.merge_adapter`.
    Returns: the report of the merge, and the check of the quantized weights' answers, None without quantization.
    Raises: BundleError: the bundle has no Llama, or one of another adapter, or cannot be written. WeightsError,
        VerificationError: see `merge_adapter`; or the quantized Llama changes too many answers.
    """
    bundle = open_bundle(folder)
    check_adapter(bundle, adapter)
    with tempfile.TemporaryDirectory(prefix=".served.", dir=folder.parent, ignore_cleanup_errors=True) as beside:
        made = Path(beside) / SERVED
        report = merge_adapter(
            adapter, base, made, dtype=dtype, conversations=conversations, device=device, on_progress=on_progress
        )
        for name in EXCLUDED_FILES:
            path = made / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        check = None
        with explain_write_errors(folder, "the Llama", hint="free some space"):
            if quantization is not None:
                if on_progress is not None:
                    on_progress(f"quantizing to {quantization}", 0, 0)
                check = _quantize(bundle, made, quantization, DTYPES[dtype], conversations)
            _put_in_place(bundle, made, report, quantization or "none")
    return report, check


def _quantize(
    bundle: Bundle,
    made: Path,
    quantization: SchemeName,
    dtype: torch.dtype,
    given: tuple[str, Sequence[Conversation]] | None,
) -> TaskCheck:
    """Quantize a merged folder in place, and compare the task's answers with the bundle's in fp32.

    given: name and conversations to compare on; None for the shipped ones, which are annotated.
    Raises: VerificationError: too many answers change.
    """
    scheme = SCHEMES[quantization]
    checks = check_conversations() if given is None else ()
    name, conversations = (SHIPPED_SPLIT, [one.conversation for one in checks]) if given is None else given
    with quiet_transformers():
        llama = load_llama(made, torch.float32).eval()
    tokenizer = _questions(bundle)
    scores = AnswerScores(llama, tokenizer)
    smooth_channels(llama, lambda: answer(scores, tokenizer, conversations))
    write_compressed(llama, scheme, dtype, made)
    simulate_quantization(llama, scheme)
    quantized = TorchLlama(scores)
    exact = Pipeline(bundle, precisions=dict.fromkeys(bundle.parts, "fp32"), asked_below=1.0)

    def load(part: PartFiles) -> GraphRunner:
        return quantized if part.name == LLAMA else OnnxRuntimeEngine(bundle.path(part.files["fp32"]), EngineConfig())

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
    """Raises: BundleError: the bundle's Llama was not made from this adapter."""
    if bundle.llama is None:
        raise BundleError(
            f"{bundle.folder} has no Llama", hint="mechm export bundle --adapter DIR --out DIR makes one that has"
        )
    weights = bundle.manifest.get("weights", {})
    if not isinstance(weights, dict) or weights.get("adapter") != file_sha256(adapter / ADAPTER_FILE):
        raise BundleError(
            f"the Llama of {bundle.folder} was made from another adapter than {adapter}",
            hint="name the one it was made from with --adapter, or export the bundle again",
        )


def _put_in_place(bundle: Bundle, made: Path, report: MergeReport, quantization: str) -> None:
    """Move the folder in and replace the manifest; an older folder is deleted last."""
    target = bundle.folder.joinpath(*SERVED_FOLDER.split("/"))
    target.parent.mkdir(exist_ok=True)
    with in_place(made, target):
        _write_manifest(bundle, target, ServedLlama(SERVED_FOLDER, report.dtype, quantization))


def _write_manifest(bundle: Bundle, target: Path, served: ServedLlama) -> None:
    others = {
        name: facts for name, facts in bundle.manifest["files"].items() if not name.startswith(f"{SERVED_FOLDER}/")
    }
    added = {
        f"{SERVED_FOLDER}/{path.relative_to(target).as_posix()}": file_facts(path)
        for path in target.rglob("*")
        if path.is_file()
    }
    replace_manifest(bundle, {"files": dict(sorted({**others, **added}.items())), SERVED: asdict(served)})
