"""`mechm train combination`: what it writes is what a bundle decides with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mechm.cli import cli
from mechm.llm.combination import COMBINATION_FILE, read_combination
from mechm.llm.scorer import add_adapter, load_llama
from mechm.model.build import build_network, save_trained
from mechm.model.config import TINY
from mechm.training.llm_adapter import save_adapter
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import LabelledConversation


@pytest.fixture
def fusion(tmp_path: Path) -> Path:
    save_trained(build_network(TINY, None), DecisionConfig(), {}, tmp_path / "fusion")
    return tmp_path / "fusion"


@pytest.fixture
def adapter(llama_base: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_adapter(add_adapter(load_llama(llama_base, torch.float32)), DecisionConfig(), {}, tmp_path / "llm")
    return tmp_path / "llm"


def mecpe(conversations: tuple[LabelledConversation, ...]) -> str:
    """Conversations in the MECPE text format."""
    lines = []
    for number, one in enumerate(conversations, 1):
        pairs = ",".join(f"({pair.emotion_utterance},{pair.cause_utterance})" for pair in sorted(one.pairs))
        lines += [f"{number} {len(one.emotions)}", f" {pairs}"]
        lines += [
            f"{u.id} | {u.speaker} | {emotion} | {u.text} |"
            for u, emotion in zip(one.conversation.utterances, one.emotions, strict=True)
        ]
    return "\n".join(lines) + "\n"


def test_the_command_fits_on_dev_and_reports_the_rest(
    adapter: Path, fusion: Path, llama_base: Path, tmp_path: Path
) -> None:
    files = tmp_path / "dev.txt", tmp_path / "test.txt"
    for file, part in zip(files, (check_conversations()[:8], check_conversations()[8:]), strict=True):
        file.write_text(mecpe(part), encoding="utf-8")
    arguments = ["train", "combination", "--preset", "tiny", "--adapter", str(adapter), "--fusion", str(fusion)]
    done = CliRunner().invoke(
        cli, [*arguments, "--base", str(llama_base), "--dev", str(files[0]), "--score", str(files[1])]
    )
    assert done.exit_code == 0, done.output
    fitted = read_combination(adapter, fusion)
    assert {name: set(systems) for name, systems in fitted.scores.items()} == {
        file.name: {"fusion", "llama", "both"} for file in files
    }
    for name, systems in fitted.scores.items():
        for system, found in systems.items():
            assert f"{name}, {system}: weighted F1 {found['weighted_f1']:.4f}" in done.output
    # Fitted where it is measured, both together cannot be much worse than either.
    dev = fitted.scores[files[0].name]
    assert dev["both"]["weighted_f1"] >= max(dev["fusion"]["weighted_f1"], dev["llama"]["weighted_f1"]) - 0.1


def test_a_damaged_or_missing_combination_says_how_to_fit_it(adapter: Path, fusion: Path) -> None:
    with pytest.raises(WeightsError, match="how to weigh") as caught:
        read_combination(adapter, fusion)
    assert "mechm train combination" in (caught.value.hint or "")
    (adapter / COMBINATION_FILE).write_text(json.dumps({"combination": {}}), encoding="utf-8")
    with pytest.raises(WeightsError, match="damaged"):
        read_combination(adapter, fusion)
