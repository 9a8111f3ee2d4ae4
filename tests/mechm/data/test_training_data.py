"""The data of a training: corpora of every layout with their clips, checks between them, evidence of recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm.data.corpora import Problem, SemaineConfig
from mechm.data.feature_extraction import Span
from mechm.data.recorded_modalities import ModalityDropoutConfig
from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.data.training_data import (
    TrainingData,
    TrainingSources,
    load_training_data,
    read_annotated,
    read_recordings,
)
from mechm.model.config import TINY
from mechm_runtime.errors import InputError, LabelError, MediaError, TranscriptError
from mechm_runtime.types import GoldPair

MELD_HEADER = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID,StartTime,EndTime"


def semeval(path: Path, *names: int, n_utterances: int = 3, text: str = "Line") -> Path:
    """Conversations of three people; the first utterance is joy for its own sake."""
    conversations = [
        {
            "conversation_ID": name,
            "conversation": [
                {
                    "utterance_ID": k,
                    "text": f"{text} {k} of {name}",
                    "speaker": "ABC"[k % 3],
                    "emotion": "joy" if k == 1 else "neutral",
                }
                for k in range(1, n_utterances + 1)
            ],
            "emotion-cause_pairs": [["1_joy", "1"]],
        }
        for name in names
    ]
    path.write_text(json.dumps(conversations), encoding="utf-8")
    return path


def clips(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def sources(tmp_path: Path, **more: Any) -> TrainingSources:
    return TrainingSources(semeval(tmp_path / "train.json", 1, 2), semeval(tmp_path / "dev.json", 3), **more)


def load(given: TrainingSources, max_utterances: int = 64) -> TrainingData:
    return load_training_data(given, max_utterances=max_utterances)


# Layouts


def test_text_alone_has_no_recordings(tmp_path: Path) -> None:
    data = load(sources(tmp_path))
    assert [one.conversation.id for one in data.corpora["ecf"]] == ["1", "2"]
    assert [one.conversation.id for one in data.dev] == ["3"]
    assert (data.spans, data.speech, data.notes) == ((), (), ())
    assert [(r.corpus, r.n_items, r.n_media) for r in data.reports] == [("train.json", 6, 0), ("dev.json", 3, 0)]


def test_clips_are_called_after_conversation_and_utterance(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "dia1utt1.mp4", "dia2utt3.mkv", "dia3utt2.mp4")
    data = load(sources(tmp_path, clips=folder))
    assert data.spans == tuple(Span(folder / name) for name in ("dia1utt1.mp4", "dia2utt3.mkv", "dia3utt2.mp4"))
    assert [r.n_media for r in data.reports] == [2, 1]
    assert Problem("dia1utt2.mp4", "missing") in data.reports[0].problems


def test_the_clips_of_meld_are_found_through_the_file_that_names_them(tmp_path: Path) -> None:
    turns = "1 | Ross | joy | Hi . | {}\n2 | Joey | neutral | Hey . | {}\n"
    episodes = ("Friends_S1E4: 00:00:03.420 - 00:00:04.382", "Friends_S1E4: 00:00:04.382 - 00:00:05.298")
    for name, number in (("train.txt", 7), ("dev.txt", 8)):
        (tmp_path / name).write_text(f"{number} 2\n(1,1)\n" + turns.format(*episodes), encoding="utf-8")
    named = "7 2\n(1,1)\n" + turns.format("train_dia5_utt0", "train_dia5_utt1")
    named += "8 2\n(1,1)\n" + turns.format("dev_dia5_utt0", "")
    (tmp_path / "ecf_vs_meld.txt").write_text(named, encoding="utf-8")
    raw = clips(tmp_path / "MELD.Raw", "train_splits/dia5_utt0.mp4", "dev_splits_complete/dia5_utt0.mp4")
    given = TrainingSources(
        tmp_path / "train.txt", tmp_path / "dev.txt", clips=raw, names_file=tmp_path / "ecf_vs_meld.txt"
    )
    data = load(given)
    assert data.spans == (
        Span(raw / "train_splits" / "dia5_utt0.mp4"),
        Span(raw / "dev_splits_complete" / "dia5_utt0.mp4"),
    )
    assert Problem("train_dia5_utt1", "missing") in data.reports[0].problems
    with pytest.raises(MediaError, match="no clip of this transcript") as caught:
        load(replace(given, names_file=None))
    assert "--clip-names ecf_vs_meld.txt" in caught.value.hint


def test_a_names_file_of_another_corpus_is_refused(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "dia1utt1.mp4")
    other = semeval(tmp_path / "other.json", 1, n_utterances=5)
    with pytest.raises(TranscriptError, match=r"other\.json: conversation 1 has other utterances than in train\.json"):
        load(sources(tmp_path, clips=folder, names_file=other))
    nameless = semeval(tmp_path / "nameless.json", 99)
    with pytest.raises(TranscriptError, match=r"nameless\.json: names no clip of train\.json"):
        load(sources(tmp_path, clips=folder, names_file=nameless))


def test_a_table_of_meld_is_a_corpus_too(tmp_path: Path) -> None:
    rows = 'Hi.,Ross,joy,0,0,"00:00:01,500","00:00:02,000"\nNo!,Joey,anger,0,1,"00:00:02,000","00:00:03,000"\n'
    (tmp_path / "train_sent_emo.csv").write_text(f"{MELD_HEADER}\n{rows}", encoding="utf-8")
    raw = clips(tmp_path / "raw", "train_splits/dia0_utt1.mp4", "dia3utt1.mp4")
    data = load(
        TrainingSources(tmp_path / "train_sent_emo.csv", semeval(tmp_path / "dev.json", 3), clips=raw),
    )
    assert data.target == "meld"
    (dialogue,) = data.corpora["meld"]
    assert dialogue.emotions == ("joy", "anger")
    assert Span(raw / "train_splits" / "dia0_utt1.mp4") in data.spans
    assert data.notes == ("train_sent_emo.csv has no annotated causes: emotions are learnt, causes are not",)


def test_meld_s_table_has_meld_s_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"{MELD_HEADER}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.csv: a table that is none of MELD's") as caught:
        read_annotated(tmp_path / "train.csv")
    assert "train_sent_emo.csv" in caught.value.hint
    with pytest.raises(InputError, match="need no --clip-names"):
        read_annotated(tmp_path / "dev_sent_emo.csv", clips=tmp_path, names_file=tmp_path / "x.txt")


def semaine(folder: Path, n_turns: int = 4) -> Path:
    session = folder / "Sessions" / "16"
    session.mkdir(parents=True)
    words = "".join(f"---recording 1 turn {k}---\n{k * 1000} {k * 1000 + 900} WORD\n.\n" for k in range(n_turns))
    (session / "wordLevel_alignedTranscript_16_user").write_text(words, encoding="utf-8")
    for dimension in "VA":
        trace = "".join(f"{t / 10:.1f} 0.8\n" for t in range(10 * n_turns))
        (session / f"R1S16TUCPoD{dimension}.txt").write_text(trace, encoding="utf-8")
    (session / "2008.12_User HeadMounted_Poppy.wav").write_bytes(b"x")
    return folder


def test_semaine_brings_stretches_of_its_microphone(tmp_path: Path) -> None:
    folder = semaine(tmp_path / "semaine")
    data = load(sources(tmp_path, semaine=folder))
    (session,) = data.corpora["semaine"]
    assert session.emotions == ("joy",) * 4
    film = folder / "Sessions" / "16" / "2008.12_User HeadMounted_Poppy.wav"
    assert data.spans == tuple(Span(film, float(k), k + 0.9) for k in range(4))
    changed = load(sources(tmp_path, semaine=folder, semaine_labels=SemaineConfig(pleasant_active="surprise")))
    assert changed.corpora["semaine"][0].emotions == ("surprise",) * 4


def test_aesi_brings_voices_without_conversations(tmp_path: Path) -> None:
    folder = clips(tmp_path / "aesi", "s01/a.wav", "s01/b.wav")
    (folder / "labels.csv").write_text("file,speaker,emotion\na.wav,s01,anger\nc.wav,s01,joy\n", encoding="utf-8")
    data = load(sources(tmp_path, aesi=folder))
    assert [(r.path.name, r.emotion) for r in data.speech] == [("a.wav", "anger")]
    assert data.reports[-1].problems == (Problem("c.wav", "missing"),)
    assert data.spans == ()


def test_dev_may_be_without_clips_and_train_may_not(tmp_path: Path) -> None:
    data = load(sources(tmp_path, clips=clips(tmp_path / "clips", "dia1utt1.mp4")))
    assert [r.n_media for r in data.reports] == [1, 0]
    assert data.notes == ("dev.json is scored on its text alone: clips: no clip of this transcript",)
    with pytest.raises(MediaError, match="no clip of this transcript"):
        load(sources(tmp_path, clips=clips(tmp_path / "others", "dia3utt1.mp4")))


# Between corpora


def test_a_clip_of_two_different_utterances_is_refused(tmp_path: Path) -> None:
    folder = clips(tmp_path / "clips", "dia1utt1.mp4")
    train = semeval(tmp_path / "train.json", 1)
    other = semeval(tmp_path / "dev.json", 1, text="Another line")
    with pytest.raises(InputError, match=r"dia1utt1\.mp4 would be the clip of different utterances") as caught:
        load(TrainingSources(train, other, clips=folder))
    assert "ids of their own" in caught.value.hint


def test_scoring_on_what_was_learnt_is_noted(tmp_path: Path) -> None:
    train = semeval(tmp_path / "train.json", 1, 2)
    folder = clips(tmp_path / "clips", "dia1utt1.mp4", "dia2utt1.mp4")
    data = load(TrainingSources(train, semeval(tmp_path / "dev.json", 2, 3), clips=folder))
    assert data.notes == ("1 conversations of dev.json are in train.json too: their scores say nothing",)


def test_dev_without_causes_is_refused(tmp_path: Path) -> None:
    rows = 'Hi.,Ross,joy,0,0,"00:00:01,500","00:00:02,000"\n'
    (tmp_path / "dev_sent_emo.csv").write_text(f"{MELD_HEADER}\n{rows}", encoding="utf-8")
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: no annotated causes") as caught:
        load(TrainingSources(semeval(tmp_path / "train.json", 1), tmp_path / "dev_sent_emo.csv"))
    assert "--dev" in caught.value.hint


def test_options_without_the_one_they_belong_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--clip-names without --clips"):
        sources(tmp_path, names_file=tmp_path / "x.txt")
    with pytest.raises(InputError, match="without SEMAINE"):
        sources(tmp_path, semaine_labels=SemaineConfig())


def test_long_conversations_come_in_pieces_and_it_is_said(tmp_path: Path) -> None:
    given = TrainingSources(
        semeval(tmp_path / "train.json", 1, n_utterances=200), semeval(tmp_path / "dev.json", 3, n_utterances=200)
    )
    data = load(given)
    assert sum(len(one.emotions) for one in data.corpora["ecf"]) == 200
    assert max(len(one.emotions) for one in data.corpora["ecf"]) <= 64
    assert data.corpora["ecf"][0].pairs == {GoldPair(1, "joy", 1)}
    assert [len(one.emotions) for one in data.dev] == [200]  # scores are of whole conversations
    assert data.notes == ("ecf: 1 conversations of more than 64 utterances are learnt in pieces",)


def test_pairs_that_pieces_part_are_counted(tmp_path: Path) -> None:
    train = semeval(tmp_path / "train.json", 1, n_utterances=100)
    conversations = json.loads(train.read_text())
    conversations[0]["emotion-cause_pairs"] = [["1_joy", "100"]]
    train.write_text(json.dumps(conversations))
    data = load(TrainingSources(train, semeval(tmp_path / "dev.json", 3)))
    assert data.notes == (
        "ecf: 1 conversations of more than 64 utterances are learnt in pieces, 1 pairs across pieces are not",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotion": "boredom"}, r"train\.json, conversation 1, utterance 2: unknown emotion 'boredom'"),
        ({"utterance_ID": 1}, r"train\.json, conversation 1, utterance 2: utterance id 1 appears twice"),
        ({"pair": ["1_joy", "9"]}, r"train\.json, conversation 1, pair 1_joy, 9: there is no utterance 9"),
        ({"pair": ["1_anger", "1"]}, r"train\.json, conversation 1, pair 1_anger, 1: utterance 1 is labelled joy"),
    ],
)
def test_bad_annotation_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = sources(tmp_path)
    conversations = json.loads(given.train.read_text())
    pair = change.pop("pair", None)
    conversations[0]["conversation"][1].update(change)
    if pair is not None:
        conversations[0]["emotion-cause_pairs"].append(pair)
    given.train.write_text(json.dumps(conversations))
    with pytest.raises((LabelError, TranscriptError), match=message):
        load(given)


def test_files_without_conversations_are_refused(tmp_path: Path) -> None:
    given = sources(tmp_path)
    for content, message in (("", "the file is empty"), ("[]", "no conversations")):
        given.train.write_text(content)
        with pytest.raises(TranscriptError, match=rf"train\.json: {message}") as caught:
            load(given)
        assert caught.value.hint


def test_conversations_of_the_same_id_are_refused(tmp_path: Path) -> None:
    given = replace(sources(tmp_path), train=semeval(tmp_path / "twice.json", 1, 1))
    with pytest.raises(TranscriptError, match=r"twice\.json: conversation '1' appears twice") as caught:
        load(given)
    assert caught.value.hint


# Recordings


def test_recordings_become_evidence_and_the_broken_ones_are_named(
    small_weights: Path, write_clip: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    grey = [np.full((64, 96, 3), 90, np.uint8)]
    for name in ("dia1utt1.mp4", "dia1utt2.mp4", "dia3utt1.mp4"):
        write_clip(folder / name, grey, 300)
    (folder / "dia2utt1.mp4").write_bytes(b"half a down")
    data = load(sources(tmp_path, clips=folder))
    fallback = SimulatedModalities(TINY, {}, SimulationConfig(conversation_rate=0.0))
    found = read_recordings(
        data, TINY, fallback, config=ModalityDropoutConfig(0, 0, 0), folder=tmp_path / "features", n_jobs=2
    )
    assert found is not None
    first, second = data.corpora["ecf"]
    emotions = np.zeros((2, 3), np.int64)
    evidence, _ = found.source.sample([first, second], emotions, np.random.default_rng(0))
    assert evidence.audio_mask.tolist() == [[True, True, False], [False, False, False]]
    assert found.source.of(data.dev, 3).audio_mask.tolist() == [[True, False, False]]
    assert found.counts == {"audio": 2, "face": 0, "scene": 2}
    lines = found.lines()
    assert lines[:2] == ("recordings: 4 read, 3 with a recording", "  not used: 1 files")
    assert lines[2].startswith("  dia2utt1.mp4: ")
    assert "not media" in lines[2]


def test_without_recordings_there_is_no_evidence_of_them(tmp_path: Path) -> None:
    assert read_recordings(load(sources(tmp_path)), TINY, SimulatedModalities(TINY, {}, SimulationConfig())) is None


def test_features_lie_in_the_cache_folder_by_encoders(
    small_weights: Path, write_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    write_clip(folder / "dia1utt1.m4a", [], 300)
    write_clip(folder / "dia3utt1.m4a", [], 300)
    monkeypatch.setattr("mechm.data.training_data.cache_dir", lambda: tmp_path / "cache")
    fallback = SimulatedModalities(TINY, {}, SimulationConfig())
    assert read_recordings(load(sources(tmp_path, clips=folder)), TINY, fallback) is not None
    (kept,) = (tmp_path / "cache" / "features").iterdir()
    assert kept.name.startswith("tiny-")
