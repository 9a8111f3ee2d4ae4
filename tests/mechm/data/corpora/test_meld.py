"""The MELD reader, on tables and clips in the layout of the release."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechm.data.corpora import Problem, read_meld
from mechm_runtime.errors import InputError, MediaError

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def row(
    dialogue: int,
    utterance: int,
    text: str = "Hi.",
    emotion: str = "neutral",
    start: str = "00:00:01,500",
    end: str = "00:00:02,000",
) -> str:
    return f'1,"{text}",Ross,{emotion},neutral,{dialogue},{utterance},8,21,"{start}","{end}"'


def table(folder: Path, *rows: str, split: str = "train", header: str = HEADER, encoding: str = "utf-8") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}_sent_emo.csv").write_bytes("\r\n".join([header, *rows, ""]).encode(encoding))
    return folder


def clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_rows_become_dialogues(tmp_path: Path) -> None:
    folder = table(
        tmp_path,
        row(0, 0, "Well, I know that!", "joy", "00:16:16,059", "00:16:21,731"),
        row(0, 2, "You're fired.", "Anger", "00:16:14,000", "00:16:14,500"),
        row(7, 4, 'One ""two"" three', "surprise"),
    )
    corpus = read_meld(folder)
    first, second = corpus.items
    assert (first.conversation.id, second.conversation.id) == ("train_dia0", "train_dia7")
    assert [u.id for u in first.conversation.utterances] == [1, 3]
    assert [u.text for u in first.conversation.utterances] == ["Well, I know that!", "You're fired."]
    assert (first.emotions, first.pairs) == (("joy", "anger"), frozenset())
    # Times count from the earliest utterance, which here is the second.
    times = [(u.start_s, u.end_s) for u in first.conversation.utterances]
    assert times == [pytest.approx((2.059, 7.731)), pytest.approx((0.0, 0.5))]
    assert (second.conversation.utterances[0].id, second.conversation.utterances[0].text) == (5, 'One "two" three')
    assert (corpus.report.corpus, corpus.report.n_items, corpus.report.n_media) == ("MELD train", 3, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1"])
def test_leftovers_of_windows_1252_are_understood(tmp_path: Path, encoding: str) -> None:
    written = "It\u2019s \u2014 fianc\u00e9\u2026" if encoding != "latin-1" else "It\x92s \x97 fianc\u00e9\x85"
    (corpus,) = read_meld(table(tmp_path, row(0, 0, written), encoding=encoding)).items
    assert corpus.conversation.utterances[0].text == "It\u2019s \u2014 fianc\u00e9\u2026"


def test_encodings_may_change_from_line_to_line(tmp_path: Path) -> None:
    rows = [row(0, 0, "It’s").encode(), row(0, 1, "It’s").encode("cp1252"), row(0, 2, "It\x92s").encode()]
    (tmp_path / "train_sent_emo.csv").write_bytes(b"\n".join([HEADER.encode(), *rows]))
    (one,) = read_meld(tmp_path).items
    assert [u.text for u in one.conversation.utterances] == ["It’s", "It’s", "It’s"]


@pytest.mark.parametrize("inner", ["", "train"])
def test_clips_are_found_where_meld_has_them(tmp_path: Path, inner: str) -> None:
    raw = tmp_path / "MELD.Raw"
    there = clip(raw / inner / "train_splits" / "dia0_utt0.mp4")
    clip(raw / inner / "train_splits" / "._dia0_utt1.mp4")
    folder = table(tmp_path, row(0, 0), row(0, 1), row(3, 0))
    for clips in (raw, there.parent):
        corpus = read_meld(folder, clips=clips)
        assert [u.media for one in corpus.items for u in one.conversation.utterances] == [there, None, None]
        assert corpus.report.problems == (Problem("dia0_utt1.mp4", "missing"), Problem("dia3_utt0.mp4", "missing"))
        assert corpus.report.n_media == 1


@pytest.mark.parametrize(("split", "place"), [("dev", "dev_splits_complete"), ("test", "output_repeated_splits_test")])
def test_each_split_has_its_own_folder(tmp_path: Path, split: str, place: str) -> None:
    there = clip(tmp_path / place / "dia0_utt0.mp4")
    clip(tmp_path / "train_splits" / "dia0_utt0.mp4")
    corpus = read_meld(table(tmp_path, row(0, 0), split=split), split, clips=tmp_path)
    assert corpus.items[0].conversation.utterances[0].media == there
    assert corpus.items[0].conversation.id == f"{split}_dia0"


def test_clips_that_do_not_open_are_reported(tmp_path: Path) -> None:
    for name in ("dia0_utt0.mp4", "dia0_utt1.mp4"):
        clip(tmp_path / "train_splits" / name)

    def probe(path: Path) -> None:
        if path.name == "dia0_utt1.mp4":
            raise MediaError("dia0_utt1.mp4: cut off")

    report = read_meld(table(tmp_path, row(0, 0), row(0, 1)), clips=tmp_path, probe=probe).report
    assert (report.n_media, report.problems) == (1, (Problem("dia0_utt1.mp4", "cut off"),))


def test_no_clips_of_the_split_are_refused_with_their_place(tmp_path: Path) -> None:
    clip(tmp_path / "train_splits" / "dia0_utt0.mp4")
    folder = table(tmp_path, row(0, 0), split="dev")
    with pytest.raises(MediaError, match="no clip of MELD's split dev") as caught:
        read_meld(folder, "dev", clips=tmp_path)
    assert "dev_splits_complete" in caught.value.hint


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(0, 1, emotion="happiness"), "line 3: unknown emotion 'happiness'"),
        (row(0, 1, start="12.5"), "line 3: StartTime '12.5' is not a time"),
        (row(0, 1, end="00:00:01,000"), "line 3: EndTime is before StartTime"),
        (row(0, 0), "line 3: Utterance_ID 0 repeats the one of line 2"),
        (row(0, 1).replace(",0,1,", ",0,-1,"), "line 3: Utterance_ID '-1' is not a whole number"),
        (row(0, 1).replace(",0,1,", ",a,1,"), "line 3: Dialogue_ID 'a' is not a whole number"),
        (row(0, 1) + ",more", "line 3: 12 values for 11 columns"),
        ("1,alone", "line 3: 2 values for 11 columns"),
        (row(0, 1, 'un"closed'), "line 3: "),
        (row(0, 1, "x" * 200_000), "line 3: field larger"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_meld(table(tmp_path, row(0, 0), bad))
    assert str(caught.value).startswith(f"train_sent_emo.csv, {message}")


def test_rows_out_of_order_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3: Utterance_ID 1 comes after the one of line 2"):
        read_meld(table(tmp_path, row(0, 2), row(0, 1)))


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read train_sent_emo\.csv: No such file") as caught:
        read_meld(tmp_path)
    assert "declare-lab/MELD" in caught.value.hint
    with pytest.raises(InputError, match="no column Speaker, EndTime"):
        read_meld(table(tmp_path, header=HEADER.replace("Speaker", "Who").replace(",EndTime", "")))
    for content in (b"", b"\n\n"):
        (tmp_path / "train_sent_emo.csv").write_bytes(content)
        with pytest.raises(InputError, match="no column Utterance"):
            read_meld(tmp_path)
    with pytest.raises(InputError, match="no utterances"):
        read_meld(table(tmp_path))
    with pytest.raises(InputError, match="NUL"):
        read_meld(table(tmp_path, encoding="utf-16"))
    with pytest.raises(InputError, match="no split 'valid'"):
        read_meld(tmp_path, "valid")


def test_ten_thousand_clips(tmp_path: Path) -> None:
    folder = table(tmp_path, *(row(i // 10, i % 10) for i in range(10_000)))
    for i in range(1, 10_000):
        clip(tmp_path / "train_splits" / f"dia{i // 10}_utt{i % 10}.mp4")
    report = read_meld(folder, clips=tmp_path).report
    assert (report.n_items, report.n_media) == (10_000, 9_999)
    assert report.problems == (Problem("dia0_utt0.mp4", "missing"),)
