"""`mechm evaluate` on submissions: tables, JSON, and one line for what cannot be scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mechm.cli import main
from mechm.cli.evaluate import evaluate
from mechm_runtime.types import Analysis, Conversation, Pair, UtteranceAnalysis

GOLD = (
    "7 2\n(1,1),(2,1)\n1 | Ross | joy | We won ! |\n2 | Joey | surprise | Really ? |\n"
    "8 1\n\n1 | Ross | neutral | Oh . |\n"
)
SUBMISSION = [
    {"conversation_ID": 7, "emotion-cause_pairs": [["1_joy", "1"], ["2_surprise", "2"], ["2_neutral", "1"]]},
    {"conversation_ID": 8, "emotion-cause_pairs": []},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dev[1].txt").write_text(GOLD)
    (tmp_path / "system.json").write_text(json.dumps(SUBMISSION))
    return tmp_path


def test_the_table_names_the_gold_file_and_the_scores(folder: Path) -> None:
    result = CliRunner().invoke(evaluate, [str(folder / "dev[1].txt"), "--predictions", str(folder / "system.json")])
    assert result.exit_code == 0, result.output
    assert "Gold    dev[1].txt (2 conversations, 3 utterances, 2 pairs)" in result.output
    assert "submission system.json" in result.output
    rows = [line.replace("│", " ").split() for line in result.output.splitlines()]
    assert ["weighted", "(the", "task's)", "0.5000", "0.5000", "0.5000"] in rows
    assert ["micro", "0.5000", "0.5000", "0.5000", "2", "2", "1"] in rows
    assert ["joy", "1.0000", "1.0000", "1.0000", "1", "1", "1"] in rows
    assert "1 neutral pairs are not scored" in result.output


def test_json_holds_what_the_table_shows(folder: Path) -> None:
    path = folder / "scores.json"
    arguments = [str(folder / "dev[1].txt"), "--predictions", str(folder / "system.json"), "--json", str(path)]
    assert CliRunner().invoke(evaluate, arguments).exit_code == 0
    report = json.loads(path.read_text())
    assert report["gold"] == "dev[1].txt"
    assert report["pairs"]["weighted"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert report["pairs"]["per_emotion"]["surprise"]["n_gold"] == 1
    assert report["emotions"] is None


def test_a_limit_is_named_beside_the_score(folder: Path) -> None:
    gold, submission = str(folder / "dev[1].txt"), str(folder / "system.json")
    result = CliRunner().invoke(evaluate, [gold, "--predictions", submission, "--limit", "1"])
    assert "dev[1].txt, first 1 of 2" in result.output
    assert "1 predicted conversations are not in the gold file" in result.output
    whole = CliRunner().invoke(evaluate, [gold, "--predictions", submission, "--limit", "9"])
    assert "first" not in whole.output


@pytest.mark.parametrize(
    "option",
    [["--bundle", "b"], ["--precision", "int8"], ["--clips", "c"], ["--figures", "f"], ["--abstain-below", "0.5"]],
)
def test_options_that_a_submission_cannot_follow(folder: Path, option: list[str]) -> None:
    arguments = [str(folder / "dev[1].txt"), "--predictions", str(folder / "system.json"), *option]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 2
    assert f"leave {option[0]} out" in result.output


@pytest.mark.parametrize(
    ("gold", "submission", "json_path", "words"),
    [
        ("missing.txt", "system.json", "x.json", "no such file"),
        ("dev[1].txt", "missing.json", "x.json", "no such file"),
        ("dev[1].txt", "dev[1].txt", "x.json", "not JSON"),
        ("system.json", "system.json", "x.json", 'no list "conversation"'),
        ("dev[1].txt", "half.json", "x.json", "no prediction for 1 of 2 conversations"),
        ("dev[1].txt", "system.json", "gone/x.json", "the folder does not exist"),
        ("dev[1].txt", "system.json", ".", "is a folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], gold: str, submission: str, json_path: str, words: str
) -> None:
    (folder / "half.json").write_text(json.dumps(SUBMISSION[:1]))
    arguments = [str(folder / gold), "--predictions", str(folder / submission), "--json", str(folder / json_path)]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments])
    assert caught.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert words in errors[0]
    assert errors[0].startswith("error: ")
    assert len(errors) <= 2


class Rule:
    """In place of a pipeline: joy caused by itself where somebody won, else neutral; never quite sure."""

    bundle_id = "rule-1"
    llm = "none"

    def check_llm(self) -> None:
        """Nothing to check: there is no Llama."""

    def analyze(self, conversation: Conversation) -> Analysis:
        utterances = []
        for u in conversation.utterances:
            emotion, probability = ("joy", 0.8) if "won" in (u.text or "") else ("neutral", 0.4)
            probabilities = {emotion: probability, "anger": 1 - probability}
            if probability < 0.5:
                probabilities = {emotion: probability, "anger": 0.3, "fear": 0.3}
            utterances.append(UtteranceAnalysis(u.id, u.speaker, u.text, None, None, emotion, probabilities, ("text",)))
        pairs = tuple(Pair(u.id, "joy", u.id, 0.6) for u in utterances if u.emotion == "joy")
        return Analysis(conversation.id, tuple(utterances), pairs, {}, self.bundle_id)


def test_a_bundle_is_scored_with_its_probabilities(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm_runtime.pipeline.Pipeline.from_bundle", lambda *_, **__: Rule())
    arguments = [
        str(folder / "dev[1].txt"),
        "--json",
        str(folder / "scores.json"),
        "--figures",
        str(folder / "figures"),
    ]
    result = CliRunner().invoke(
        evaluate, [*arguments, "--abstain-below", "0.5", "--abstain-below", "0"], env={"COLUMNS": "120"}
    )
    assert result.exit_code == 0, result.output
    assert "System  bundle rule-1, llm none (text)" in result.output
    # Right: joy (0.8) and one neutral (0.4); wrong: the neutral (0.4) that is a surprise.
    assert "AURC 0.1944; accuracy on the surest 50%: 0.7500, 80%: 0.6667, 90%: 0.6667" in result.output
    # Joy is 0.2 too unsure; the two neutrals are 0.4 sure and half of them right. The pair is 0.4 too unsure.
    assert "0.1333 of 3 emotions, 0.4000 of 1 pairs" in " ".join(result.output.split())
    rows = [line.replace("│", " ").split() for line in result.output.splitlines()]
    assert ["the", "same", "utterance", "1.0000", "1.0000", "1.0000", "1", "1", "1"] in rows
    assert ["1", "back", "0.0000", "0.0000", "0.0000", "1", "0", "0"] in rows
    assert ["0.5", "33.3%", "1", "1.0000", "1.0000", "0.5000", "1.0000"] in rows
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        *("confusion.svg", "reliability.svg", "risk_coverage.svg"),
    ]


def test_the_names_in_the_json_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm_runtime.pipeline.Pipeline.from_bundle", lambda *_, **__: Rule())
    path = folder / "scores.json"
    arguments = [str(folder / "dev[1].txt"), "--json", str(path), "--abstain-below", "0.5"]
    assert CliRunner().invoke(evaluate, arguments).exit_code == 0
    report = json.loads(path.read_text())
    assert list(report) == [
        *("gold", "system", "modalities", "n_conversations", "n_utterances", "pairs", "emotions", "calibration"),
        *("risk_coverage", "abstention", "speed", "n_missing_clips"),
    ]
    assert (report["gold"], report["system"], report["modalities"]) == ("dev[1].txt", "bundle rule-1, llm none", "text")
    assert list(report["pairs"]["per_distance"]) == ["self", "1_back", "2_back", "3_or_more_back", "ahead"]
    counts = ["precision", "recall", "f1", "n_gold", "n_predicted", "n_correct"]
    assert list(report["pairs"]["per_distance"]["self"]) == list(report["pairs"]["per_emotion"]["joy"]) == counts
    assert len(report["emotions"]["confusion"]) == 7
    assert list(report["calibration"]) == ["emotions", "pairs"]
    assert list(report["calibration"]["emotions"]) == ["ece", "n", "bins"]
    assert list(report["risk_coverage"]) == ["aurc", "accuracy_at", "curve"]
    assert report["risk_coverage"]["curve"][0] == {"threshold": 0.8, "coverage": pytest.approx(1 / 3), "risk": 0.0}
    assert list(report["abstention"][0]) == [
        *("abstain_below", "coverage", "n_answered", "accuracy", "emotion_weighted_f1", "weighted_f1"),
        "weighted_f1_answered",
    ]


def test_figures_go_into_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(folder / "dev[1].txt"), "--figures", str(folder / "system.json")])
    assert caught.value.code == 2
    assert "is a file" in capsys.readouterr().err


def test_a_bundle_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(folder / "dev[1].txt"), "--bundle", str(folder / "none")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from mechm.cli import main\n"
        "for name in ('torch', 'transformers', 'onnxruntime', 'numpy'): sys.modules[name] = None\n"
        "main(['evaluate', '--help'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert "--predictions" in result.stdout


def test_published_answers(folder: Path) -> None:
    data = os.environ.get("MECHM_DATA")
    if not data:
        pytest.skip("MECHM_DATA is not set: the folder with data/ecf/test.txt and data/ecf/rivals")
    ecf = Path(data) / "data" / "ecf"
    result = CliRunner().invoke(evaluate, [str(ecf / "test.txt"), "--predictions", str(ecf / "rivals" / "gpt4o.json")])
    assert "test.txt (261 conversations, 2,566 utterances, 1,873 pairs)" in result.output
    assert "0.3052" in result.output
    assert "0.2936" in result.output
