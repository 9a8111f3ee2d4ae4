"""`mechm train fusion --clips`: a tiny network learns from voices what the words do not say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm.cli import main
from mechm.cli.train.recordings import RecordingLines

EMOTIONS = {"neutral": 180.0, "anger": 500.0, "joy": 1300.0, "sadness": 3200.0}
TAKES = 4
BROKEN = "broken.mp4"


def write_corpus(folder: Path, name: str, n_conversations: int, takes: list[int], seed: int) -> Path:
    """Everybody says the same; the clip that an utterance names tells its emotion, which it causes itself."""
    random = np.random.default_rng(seed)
    conversations = []
    for number in range(1, n_conversations + 1):
        emotions = random.choice(list(EMOTIONS), 6).tolist()
        conversations.append(
            {
                "conversation_ID": f"{name}-{number}",
                "conversation": [
                    {
                        "utterance_ID": k,
                        "text": "Well, here we are again, you and me.",
                        "speaker": "AB"[k % 2],
                        "emotion": emotion,
                        "video_name": f"{emotion}-{random.choice(takes)}.mp4" if (number, k) != (1, 1) else BROKEN,
                    }
                    for k, emotion in enumerate(emotions, 1)
                ],
                "emotion-cause_pairs": [[f"{k}_{e}", f"{k}"] for k, e in enumerate(emotions, 1) if e != "neutral"],
            }
        )
    path = folder / f"{name}.json"
    path.write_text(json.dumps(conversations), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(write_clip: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.json, dev.json and clips/; dev has takes of its own. One clip of train is broken."""
    folder = tmp_path_factory.mktemp("corpus")
    grey = [np.full((64, 96, 3), 128, np.uint8)]
    for emotion, pitch_hz in EMOTIONS.items():
        for take in range(TAKES):
            write_clip(folder / "clips" / f"{emotion}-{take}.mp4", grey, pitch_hz * (1 + 0.03 * take), seconds=0.6)
    (folder / "clips" / BROKEN).write_bytes(b"half a down")
    write_corpus(folder, "train", 150, [*range(TAKES - 1)], seed=0)
    write_corpus(folder, "dev", 15, [TAKES - 1], seed=1)
    return folder


def train(corpus: Path, out: Path, *more: str, epochs: int = 8) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from mechm.cli import main; main()", "train", "fusion"]
    command += ["--preset", "tiny", "--train", str(corpus / "train.json"), "--dev", str(corpus / "dev.json")]
    command += ["--out", str(out), "--epochs", str(epochs), "--threads", "1", "--fusion-lr", "5e-3", *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_only_the_voice_says_is_learnt(small_weights: Path, corpus: Path, tmp_path: Path) -> None:
    more = ("--clips", str(corpus / "clips"), "--features", str(tmp_path / "features"), "--jobs", "2")
    done = train(corpus, tmp_path / "out", *more)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    text, both = card["scores"]["dev.json"], card["scores"]["dev.json, recordings"]
    assert text["emotion_accuracy"] < 0.5  # four emotions, equally frequent
    assert both["emotion_accuracy"] > 0.9
    assert both["weighted_f1"] > text["weighted_f1"] + 0.2
    assert (text["modalities"], both["modalities"]) == ("text", "text, audio, face, scene")
    assert card["data"]["recordings"] == {"audio": 899, "scene": 899}
    assert f"  {BROKEN}: is not media" in done.stderr
    assert done.stderr.splitlines()[-1] == "1 recordings could not be used, see above"
    assert "their scores say nothing" not in done.stderr


def test_features_are_used_again(small_weights: Path, corpus: Path, tmp_path: Path) -> None:
    more = ("--clips", str(corpus / "clips"), "--features", str(tmp_path / "features"))
    assert train(corpus, tmp_path / "one", *more, epochs=1).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert train(corpus, tmp_path / "two", *more, epochs=1).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == before
    # The same evidence gives the same weights.
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


def test_further_corpora_are_heard(small_weights: Path, corpus: Path, write_clip: Any, tmp_path: Path) -> None:
    session = tmp_path / "semaine" / "Sessions" / "7"
    session.mkdir(parents=True)
    write_clip(session / "a.mp4", [], 300, seconds=4.2).rename(session / "2008_User HeadMounted_Spike.wav")
    words = "".join(f"---turn {k}---\n{k * 1000} {k * 1000 + 900} WORD\n.\n" for k in range(4))
    (session / "wordLevel_alignedTranscript_7_user").write_text(words, encoding="utf-8")
    for dimension, value in (("V", -0.8), ("A", 0.8)):
        trace = "".join(f"{t / 10:.1f} {value}\n" for t in range(42))
        (session / f"R1S7TUCSpD{dimension}.txt").write_text(trace, encoding="utf-8")
    (tmp_path / "labels.json").write_text('{"unpleasant_active": "disgust"}', encoding="utf-8")
    aesi = tmp_path / "aesi"
    rows = []
    for speaker in ("s01", "s02"):
        for emotion in ("anger", "joy"):
            write_clip(aesi / speaker / f"{emotion}.m4a", [], 400 if emotion == "joy" else 900)
            rows.append(f"{speaker}/{emotion}.m4a,{speaker},{emotion}\n")
    (aesi / "labels.csv").write_text("file,speaker,emotion\n" + "".join(rows), encoding="utf-8")
    more = ["--semaine", str(tmp_path / "semaine"), "--semaine-labels", str(tmp_path / "labels.json")]
    more += ["--aesi", str(aesi), "--features", str(tmp_path / "features"), "--pair-epochs", "1"]
    done = train(corpus, tmp_path / "out", *more, epochs=1)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert card["data"]["semaine"]["utterances"] == 4
    assert card["data"]["speech"]["recordings"] == 4
    assert card["data"]["speech"]["licence"].startswith("AESI")
    assert card["data"]["recordings"] == {"audio": 4}
    assert "SEMAINE: 4 read, 4 with a recording" in done.stderr
    assert "AESI: 4 read, 4 with a recording" in done.stderr
    assert "pairs 1: loss" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clip-names", "train.json"), "error: --clip-names without --clips"),
        (("--semaine-labels", "train.json"), "error: train.json: not a JSON object"),
        (("--clips", "empty"), "error: empty: no clip of this transcript"),
        (("--clips", "clips", "--features", "clips"), "clips holds other files"),
        (("--aesi", "empty"), "error: cannot read labels.csv"),
        (("--semaine", "empty"), "error: empty: no folders of sessions"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(
    corpus: Path,
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (corpus / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(corpus)
    command = ["train", "fusion", "--preset", "tiny", "--train", "train.json", "--dev", "dev.json"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--out", str(tmp_path / "out"), *options])
    assert caught.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-2]
    assert said[-1].startswith("hint: ")
    assert not (tmp_path / "out").exists()


def test_reading_says_how_far_it_is() -> None:
    lines: list[str] = []
    now = [0.0]
    tell = RecordingLines(lines.append, every_s=60, clock=lambda: now[0])
    tell(100, 1100)  # those were there before
    for done in range(101, 301):
        now[0] += 1.0
        tell(done, 1100)
    assert lines == [
        "recordings 160/1100 (14 %), 16 min left",
        "recordings 220/1100 (20 %), 15 min left",
        "recordings 280/1100 (25 %), 14 min left",
    ]
