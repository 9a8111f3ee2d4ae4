"""The gate counts what differs from torch, and says no where too much does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mechm_export.check_data import check_conversations
from mechm_export.gate.comparison import TaskCheck, TorchRunner, check_task, check_values, torch_pipeline
from mechm_export.graphs.part import ExportPart
from mechm_export.parts import ModelParts
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import VerificationError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import (
    EMOTIONS,
    MODALITIES,
    Analysis,
    Conversation,
    GoldPair,
    LabelledConversation,
    Pair,
    Utterance,
    UtteranceAnalysis,
)

PARTS = ("text", "audio", "scene", "expression", "detector", "fusion")


def part_of(model: ModelParts, name: str) -> ExportPart:
    (part,) = (part for part in model if part.name == name)
    return part


# Values


@pytest.mark.parametrize("name", PARTS)
def test_every_part_matches_torch_at_several_sizes(
    name: str, tiny_parts: ModelParts, tiny_bundle: Path, request: pytest.FixtureRequest
) -> None:
    if name == "fusion":  # the one part whose int8 saturates at these sizes
        request.getfixturevalue("exact_int8")
    part = part_of(tiny_parts, name)
    checks = [check_values(part, tiny_bundle / f"onnx/{name}.{p}.onnx", p) for p in ("fp32", "int8")]
    assert [(check.part, check.precision) for check in checks] == [(name, "fp32"), (name, "int8")]
    for check in checks:
        assert check.n_trials == len({tuple(sizes.items()) for sizes in part.trial_sizes}) >= 3
        assert check.cosine > 0.99
    # The detector's scores are roots: what onnxruntime's sigmoid is off by near 0 (1e-7) grows.
    assert checks[0].largest_difference < (5e-4 if name == "detector" else 1e-5)
    assert checks[0].largest_difference < checks[1].largest_difference


def test_every_part_is_judged_whatever_the_weights_learned_from(tiny_parts: ModelParts, tiny_bundle: Path) -> None:
    bundle = replace(open_bundle(tiny_bundle), learned=("text",))
    assert torch_pipeline(bundle, tiny_parts).modalities == bundle.modalities == MODALITIES


def test_trial_inputs_have_holes_and_lengths(tiny_parts: ModelParts) -> None:
    random = np.random.default_rng(0)
    feeds = part_of(tiny_parts, "fusion").trial_inputs({"batch": 8, "utterances": 12}, random)
    for name, values in feeds.items():
        if values.dtype == bool:
            assert values.any(), name
            assert not values.all(), name
    feeds = part_of(tiny_parts, "text").trial_inputs({"batch": 8, "tokens": 33}, random)
    lengths = feeds["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    assert lengths.min() >= 1
    assert (np.diff(feeds["attention_mask"], axis=1) <= 0).all(), "ones, then padding"
    assert 0 <= feeds["input_ids"].min() <= feeds["input_ids"].max() < tiny_parts.config.text.vocab_size
    feeds = part_of(tiny_parts, "audio").trial_inputs({"batch": 3, "frames": 401}, random)
    assert feeds["mel_frames"].max() == 401
    assert len(set(feeds["mel_frames"].tolist())) > 1


def planted(source: Path, target: Path, name: str, change: Any) -> Path:
    """A copy of a graph in which one weight tensor is another; the first whose name holds `name`."""
    model = onnx.load(source)
    tensor = next(i for i in model.graph.initializer if name in i.name and i.data_type == onnx.TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), tensor.name))
    onnx.save_model(model, target)
    return target


def test_one_wrong_weight_is_caught(tiny_parts: ModelParts, tiny_bundle: Path, tmp_path: Path) -> None:
    part, source = part_of(tiny_parts, "fusion"), tiny_bundle / "onnx/fusion.fp32.onnx"

    def slip(values: np.ndarray) -> np.ndarray:
        values.flat[0] += 0.05
        return values

    check_values(part, planted(source, tmp_path / "same.onnx", "emotion_head.bias", lambda v: v), "fp32")
    wrong = planted(source, tmp_path / "wrong.onnx", "emotion_head.bias", slip)
    with pytest.raises(VerificationError, match=r"differs from torch by 5\.00e-02"):
        check_values(part, wrong, "fp32")
    assert check_values(part, wrong, "int8").largest_difference == pytest.approx(0.05, rel=0.01)


def test_what_is_not_a_number_is_caught_in_any_precision(
    tiny_parts: ModelParts, tiny_bundle: Path, tmp_path: Path
) -> None:
    part, source = part_of(tiny_parts, "fusion"), tiny_bundle / "onnx/fusion.fp32.onnx"
    wrong = planted(source, tmp_path / "wrong.onnx", "emotion_head.bias", lambda values: values * np.nan)
    for precision in ("fp32", "int8"):
        with pytest.raises(VerificationError, match=r"emotion_logits .* is not finite"):
            check_values(part, wrong, precision)


def test_torch_itself_must_be_finite(tiny_parts: ModelParts, tiny_bundle: Path) -> None:
    class Broken(ExportPart):
        def reference(self, feeds: Any) -> dict[str, Any]:
            return {name: value * np.nan for name, value in super().reference(feeds).items()}

    part = part_of(tiny_parts, "expression")
    broken = Broken(**{name: getattr(part, name) for name in ExportPart.__dataclass_fields__})
    with pytest.raises(VerificationError, match="not finite, here or in torch"):
        check_values(broken, tiny_bundle / "onnx/expression.fp32.onnx", "fp32")


def test_the_graph_of_another_part_is_caught(tiny_parts: ModelParts, tiny_bundle: Path) -> None:
    with pytest.raises(VerificationError, match="unexpected names: pixel_values"):
        check_values(part_of(tiny_parts, "audio"), tiny_bundle / "onnx/expression.fp32.onnx", "fp32")


def test_torch_answers_through_the_runtimes_interface(tiny_parts: ModelParts, tiny_bundle: Path) -> None:
    part = part_of(tiny_parts, "expression")
    feeds = part.trial_inputs({"batch": 2}, np.random.default_rng(0))
    engine = OnnxRuntimeEngine(tiny_bundle / "onnx/expression.fp32.onnx", EngineConfig())
    assert TorchRunner(part).run(feeds).keys() == engine.run(feeds).keys()
    bundle = open_bundle(tiny_bundle)
    conversation = check_conversations()[0].conversation
    torch, onnx_fp32 = (
        pipeline.analyze(conversation)
        for pipeline in (
            torch_pipeline(bundle, tiny_parts),
            Pipeline(bundle, precisions=dict.fromkeys(bundle.parts, "fp32")),
        )
    )
    for one, other in zip(torch.utterances, onnx_fp32.utterances, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


# Answers


def analysis(name: str, labels: Sequence[str | None], pairs: Sequence[tuple[int, int]], top: float = 0.4) -> Analysis:
    """A made-up analysis: each utterance's label has the probability `top`, the others share the rest."""
    utterances = tuple(
        UtteranceAnalysis(
            id=k,
            speaker="",
            text="x",
            start_s=None,
            end_s=None,
            emotion=label,
            probabilities={e: top if e == (label or "neutral") else (1 - top) / 6 for e in EMOTIONS},
            modalities=("text",),
        )
        for k, label in enumerate(labels, start=1)
    )
    found = tuple(Pair(one, str(labels[one - 1]), other, 0.5) for one, other in pairs)
    return Analysis(name, utterances, found, {}, "made-up")


class Answering(Pipeline):
    """A pipeline that knows its answers."""

    def __init__(self, *answers: Analysis) -> None:
        self._answers = {answer.conversation_id: answer for answer in answers}

    def analyze(self, conversation: Conversation, *, progress: object = None) -> Analysis:
        return self._answers[conversation.id]


def conversation(name: str, n: int) -> Conversation:
    return Conversation(name, tuple(Utterance(k, text="x") for k in range(1, n + 1)))


def test_labels_and_pairs_are_counted() -> None:
    conversations = [conversation("a", 3), conversation("b", 2)]
    reference = [
        analysis("a", ["joy", "anger", "neutral"], [(1, 1), (1, 2), (2, 1)]),
        analysis("b", ["sadness", None], [(1, 1)]),
    ]
    # One label changes, and with it the emotion of its pair; one pair is lost and one is new.
    candidate = Answering(
        analysis("a", ["joy", "fear", "neutral"], [(1, 1), (2, 1)], top=0.5),
        analysis("b", ["sadness", None], [(1, 1), (1, 2)]),
    )
    check = check_task("made-up", "int8", conversations, reference, candidate)
    assert (check.split, check.precision) == ("made-up", "int8")
    assert (check.n_conversations, check.n_utterances) == (2, 5)
    assert check.labels_kept == pytest.approx(4 / 5)
    # Either: a 1-1, 1-2, 2-1 as anger, 2-1 as fear, b 1-1, 1-2; both: a 1-1, b 1-1.
    assert (check.n_found, check.pairs_kept) == (6, pytest.approx(2 / 6, abs=1e-5))
    assert check.largest_difference == pytest.approx(0.5 - 0.1)
    assert check.weighted_f1 is None


def test_the_same_answers_are_kept_whole() -> None:
    answer = analysis("a", ["joy", "neutral"], [(1, 1)])
    check = check_task("s", "fp32", [conversation("a", 2)], [answer], Answering(answer))
    assert (check.labels_kept, check.pairs_kept, check.largest_difference, check.problem) == (1.0, 1.0, 0.0, "")
    silent = analysis("a", ["neutral", "neutral"], [])
    check = check_task("s", "fp32", [conversation("a", 2)], [silent], Answering(silent))
    assert (check.pairs_kept, check.n_found) == (1.0, 0)


def test_scores_are_the_scorers() -> None:
    gold = LabelledConversation(
        conversation("a", 2), ("joy", "neutral"), frozenset({GoldPair(1, "joy", 1), GoldPair(1, "joy", 2)})
    )
    half, all_of_it = analysis("a", ["joy", "neutral"], [(1, 1)]), analysis("a", ["joy", "neutral"], [(1, 1), (1, 2)])
    check = check_task("s", "int8", [gold.conversation], [all_of_it], Answering(half), [gold])
    assert check.torch_weighted_f1 == 1.0
    assert check.weighted_f1 == check.micro_f1 == pytest.approx(2 / 3, abs=1e-4)
    assert check.emotion_accuracy == 1.0
    assert check.n_pairs == 2


GOOD = TaskCheck("split", "int8", 10, 1000, 1.0, 1.0, 0.01, 0.34, 0.34, 0.35, 0.6, n_pairs=800, n_found=900)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"labels_kept": 0.99}, ""),
        ({"labels_kept": 0.989}, "11 of 1000 labels"),
        ({"labels_kept": 0.8, "n_utterances": 10}, ""),
        ({"labels_kept": 0.7, "n_utterances": 10}, "3 of 10 labels"),
        ({"weighted_f1": 0.3351}, ""),
        ({"weighted_f1": 0.3349}, "F1 falls by 0.0051"),
        ({"weighted_f1": 0.36}, ""),
        ({"weighted_f1": 0.3, "n_pairs": 499}, ""),
        ({"weighted_f1": None, "torch_weighted_f1": None}, ""),
        ({"pairs_kept": 0.5}, ""),
        ({"pairs_kept": 0.9, "n_pairs": 0}, ""),
        ({"pairs_kept": 0.89, "n_pairs": 0}, "99 of 900 pairs"),
        ({"pairs_kept": 0.2, "n_found": 10, "n_pairs": 0}, ""),
        ({"pairs_kept": 0.1, "n_found": 10, "n_pairs": 0}, "9 of 10 pairs"),
        ({"pairs_kept": 1.0, "n_found": 0, "n_pairs": 0}, ""),
    ],
)
def test_what_is_good_enough(changes: dict[str, Any], words: str) -> None:
    problem = replace(GOOD, **changes).problem
    assert words in problem
    assert bool(words) == bool(problem)
    assert not problem or "split" in problem
