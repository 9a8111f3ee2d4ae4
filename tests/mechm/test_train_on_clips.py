"""`mechm train fusion --clips`: a tiny network learns from voices what the words do not say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    assert card["data"]["recordings"] == {"utterances": 16}
    assert f"  {BROKEN}: is not media" in done.stderr
    assert done.stderr.splitlines()[-1] == "1 recordings could not be used, see above"
    assert "their scores say nothing" not in done.stderr
