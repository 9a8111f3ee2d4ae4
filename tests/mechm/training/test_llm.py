"""Training the Llama's adapter: it learns, stops when it diverges, and a failed save keeps the old one."""

from __future__ import annotations

import json
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file

from mechm.cli import cli
from mechm.llm.scorer import AnswerScores, add_adapter, load_llama, make_question_batch
from mechm.training.fusion import decision_scores
from mechm.training.llm import LlamaTrainingConfig, score_with_llama, train_llama
from mechm.training.llm_adapter import save_adapter
from mechm.training.loop import LoopConfig, StepReport, TrainingDivergedError
from mechm.training.stages import Stage
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.readers import read_labelled

SAMPLE = """1 6
 (5,5),(6,5)
1 | Ann | neutral | Hello there. |
2 | Bob | neutral | Hi. |
3 | Ann | neutral | I have news. |
4 | Bob | neutral | Tell me. |
5 | Ann | joy | We won, it is wonderful! |
6 | Bob | joy | That is wonderful! |
2 2
 (2,1)
1 | Ann | neutral | He left. |
2 | Bob | sadness | Oh no, I will miss him. |
"""


@pytest.fixture(scope="module")
def base(llama_base: Path) -> Path:
    """The base language model that is trained here."""
    return llama_base


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "ecf.txt"
    file.write_text(SAMPLE, encoding="utf-8")
    return file


def test_the_command_trains_and_writes_an_adapter_that_answers_as_it_did(
    base: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    arguments = ["train", "llm", "--base", str(base), "--train", str(corpus), "--dev", str(corpus), "--out", str(out)]
    ran = CliRunner().invoke(cli, [*arguments, "--epochs", "30", "--lr", "0.01"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    reached = card["scores"]["ecf.txt"]
    assert reached["emotion_accuracy"] >= 0.75, "half of the eight utterances are neutral"
    assert not [*tmp_path.glob(".*"), *out.glob(".*")]
    assert card["run"]["parameters"]["total"] > card["run"]["parameters"]["trained"]
    assert card["stage"] == "target"
    written = [path.read_text(encoding="utf-8") for path in out.iterdir() if path.suffix in {".json", ".md"}]
    assert not any(str(base) in text for text in written), "a path of this machine helps nobody"
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    loaded = AnswerScores(PeftModel.from_pretrained(load_llama(base, torch.bfloat16), out), tokenizer)
    scored = score_with_llama(loaded, tokenizer, read_labelled(corpus))
    decision = DecisionConfig(**json.loads((out / "decision.json").read_text(encoding="utf-8")))
    assert decision_scores(scored, decision) == pytest.approx(
        (reached["weighted_f1"], reached["emotion_accuracy"]), abs=1e-4
    )
    finished = CliRunner().invoke(cli, [*arguments, "--epochs", "30", "--lr", "0.01", "--resume"])
    assert finished.exit_code == 0
    assert "is finished" in finished.output
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, WeightsError)
    assert "exists" in str(again.exception)


def test_a_training_starts_from_an_adapter(base: Path, corpus: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ["train", "llm", "--base", str(base), "--train", str(corpus), "--dev", str(corpus)]
    CliRunner().invoke(cli, [*arguments, "--epochs", "20", "--lr", "0.01", "--out", str(first)], catch_exceptions=False)
    more = ["--start-from", str(first), "--epochs", "1", "--lr", "1e-9", "--out", str(second)]
    ran = CliRunner().invoke(cli, [*arguments, *more], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert all(torch.allclose(value, before[name], atol=1e-5) for name, value in after.items())
    card = json.loads((second / "card.json").read_text(encoding="utf-8"))
    assert card["start"]["card"] == json.loads((first / "card.json").read_text(encoding="utf-8"))
    assert card["scores"]["ecf.txt"]["weighted_f1"] == pytest.approx(
        card["start"]["card"]["scores"]["ecf.txt"]["weighted_f1"], abs=0.05
    )
    foreign = CliRunner().invoke(cli, [*arguments, "--start-from", str(tmp_path), "--out", str(tmp_path / "third")])
    assert isinstance(foreign.exception, WeightsError)


def train_briefly(
    base: Path, corpus: Path, out: Path, config: LlamaTrainingConfig, loop: LoopConfig, stop_at: int | None = None
) -> tuple[AnswerScores, list[StepReport]]:
    """Four epochs in fp32, or less where SIGTERM comes after a step; returns the trained scorer and its steps."""
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    torch.manual_seed(0)
    scores = AnswerScores(add_adapter(load_llama(base, torch.float32)), tokenizer)
    conversations = read_labelled(corpus)
    steps: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        steps.append(report)
        if report.step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    corpora = {"ecf": conversations}
    with pytest.raises(SystemExit) if stop_at else nullcontext():
        train_llama(scores, tokenizer, corpora, conversations, config, out, lambda *_: None, on_step, loop=loop)
    return scores, steps


QUICK = LlamaTrainingConfig((Stage("target", ("ecf",), 4),), max_tokens=100)


def adapter_of(scores: AnswerScores) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in scores.named_parameters() if p.requires_grad}


def test_a_stopped_training_goes_on_as_if_nothing_had_been(base: Path, corpus: Path, tmp_path: Path) -> None:
    whole, steps = train_briefly(base, corpus, tmp_path / "whole", QUICK, LoopConfig())
    _, before = train_briefly(base, corpus, tmp_path / "out", QUICK, LoopConfig(), stop_at=3)
    resumed, after = train_briefly(base, corpus, tmp_path / "out", QUICK, LoopConfig(resume=True))
    assert before + after == steps
    expected, found = adapter_of(whole), adapter_of(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_activations_computed_again_change_no_step(base: Path, corpus: Path, tmp_path: Path) -> None:
    again: list[str] = []

    def count(module: torch.nn.Module, *_: object) -> None:
        again.append(type(module).__name__)

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        kept, steps = train_briefly(base, corpus, tmp_path / "kept", QUICK, LoopConfig())
        n_kept = again.count("LlamaAttention")
        again.clear()
        config = replace(QUICK, checkpoint_activations=True)
        recomputed, same = train_briefly(base, corpus, tmp_path / "recomputed", config, LoopConfig())
    finally:
        hook.remove()
    # Each of the two layers runs once more in every step's backward pass (to where its last tensor is needed).
    assert again.count("LlamaAttention") == n_kept + 2 * len(steps)
    assert max(abs(a.gradient_norm - b.gradient_norm) for a, b in zip(steps, same, strict=True)) < 1e-5
    expected, found = adapter_of(kept), adapter_of(recomputed)
    assert max((expected[name] - found[name]).abs().max().item() for name in expected) < 1e-5


def test_a_loss_that_is_not_a_number_stops_the_training(base: Path, corpus: Path, tmp_path: Path) -> None:
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    scores = AnswerScores(add_adapter(load_llama(base, torch.float32)), tokenizer)
    with torch.no_grad():
        next(p for p in scores.parameters() if p.requires_grad).fill_(float("nan"))
    conversations = read_labelled(corpus)
    config = LlamaTrainingConfig((Stage("target", ("ecf",), 1),))
    with pytest.raises(TrainingDivergedError, match="step 0"):
        train_llama(scores, tokenizer, {"ecf": conversations}, conversations, config, tmp_path / "out", lambda *_: None)


def test_a_save_that_fails_keeps_the_old_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = add_adapter(load_llama(base, torch.float32))
    out = tmp_path / "adapter"
    save_adapter(adapted, DecisionConfig(), {"epoch": 1}, out)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapted, "save_pretrained", full)
    with pytest.raises(WeightsError, match="No space left"):
        save_adapter(adapted, DecisionConfig(), {"epoch": 2}, out)
    assert json.loads((out / "card.json").read_text(encoding="utf-8")) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert not list(out.glob(".*"))


def test_a_new_adapter_changes_no_answer(base: Path, corpus: Path) -> None:
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    utterances = read_labelled(corpus)[0].conversation.utterances
    batch = make_question_batch([tokenizer.pack(utterances, range(len(utterances)))])
    llama = load_llama(base, torch.float32)
    with torch.inference_mode():
        before, _ = AnswerScores(llama, tokenizer)(batch)
        after, _ = AnswerScores(add_adapter(llama), tokenizer)(batch)
    assert torch.equal(before, after)
