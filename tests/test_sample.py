"""The shipped sample: its three files tell the same story, and the recording really holds it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime.types import EMOTIONS

SAMPLE = Path(__file__).resolve().parent.parent / "sample"
CUE = re.compile(r"(\d+)\n([\d:,]+) --> ([\d:,]+)\n(\w+): (.+)\n")


def seconds(stamp: str) -> float:
    hours, minutes, rest = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def cues() -> list[tuple[int, float, float, str, str]]:
    found = CUE.findall((SAMPLE / "conversation.srt").read_text(encoding="utf-8"))
    return [(int(n), seconds(start), seconds(end), speaker, text) for n, start, end, speaker, text in found]


def annotated() -> dict[str, Any]:
    (conversation,) = json.loads((SAMPLE / "conversation.json").read_text(encoding="utf-8"))
    return dict(conversation)


def decoded() -> tuple[np.ndarray, int, list[np.ndarray], float]:
    """Mono samples, their rate, every tenth picture as grey (height, width), and the number of pictures a second."""
    av = pytest.importorskip("av")
    with av.open(str(SAMPLE / "conversation.mp4")) as container:
        rate = container.streams.audio[0].rate
        per_second = float(container.streams.video[0].average_rate)
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    with av.open(str(SAMPLE / "conversation.mp4")) as container:
        pictures = [frame.to_ndarray(format="gray") for n, frame in enumerate(container.decode(video=0)) if n % 10 == 0]
    return np.concatenate(sound), rate, pictures, per_second


def test_transcript_and_annotation_say_the_same():
    conversation = annotated()["conversation"]
    assert [(n, speaker, text) for n, _, _, speaker, text in cues()] == [
        (item["utterance_ID"], item["speaker"], item["text"]) for item in conversation
    ]
    assert [item["utterance_ID"] for item in conversation] == list(range(1, len(conversation) + 1))


def test_annotation_covers_all_emotions_and_its_pairs_point_at_them():
    sample = annotated()
    emotions = {item["utterance_ID"]: item["emotion"] for item in sample["conversation"]}
    assert set(emotions.values()) == set(EMOTIONS)
    paired = set()
    for effect, cause in sample["emotion-cause_pairs"]:
        number, emotion = effect.split("_")
        assert emotions[int(number)] == emotion != "neutral"
        assert int(cause) in emotions
        paired.add(int(number))
    assert paired == {number for number, emotion in emotions.items() if emotion != "neutral"}


def test_times_rise_and_lie_inside_the_recording():
    sound, rate, pictures, per_second = decoded()
    duration_s = min(len(sound) / rate, len(pictures) * 10 / per_second)
    previous = 0.0
    for _, start, end, _, _ in cues():
        assert previous < start < end
        previous = end
    assert previous < duration_s < 60.0


def test_people_speak_when_the_transcript_says_so_and_not_between():
    sound, rate, _, _ = decoded()

    def level(start: float, end: float) -> float:
        return float(np.sqrt(np.mean(sound[int(start * rate) : int(end * rate)] ** 2)))

    spoken = cues()
    quietest = min(level(start, end) for _, start, end, _, _ in spoken)
    loudest_pause = max(level(a[2] + 0.05, b[1] - 0.05) for a, b in itertools.pairwise(spoken))
    assert quietest > 5 * loudest_pause
    assert float(np.abs(sound).max()) < 1.0


def test_the_speaker_is_the_one_who_moves():
    _, _, pictures, per_second = decoded()
    thirds = {"Omar": 0, "Lena": 1, "Pia": 2}
    width = pictures[0].shape[1]
    for _, start, end, speaker, _ in cues():
        # From half a second on: leaning in is over, what still moves is the face that speaks.
        index = [n for n in range(len(pictures)) if start + 0.6 <= n * 10 / per_second <= end]
        moves = [0.0, 0.0, 0.0]
        for a, b in itertools.pairwise(index):
            change = np.abs(pictures[b].astype(np.float32) - pictures[a].astype(np.float32))
            for third in range(3):
                moves[third] += float(change[:, third * width // 3 : (third + 1) * width // 3].mean())
        assert len(index) < 2 or int(np.argmax(moves)) == thirds[speaker]


def test_it_stays_small():
    assert sum(path.stat().st_size for path in SAMPLE.iterdir() if path.is_file()) < 1_500_000
