"""ECF with clips, on files in the layout of SemEval-2024 Task 3, and what is shared by all corpora with recordings."""

from __future__ import annotations

import json
import time
import wave
from pathlib import Path
from typing import Any

import pytest

from mechm.data.corpora import CorpusReport, Problem, read_ecf
from mechm_runtime.errors import LabelError, MediaError, TranscriptError
from mechm_runtime.media import MediaReader
from mechm_runtime.types import GoldPair


def semeval(path: Path, n_conversations: int = 1, n_utterances: int = 3, **changes: Any) -> Path:
    conversations = [
        {
            "conversation_ID": number,
            "conversation": [
                {
                    "utterance_ID": k,
                    "text": f"Line {k}",
                    "speaker": "Ross",
                    "emotion": "joy" if k == 1 else "neutral",
                    "video_name": f"dia{number}utt{k}.mp4",
                }
                for k in range(1, n_utterances + 1)
            ],
            "emotion-cause_pairs": [["1_joy", "1"]],
            **changes,
        }
        for number in range(1, n_conversations + 1)
    ]
    path.write_text(json.dumps(conversations), encoding="utf-8")
    return path


def recording(path: Path, *, n_samples: int = 800) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\0" * n_samples)
    return path


def test_clips_come_to_their_utterances_and_the_rest_is_reported(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    recording(clips / "dia1utt1.mp4")  # what a file holds decides, not its suffix
    (clips / "dia1utt2.mp4").write_bytes(b"half a down")
    (clips / "dia2utt1.mp4").touch()
    (clips / "dia2utt2.mp4").mkdir()
    path = semeval(tmp_path / "Subtask_2_train.json", n_conversations=2)
    with MediaReader() as reader:
        corpus = read_ecf(path, clips=clips, probe=reader.probe)
    first, second = corpus.items
    assert [u.media for u in first.conversation.utterances] == [clips / "dia1utt1.mp4", None, None]
    assert [u.media for u in second.conversation.utterances] == [None, None, None]
    assert [u.text for u in second.conversation.utterances] == ["Line 1", "Line 2", "Line 3"]
    assert first.emotions == ("joy", "neutral", "neutral")
    assert first.pairs == {GoldPair(1, "joy", 1)}
    report = corpus.report
    assert (report.n_items, report.n_media) == (6, 1)
    assert [p.name for p in report.problems] == [
        *("dia1utt2.mp4", "dia1utt3.mp4", "dia2utt1.mp4", "dia2utt2.mp4", "dia2utt3.mp4"),
    ]
    reasons = [p.reason for p in report.problems]
    assert "not media" in reasons[0]
    assert reasons[1:] == ["missing", "empty", "missing", "missing"]


def test_without_a_probe_a_clip_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "dia1utt1.mp4").write_bytes(b"half a down")
    corpus = read_ecf(semeval(tmp_path / "train.json"), clips=tmp_path)
    assert (corpus.report.n_items, corpus.report.n_media) == (3, 1)


def test_without_clips_nothing_is_missed(tmp_path: Path) -> None:
    report = read_ecf(semeval(tmp_path / "train.json")).report
    assert (report.n_items, report.n_media, report.problems) == (3, 0, ())


def test_mecpe_text_takes_the_clips_of_meld(tmp_path: Path) -> None:
    rows = "1 2\n(1,1)\n1 | Ross | joy | Hi . | train_dia5_utt0\n2 | Joey | neutral | Hey . | train_dia5_utt1\n"
    (tmp_path / "ecf_vs_meld.txt").write_text(rows, encoding="utf-8")
    recording(tmp_path / "train_splits" / "dia5_utt0.mp4")
    corpus = read_ecf(tmp_path / "ecf_vs_meld.txt", clips=tmp_path)
    assert corpus.items[0].conversation.utterances[0].media == tmp_path / "train_splits" / "dia5_utt0.mp4"
    assert corpus.report.problems == (Problem("train_dia5_utt1", "missing"),)


def test_no_usable_clip_at_all_is_refused(tmp_path: Path) -> None:
    path = semeval(tmp_path / "train.json")
    with pytest.raises(MediaError, match="no clip of this transcript") as caught:
        read_ecf(path, clips=tmp_path)
    assert "dia1utt1" in caught.value.hint
    with pytest.raises(MediaError, match="cannot be listed"):
        read_ecf(path, clips=tmp_path / "absent")
    (tmp_path / "dia1utt1.mp4").touch()
    with pytest.raises(MediaError, match=r"none of 3 clips .* dia1utt1\.mp4: empty"):
        read_ecf(path, clips=tmp_path)


def test_text_is_as_strict_as_without_clips(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no utterance 9"):
        read_ecf(semeval(tmp_path / "a.json", **{"emotion-cause_pairs": [["1_joy", "9"]]}))
    with pytest.raises(TranscriptError, match="no such file"):
        read_ecf(tmp_path / "absent.json")


def test_one_bad_clip_in_ten_thousand_stops_nothing(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(1, 1001):
        for k in range(1, 11):
            (clips / f"dia{number}utt{k}.mp4").write_bytes(b"" if (number, k) == (500, 5) else b"x")
    (clips / "dia77utt7.mp4").unlink()
    path = semeval(tmp_path / "train.json", n_conversations=1000, n_utterances=10)
    opened: list[Path] = []

    def probe(clip: Path) -> None:
        opened.append(clip)
        if clip.name == "dia900utt10.mp4":
            raise MediaError(f"{clip.name}: the file is cut off")

    started = time.perf_counter()
    corpus = read_ecf(path, clips=clips, probe=probe)
    assert time.perf_counter() - started < 10
    assert len(opened) == 9998
    assert corpus.report == CorpusReport(
        "train.json",
        10_000,
        9997,
        (
            Problem("dia77utt7.mp4", "missing"),
            Problem("dia500utt5.mp4", "empty"),
            Problem("dia900utt10.mp4", "the file is cut off"),
        ),
    )


def test_a_report_names_some_files_and_counts_all() -> None:
    problems = tuple(Problem(f"{i}.mp4", "missing") for i in range(12))
    lines = CorpusReport("MELD dev", 100, 88, problems, {"turns without words": 3}).lines(max_problems=2)
    assert lines == (
        "MELD dev: 100 read, 88 with a recording",
        "  left out: 3 turns without words",
        "  not used: 12 files",
        "  0.mp4: missing",
        "  1.mp4: missing",
        "  … and 10 more",
    )
    assert CorpusReport("MELD dev", 2, 2).lines() == ("MELD dev: 2 read, 2 with a recording",)
