"""Readers of other corpora, on files in the layouts of their releases, and on the corpora where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mechm.data.corpora import read_emodb, read_goemotions, read_reccon
from mechm_runtime.errors import InputError, LabelError, TranscriptError
from mechm_runtime.types import EMOTIONS, GoldPair


def reccon(path: Path, **dialogues: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps({name: [turns] for name, turns in dialogues.items()}), encoding="utf-8")
    return path


def turn(number: int, emotion: str, *causes: int | str, utterance: str = "Well .") -> dict[str, Any]:
    said = {"turn": number, "speaker": "AB"[number % 2], "utterance": utterance, "emotion": emotion}
    return {**said, "expanded emotion cause evidence": list(causes)} if causes else said


def test_reccon_turns_become_utterances_and_pairs(tmp_path: Path) -> None:
    path = reccon(
        tmp_path / "train.json",
        tr_1=[turn(1, "neutral", utterance="My dog ran away ."), turn(2, "surprise", 1, 2, 2), turn(3, "sad", "b", 1)],
    )
    (labelled,) = read_reccon(path)
    assert labelled.conversation.id == "tr_1"
    assert labelled.emotions == ("neutral", "surprise", "sadness")
    assert labelled.conversation.utterances[0].text == "My dog ran away ."
    assert [u.speaker for u in labelled.conversation.utterances] == ["B", "A", "B"]
    assert labelled.pairs == {
        GoldPair(2, "surprise", 1),
        GoldPair(2, "surprise", 2),
        GoldPair(3, "sadness", 1),
    }


def test_reccon_names_of_emotions_are_mapped(tmp_path: Path) -> None:
    names = ["happiness", "happy", "excited", "angry", "anger", "sad", "surprised", "surprise", "disgust", "fear"]
    path = reccon(tmp_path / "x.json", d=[turn(i + 1, name, 1) for i, name in enumerate(names)])
    (labelled,) = read_reccon(path)
    assert labelled.emotions == (
        *("joy", "joy", "joy", "anger", "anger", "sadness", "surprise", "surprise", "disgust", "fear"),
    )


def test_a_reccon_dialogue_with_a_foreign_emotion_is_left_out(tmp_path: Path) -> None:
    path = reccon(tmp_path / "x.json", a=[turn(1, "frustrated", 1)], b=[turn(1, "happy", 1)])
    assert [c.conversation.id for c in read_reccon(path)] == ["b"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[[]]",
        b"3",
        b'{"a": []}',
        b'{"a": [[]]}',
        b'{"a": [[{"turn": 1}]]}',
        b'{"a": [[3]]}',
        b'{"a": [[{"turn": "one", "speaker": "A", "utterance": "x", "emotion": "neutral"}]]}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_what_is_not_reccon_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_reccon(path)


@pytest.mark.parametrize(
    ("turns", "kind", "message"),
    [
        ([turn(1, "bored")], LabelError, "turn 1: unknown emotion 'bored'"),
        ([turn(1, "sad", 2)], LabelError, "turn 1: the cause '2' is no turn of it"),
        ([turn(1, "sad", "c")], LabelError, "turn 1: the cause 'c' is no turn of it"),
        ([turn(1, "sad"), turn(1, "sad")], TranscriptError, "utterance id 1 appears twice"),
        ([turn(2, "sad"), turn(1, "sad")], TranscriptError, "utterance id 1 comes after 2"),
        ([turn(0, "sad")], TranscriptError, "utterance id 0 is below 1"),
        ([{**turn(1, "sad"), "speaker": None}], InputError, "a turn without its number"),
        ([{**turn(1, "sad", 1), "expanded emotion cause evidence": 1}], InputError, "turn 1: causes that are not"),
        ([], InputError, "no list of turns"),
    ],
)
def test_a_bad_reccon_dialogue_is_named(tmp_path: Path, turns: list[Any], kind: type[Exception], message: str) -> None:
    path = reccon(tmp_path / "x.json", tr_1=[turn(1, "happy")], tr_2=turns)
    with pytest.raises(kind, match=rf"x\.json, dialogue 'tr_2'.*{message}") as caught:
        read_reccon(path)
    assert caught.value.hint


def test_reccon_without_a_usable_dialogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json: no dialogues"):
        read_reccon(reccon(tmp_path / "x.json"))
    with pytest.raises(InputError, match=r"x\.json: no dialogues"):
        read_reccon(reccon(tmp_path / "x.json", a=[turn(1, "frustrated")]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json"):
        read_reccon(tmp_path / "absent.json")
    with pytest.raises(InputError, match=r"labels\.txt"):
        read_goemotions(tmp_path)


def goemotions(folder: Path, rows: str, labels: str = "anger\njoy\nneutral\n") -> Path:
    (folder / "labels.txt").write_text(labels, encoding="utf-8")
    (folder / "train.tsv").write_text(rows, encoding="utf-8")
    return folder


def test_goemotions_comments_become_conversations_of_one(tmp_path: Path) -> None:
    rows = "Thanks [NAME], lovely\t1\te1\nTwo moods\t0,1\te2\nIt is five\t2\te3\n"
    first, second = read_goemotions(goemotions(tmp_path, rows))
    assert (first.conversation.id, first.emotions, first.pairs) == ("e1", ("joy",), frozenset())
    assert first.conversation.utterances[0].text == "Thanks you, lovely"
    assert first.conversation.utterances[0].speaker == ""
    assert (second.conversation.id, second.emotions) == ("e3", ("neutral",))


@pytest.mark.parametrize("row", ["no tabs", "a\tb\tc", "a\t9\tc", "a\t-1\tc", "a\t1\tc\td", "a\t\tc", "a\t1,\tc"])
def test_a_malformed_goemotions_row_is_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match=r"train\.tsv, line 2"):
        read_goemotions(goemotions(tmp_path, f"Fine\t1\te1\n{row}\n"))


def test_goemotions_with_other_labels_or_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"labels\.txt, line 2: unknown emotion 'admiration'") as caught:
        read_goemotions(goemotions(tmp_path, "Fine\t0\te1\n", labels="anger\nadmiration\n"))
    assert "Ekman" in caught.value.hint
    goemotions(tmp_path, "Two moods\t0,1\te2\n")
    with pytest.raises(InputError, match=r"train\.tsv: no comment with one label"):
        read_goemotions(tmp_path)
    (tmp_path / "train.tsv").write_bytes(b"\xff\t0\te1\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_goemotions(tmp_path)


def test_emodb_names_say_who_and_how(tmp_path: Path) -> None:
    for name in ("03a01Fa.flac", "16b10Wb.wav", "03a01Lc.flac", "notes.txt", "03a01Fa.txt", "xx.flac"):
        (tmp_path / name).touch()
    found = read_emodb(tmp_path)
    assert [(r.path.name, r.speaker, r.emotion) for r in found] == [
        ("03a01Fa.flac", "03", "joy"),
        ("16b10Wb.wav", "16", "anger"),
    ]


def test_a_folder_without_emodb_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no EmoDB recordings"):
            read_emodb(folder)


def test_the_corpora_themselves(mechm_data: Path) -> None:
    data = mechm_data / "data"
    train = read_reccon(data / "reccon" / "dailydialog_train.json")
    assert (len(train), sum(len(c.emotions) for c in train)) == (834, 8206)
    # 7,271 cause spans, of which some lie in the same turn for the same emotion.
    assert sum(len(c.pairs) for c in train) == 7029
    assert all(pair.emotion != "neutral" for c in train for pair in c.pairs)
    assert len(read_reccon(data / "reccon" / "dailydialog_test.json")) == 225
    comments = read_goemotions(data / "goemotions")
    assert len(comments) == 39_555
    assert {c.emotions[0] for c in comments} == set(EMOTIONS)
    recordings = read_emodb(data / "emodb")
    assert (len(recordings), len({r.speaker for r in recordings})) == (350, 8)
    assert {r.emotion for r in recordings} == set(EMOTIONS) - {"surprise"}
