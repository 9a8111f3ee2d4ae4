"""Comparison of exported parts with torch: values on random inputs of several sizes, and answers on conversations.

fp32 must agree in values. A lower precision need not; it is measured on the task, by the labels it keeps and the F1 it
reaches. What happens to a part that fails is decided by `bundle`, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mechm.evaluation import score_emotions, score_pairs
from mechm_export.graphs.part import ExportPart
from mechm_export.graphs.signature import check_signature
from mechm_export.precision.simulated import SimulatedHalfRunner
from mechm_runtime.bundle.manifest import Bundle, PartFiles
from mechm_runtime.bundle.precision import HALF, PORTABLE_INT8
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.load import load_engine
from mechm_runtime.errors import VerificationError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.system.arrays import Array, Arrays
from mechm_runtime.types import Analysis, Conversation, LabelledConversation

FP32_ATOL = 1e-3
"""Largest absolute difference from torch allowed in fp32; measured ones are below 1e-4."""
MIN_LABELS_KEPT = 0.99
"""Smallest share of utterances whose label has to stay the same."""
MAX_F1_LOSS = 0.005
ALLOWED_LABELS = 2
"""Labels that may always differ: on a small set one utterance is more than a percent."""
MIN_PAIRS_KEPT = 0.9
"""Smallest share of pairs that has to stay the same, on sets with fewer than MIN_PAIRS_FOR_F1 annotated pairs."""
ALLOWED_PAIRS = 8
"""Pairs that may always differ: every changed label moves a few."""
MIN_PAIRS_FOR_F1 = 500
"""Annotated pairs from which on a difference in F1 is meaningful, and decides instead of the pairs."""


@dataclass(frozen=True, slots=True)
class ValueCheck:
    """Values of an exported part and of torch on random inputs.

    largest_difference, cosine: the largest absolute difference and the lowest cosine over all outputs and sizes.
    """

    part: str
    precision: str
    largest_difference: float
    cosine: float
    n_trials: int


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """Answers of a precision compared with torch's on the same conversations.

    split: name of the conversations. labels_kept: share of utterances with the same label. pairs_kept: share of the
    pairs found by both among the n_found pairs found by either. weighted_f1, torch_weighted_f1: against the annotation,
    None without one. largest_difference: of an emotion's probability, to four decimals, since the others depend on the
    number of threads. n_pairs: annotated pairs.
    """

    split: str
    precision: str
    n_conversations: int
    n_utterances: int
    labels_kept: float
    pairs_kept: float
    largest_difference: float
    weighted_f1: float | None = None
    torch_weighted_f1: float | None = None
    micro_f1: float | None = None
    emotion_accuracy: float | None = None
    n_pairs: int = 0
    n_found: int = 0

    @property
    def changes(self) -> tuple[int, int, float]:
        """Number of labels and of pairs that differ from torch's, and the largest difference of a probability."""
        lost = round((1 - self.pairs_kept) * self.n_found)
        return round((1 - self.labels_kept) * self.n_utterances), lost, self.largest_difference

    @property
    def problem(self) -> str:
        """The reason why the precision is not good enough; an empty string where it is."""
        changed, lost, _ = self.changes
        if changed > max(ALLOWED_LABELS, round((1 - MIN_LABELS_KEPT) * self.n_utterances, 6)):
            return f"{changed} of {self.n_utterances} labels differ from torch on {self.split}"
        if lost > max(ALLOWED_PAIRS, round((1 - MIN_PAIRS_KEPT) * self.n_found, 6)) and self.n_pairs < MIN_PAIRS_FOR_F1:
            return f"{lost} of {self.n_found} pairs differ from torch on {self.split}"
        if self.weighted_f1 is not None and self.torch_weighted_f1 is not None and self.n_pairs >= MIN_PAIRS_FOR_F1:
            loss = self.torch_weighted_f1 - self.weighted_f1
            if loss > MAX_F1_LOSS:
                return f"weighted F1 falls by {loss:.4f} on {self.split}"
        return ""


class TorchRunner:
    """Runs a part's torch module behind the runtime's interface."""

    def __init__(self, part: ExportPart) -> None:
        self._part = part

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Compute the outputs, by name, from the inputs, by name."""
        return self._part.reference(inputs)


def check_values(part: ExportPart, path: Path, precision: str) -> ValueCheck:
    """Compare a graph file with its module: run by its engine, or, in 16 bits, rounded as a GPU rounds.

    fp16 is also run by onnxruntime on the CPU.
    Raises: VerificationError: names, axes or shapes differ, an output is not finite, or fp32 values differ by more than
        FP32_ATOL.
    """
    check_signature(part, path)
    runners: list[GraphRunner] = [SimulatedHalfRunner(path)] if precision in HALF else []
    if precision != "bf16":  # onnxruntime has no bf16 kernels for CPUs
        runners.append(load_engine(path, replace(engine_for(precision), n_threads=1)))
    random = np.random.default_rng(0)
    largest, cosine = 0.0, 1.0
    for sizes in part.trial_sizes:
        feeds = part.trial_inputs(sizes, random)
        with one_torch_thread():
            reference = part.reference(feeds)
        for runner in runners:
            answers = runner.run(feeds)
            for name, expected in reference.items():
                difference, similarity = compare_arrays(
                    f"{path.name}: {name} at {dict(sizes)}", expected, answers[name]
                )
                largest, cosine = max(largest, difference), min(cosine, similarity)
    if precision == "fp32" and largest > FP32_ATOL:
        raise VerificationError(f"{path.name} differs from torch by {largest:.2e}, more than {FP32_ATOL:.0e}")
    return ValueCheck(part.name, precision, _significant(largest), round(cosine, 6), len(part.trial_sizes))


def compare_arrays(label: str, expected: Array, actual: Array) -> tuple[float, float]:
    """Largest absolute difference and cosine of two arrays.

    For float16 outputs the difference that its precision cannot represent is subtracted.
    Raises: VerificationError: their shapes differ, or a value is not finite.
    """
    if actual.shape != expected.shape:
        raise VerificationError(f"{label} is {actual.shape}, not {expected.shape}")
    if not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        raise VerificationError(f"{label} is not finite, here or in torch")
    if not expected.size:
        return 0.0, 1.0
    rounding = _rounding(expected)
    expected, actual = (values.astype(np.float32, copy=False) for values in (expected, actual))
    norms = np.linalg.norm(expected) * np.linalg.norm(actual)
    difference = float(np.abs(expected - actual).max()) - rounding
    return difference, float((expected * actual).sum() / max(float(norms), 1e-12))


def _rounding(values: Array) -> float:
    """The difference that float16 cannot represent at the largest of the values, two units in the last place."""
    return float(2 * np.spacing(np.abs(values).max())) if values.dtype == np.float16 else 0.0


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch in one thread: its sums depend on the number of threads, and bundles must not."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def engine_for(precision: str) -> EngineConfig:
    """The engine that a precision is made for, on which it is checked."""
    return EngineConfig(engine="openvino" if precision == PORTABLE_INT8 else "onnxruntime")


def torch_pipeline(bundle: Bundle, parts: Iterable[ExportPart]) -> Pipeline:
    """Build the runtime's pipeline with every graph replaced by its torch module."""
    modules = {part.name: part for part in parts}

    def load(part: PartFiles) -> TorchRunner:
        return TorchRunner(modules[part.name])

    return Pipeline(bundle, load_part=load, modalities=bundle.modalities, asked_below=1.0)


def check_task(
    split: str,
    precision: str,
    conversations: Sequence[Conversation],
    reference: Sequence[Analysis],
    candidate: Pipeline,
    labelled: Sequence[LabelledConversation] = (),
) -> TaskCheck:
    """Compare a pipeline's answers with torch's.

    reference: torch's answers for `conversations`. labelled: their annotation, for F1; empty for none.
    """
    answers = [candidate.analyze(conversation) for conversation in conversations]
    kept = total = common = either = 0
    largest = 0.0
    for expected, actual in zip(reference, answers, strict=True):
        for one, other in zip(expected.utterances, actual.utterances, strict=True):
            kept += one.emotion == other.emotion
            total += 1
            largest = max(largest, *(abs(one.probabilities[e] - other.probabilities[e]) for e in one.probabilities))
        found, found_again = _pairs(expected), _pairs(actual)
        common += len(found & found_again)
        either += len(found | found_again)
    check = TaskCheck(
        split,
        precision,
        len(answers),
        total,
        round(kept / max(total, 1), 5),
        round(common / either, 5) if either else 1.0,
        round(largest, 4),
        n_found=either,
    )
    if not labelled:
        return check
    scores, torch_scores = (
        score_pairs(labelled, {analysis.conversation_id: analysis.pairs for analysis in analyses})
        for analyses in (answers, reference)
    )
    emotions = score_emotions(labelled, {a.conversation_id: [u.emotion for u in a.utterances] for a in answers})
    return replace(
        check,
        weighted_f1=round(scores.weighted.f1, 4),
        torch_weighted_f1=round(torch_scores.weighted.f1, 4),
        micro_f1=round(scores.micro.f1, 4),
        emotion_accuracy=round(emotions.accuracy, 4),
        n_pairs=sum(len(one.pairs) for one in labelled),
    )


def _pairs(analysis: Analysis) -> set[tuple[int, str, int]]:
    return {(pair.emotion_utterance, pair.emotion, pair.cause_utterance) for pair in analysis.pairs}


def _significant(value: float) -> float:
    return float(f"{value:.2e}")
