"""The AESI reader, on folders of recordings with a label table."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechm.data.corpora import Problem, read_aesi
from mechm_runtime.errors import InputError, MediaError


def aesi(folder: Path, table: str, *places: str) -> Path:
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"x")
    return folder


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_become_recordings(tmp_path: Path, delimiter: str) -> None:
    table = "Emotion,File,Speaker,Sentence\nanger,s01/anger_03.wav,s01,7\nJoy,s02/joy_01.wav,s02,9\n"
    aesi(tmp_path, table.replace(",", delimiter), "s01/anger_03.wav", "s02/joy_01.wav", "s02/extra.wav", "notes.txt")
    corpus = read_aesi(tmp_path)
    assert [(r.path, r.speaker, r.emotion) for r in corpus.items] == [
        (tmp_path / "s01" / "anger_03.wav", "s01", "anger"),
        (tmp_path / "s02" / "joy_01.wav", "s02", "joy"),
    ]
    report = corpus.report
    assert (report.n_items, report.n_media, report.problems) == (2, 2, ())
    assert report.left_out == {"recordings that the table does not name": 1}


@pytest.mark.parametrize(
    ("label", "emotion"),
    [
        *(("ΘΥΜΟΣ", "anger"), ("θυμός", "anger"), ("Φόβος", "fear"), ("χαρά", "joy"), ("ΧΑΡΆ", "joy")),
        *(("λύπη", "sadness"), ("ουδέτερο", "neutral"), (" Sad ", "sadness"), ("happiness", "joy"), ("FEAR", "fear")),
    ],
)
def test_labels_in_both_languages(tmp_path: Path, label: str, emotion: str) -> None:
    corpus = read_aesi(aesi(tmp_path, f"file,speaker,emotion\na.wav,1,{label}\n", "a.wav"))
    assert corpus.items[0].emotion == emotion


@pytest.mark.parametrize("name", ["s01/a.wav", "s01/a", "a.wav", "a", "./s01/a.wav", "s01\\a.wav"])
def test_a_recording_is_found_by_place_or_name(tmp_path: Path, name: str) -> None:
    aesi(tmp_path, f"file,speaker,emotion\n{name},1,joy\n", "s01/a.wav", "s01/._a.wav", "s02/b.wav")
    corpus = read_aesi(tmp_path)
    assert corpus.items[0].path == tmp_path / "s01" / "a.wav"
    assert corpus.report.left_out == {"recordings that the table does not name": 1}  # b.wav; ._ files are macOS's own


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert len(read_aesi(aesi(tmp_path, "\ufefffile,speaker,emotion\na.wav,1,joy\n", "a.wav")).items) == 1


def test_a_place_wins_over_a_name(tmp_path: Path) -> None:
    aesi(tmp_path, "file,speaker,emotion\na.wav,1,joy\n", "a.wav", "s01/a.wav")
    assert read_aesi(tmp_path).items[0].path == tmp_path / "a.wav"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.wav,2,surprise", "line 3: unknown emotion 'surprise'"),
        ("b.wav,2,έκπληξη", "line 3: unknown emotion 'έκπληξη'"),
        ("b.wav,,joy", "line 3: no speaker"),
        ("../b.wav,2,joy", "line 3: '../b.wav' is not a file below the folder"),
        ("/b.wav,2,joy", "line 3: '/b.wav' is not a file below the folder"),
        (",2,joy", "line 3: '' is not a file below the folder"),
        ("a,2,joy", "line 3: a.wav is the recording of line 2 already"),
        ("c.wav,2,joy", "line 3: 2 recordings are called 'c.wav'"),
        ("b.wav,2", "line 3: 2 values for 3 columns"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    places = ("a.wav", "b.wav", "s01/c.wav", "s02/c.wav")
    with pytest.raises(InputError) as caught:
        read_aesi(aesi(tmp_path, f"file,speaker,emotion\na.wav,1,joy\n{row}\n", *places))
    assert str(caught.value) == f"labels.csv, {message}"


def test_recordings_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    table = "file,speaker,emotion\na.wav,1,joy\ns01/b.wav,1,joy\nc.wav,1,joy\nd.wav,1,joy\n"
    aesi(tmp_path, table, "a.wav", "s01/b.wav", "d.wav")
    (tmp_path / "s01" / "b.wav").write_bytes(b"")

    def probe(path: Path) -> None:
        if path.name == "d.wav":
            raise MediaError("d.wav: cut off")

    corpus = read_aesi(tmp_path, probe=probe)
    assert [r.path.name for r in corpus.items] == ["a.wav"]
    assert corpus.report.problems == (
        Problem("s01/b.wav", "empty"),
        Problem("c.wav", "missing"),
        Problem("d.wav", "cut off"),
    )
    assert (corpus.report.n_items, corpus.report.n_media) == (4, 1)


def test_no_table_and_no_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read labels\.csv") as caught:
        read_aesi(tmp_path)
    assert "file, speaker, emotion" in caught.value.hint
    with pytest.raises(MediaError, match=r"no recording of AESI can be used; a\.wav: missing"):
        read_aesi(aesi(tmp_path, "file,speaker,emotion\na.wav,1,joy\n"))
    with pytest.raises(MediaError, match="the table is empty"):
        read_aesi(aesi(tmp_path, "file,speaker,emotion\n"))
    with pytest.raises(InputError, match="no column speaker"):
        read_aesi(aesi(tmp_path, "file,emotion\n"))


def test_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    table = aesi(tmp_path, "file,speaker,emotion\na.wav,1,joy\n", "audio/a.wav") / "labels.csv"
    assert len(read_aesi(tmp_path / "audio", table=table).items) == 1


def test_ten_thousand_recordings(tmp_path: Path) -> None:
    rows = "".join(f"s{i % 20}/{i}.wav,s{i % 20},joy\n" for i in range(10_000))
    aesi(tmp_path, "file,speaker,emotion\n" + rows, *(f"s{i % 20}/{i}.wav" for i in range(9_999)))
    corpus = read_aesi(tmp_path)
    assert len(corpus.items) == 9_999
    assert corpus.report.problems == (Problem("s19/9999.wav", "missing"),)
