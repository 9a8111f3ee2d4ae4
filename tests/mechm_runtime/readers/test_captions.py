"""Captions as people have them: each fault is repaired, counted and named once, and no words get lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mechm_runtime.errors import TranscriptError
from mechm_runtime.readers.draft import build_conversation
from mechm_runtime.readers.subtitles import parse_srt, parse_webvtt
from mechm_runtime.readers.text_file import Source
from mechm_runtime.types import Conversation

IRREGULAR = "1 line of times was written in an unusual way"


def read(text: str) -> Conversation:
    webvtt = text.lstrip().startswith("WEBVTT")
    source = Source(Path("talk.vtt" if webvtt else "talk.srt"), text)
    return build_conversation(source, (parse_webvtt if webvtt else parse_srt)(source)[0])


def found(text: str) -> list[tuple[str | None, float | None, float | None]]:
    return [(u.text, u.start_s, u.end_s) for u in read(text).utterances]


def spoken(text: str) -> list[tuple[str, str | None]]:
    return [(u.speaker, u.text) for u in read(text).utterances]


@pytest.mark.parametrize(
    ("line", "start_s", "end_s"),
    [
        ("00:00: 01,000 --> 00:00:02,000", 1, 2),
        ("00:00:01, 000 -- > 00:00:02, 500", 1, 2.5),
        ("00 : 00 : 01 , 000 --> 00 : 00 : 02 , 500", 1, 2.5),
        ("00:00:01,000 -> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 –> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 —> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 → 00:00:02,500", 1, 2.5),
        ("00:00:01,000 ==> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 --&gt; 00:00:02,500", 1, 2.5),
        ("00:00:01.0000 --> 00:00:02.5000", 1, 2.5),
        ("00:00:01.123456 --> 00:00:02.500000", 1.123456, 2.5),
        ("00:00:01:000 --> 00:00:02:500", 1, 2.5),
        ("00:00:01;000 --> 00:00:02;500", 1, 2.5),
        ("00:00:01, --> 00:00:02,5", 1, 2.5),
        ("01.000 --> 02.500".replace("01", "0:01", 1).replace("02", "0:02"), 1, 2.5),
    ],
)
def test_lines_of_times_as_tools_write_them(line: str, start_s: float, end_s: float) -> None:
    conversation = read(f"1\n{line}\nHello.\n")
    assert [(u.text, u.start_s, u.end_s) for u in conversation.utterances] == [("Hello.", start_s, end_s)]
    assert conversation.notes == (() if line.startswith("0:") else (IRREGULAR,))


@pytest.mark.parametrize(
    "line",
    [
        "00:00:01,000-->00:00:02,5",
        "0:1 --> 0:2.5 align:start",
        "00:01,00 --> 00:02,50 X1:10",
        "00:00:01.0 --> 00:00:02.50",
    ],
)
def test_regular_times_need_no_note(line: str) -> None:
    conversation = read(f"1\n{line}\nHello.\n")
    assert (conversation.utterances[0].start_s, conversation.utterances[0].end_s) == (1, 2.5)
    assert conversation.notes == ()


def test_arrows_in_words_are_words() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nfrom 12:30 -> 13:00\nA --> B\n12:30 -> 13:00\n"
    assert found(text) == [("from 12:30 -> 13:00 A --> B 12:30 -> 13:00", 1, 2)]
    assert spoken("WEBVTT\n\n00:01.000 --> 00:02.000\n<v Ana-->hello</v>\n") == [("Ana--", "hello")]


def test_only_an_empty_line_ends_a_webvtt_cue() -> None:
    text = (
        "WEBVTT\nKind: captions\n\n00:00:00.160 --> 00:00:02.429 align:start position:0%\n \n"
        "so<00:00:00.480><c> we</c><00:00:00.640><c> lost</c>\n"
    )
    assert found(text) == [("so we lost", 0.16, 2.429)]
    assert read(text).notes == ()


def test_text_below_an_empty_line_belongs_to_the_cue_above() -> None:
    webvtt = "WEBVTT\n\n00:01.000 --> 00:02.000\n\nI passed.\n\n00:02.000 --> 00:04.000\n\nGood.\n\nVery.\n"
    assert found(webvtt) == [("I passed.", 1, 2), ("Good. Very.", 2, 4)]
    assert read(webvtt).notes == ("2 cues had text below an empty line, which was taken as theirs",)
    srt = "1\n00:00:01,000 --> 00:00:02,000\na\n\nb\n\n2\n00:00:02,000 --> 00:00:03,000\nc\n"
    assert found(srt) == [("a b", 1, 2), ("c", 2, 3)]
    assert read(srt).notes == ("1 cue had text below an empty line, which was taken as its own",)


def test_a_file_with_an_empty_line_after_every_line() -> None:
    text = "1\n\n00:00:01,000 --> 00:00:02,000\n\nHello.\n\n\n2\n\n00:00:02,000 --> 00:00:03,000\n\nYes.\n"
    assert found(text) == [("Hello.", 1, 2), ("Yes.", 2, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "00:00:01,000 --> 00:00:02,000\na\n\n00:00:02,000 --> 00:00:03,000\nb\n",
        "1\n00:00:01,000 --> 00:00:02,000\na\n\n1\n00:00:02,000 --> 00:00:03,000\nb\n",
        "7\n00:00:01,000 --> 00:00:02,000\na\n3\n00:00:02,000 --> 00:00:03,000\nb\n",
        "1.\n00:00:01,000 --> 00:00:02,000\na\n\n\n\n2.\n00:00:02,000 --> 00:00:03,000\nb",
        "\ufeff1\n00:00:01,000 --> 00:00:02,000\na\n\n\ufeff2\n00:00:02,000 --> 00:00:03,000\nb",
    ],
)
def test_numbers_do_not_matter(text: str) -> None:
    assert found(text) == [("a", 1, 2), ("b", 2, 3)]


def test_order_does_not_matter() -> None:
    text = (
        "1\n00:00:03,000 --> 00:00:05,000\nc\n\n2\n00:00:01,000 --> 00:00:02,000\na\n\n"
        "3\n00:00:02,000 --> 00:00:03,000\nb\n"
    )
    conversation = read(text)
    assert [u.text for u in conversation.utterances] == ["a", "b", "c"]
    assert [u.id for u in conversation.utterances] == [1, 2, 3]
    assert conversation.notes == ("1 cue started before the one above it: cues were sorted by their start",)


def test_backward_times_are_swapped_or_the_cue_is_left_out() -> None:
    text = (
        "1\n00:00:02,000 --> 00:00:01,000\na\n\n2\n00:00:03,000 --> 00:00:02,500\nb\n\n"
        "3\n01:00:00,000 --> 00:00:04,000\nc\n"
    )
    assert found(text) == [("a", 1, 2), ("b", 2.5, 3)]
    assert read(text).notes == (
        "2 cues ended before they started: their two times were swapped",
        "1 cue ended long before it started and was left out",
    )
    with pytest.raises(TranscriptError, match="no cues whose times can be used"):
        read("1\n01:00:00,000 --> 00:00:04,000\nsecret\n")


def test_a_cue_that_stands_twice_is_read_once() -> None:
    cue = "1\n00:00:01,000 --> 00:00:02,000\nNo.\n\n"
    conversation = read(cue + cue + "2\n00:00:02,000 --> 00:00:03,000\nNo.\n")
    assert [(u.text, u.start_s) for u in conversation.utterances] == [("No.", 1), ("No.", 2)]
    assert conversation.notes == ("1 cue stood twice and was read once",)


def srt(*cues: tuple[float, float, str]) -> str:
    def stamp(seconds: float) -> str:
        return f"00:00:{int(seconds):02},{round(seconds * 1000) % 1000:03}"

    return "\n".join(f"{n}\n{stamp(a)} --> {stamp(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues, start=1))


def webvtt(*cues: tuple[float, float, str]) -> str:
    return "WEBVTT\n\n" + srt(*cues).replace(",", ".")


ROLLING = [
    (0.16, 2.429, "so we lost the match"),
    (2.429, 2.439, "so we lost the match"),
    (2.439, 5.749, "so we lost the match\nand nobody called me"),
    (5.749, 5.759, "and nobody called me"),
    (5.759, 8.1, "and nobody called me\nthat made me furious"),
]
LINES = [
    ("so we lost the match", 0.16, 2.429),
    ("and nobody called me", 2.439, 5.749),
    ("that made me furious", 5.759, 8.1),
]


@pytest.mark.parametrize("write", [srt, webvtt])
def test_rolling_captions_become_one_utterance_a_line(write: type) -> None:
    text = write(*ROLLING)
    assert found(text) == LINES
    assert read(text).notes == ("4 repeated lines of rolling captions were left out: each line is one utterance",)


def test_rolling_captions_with_the_times_of_words() -> None:
    first = "so<00:00:00.480><c> we</c><00:00:00.640><c> lost</c>"
    second = "so we lost\nand<00:00:02.600><c> nobody</c><00:00:03.000><c> called</c>"
    for write in (srt, webvtt):
        text = write((0.16, 2.4, f" \n{first}"), (2.4, 2.41, "so we lost\n "), (2.41, 5.7, second))
        assert found(text) == [("so we lost", 0.16, 2.4), ("and nobody called", 2.41, 5.7)]


def test_captions_of_two_lines_that_scroll() -> None:
    text = srt((0, 2, "a one\nb two"), (2, 4, "b two\nc three"), (4, 6, "c three\nd four"))
    assert found(text) == [("a one", 0, 1), ("b two", 1, 2), ("c three", 2, 4), ("d four", 4, 6)]


def test_captions_that_grow_by_a_word() -> None:
    text = srt(
        (0, 1, "so"), (1, 2, "so we"), (2, 3, "so we lost"), (3, 4, "so we lost\nand"), (4, 5, "so we lost\nand you")
    )
    assert found(text) == [("so we lost", 0, 3), ("and you", 3, 5)]


def test_captions_that_all_stand_twice() -> None:
    text = srt(*((n, n + 1, f"this is line {n // 2}") for n in range(8)))
    assert found(text) == [(f"this is line {n}", 2 * n, 2 * n + 2) for n in range(4)]


def test_words_that_are_really_repeated_stay() -> None:
    text = srt(
        (0, 1, "No."), (1, 2, "No."), (2, 3, "Why not?"), (3, 4, "No, no.\nNever."), (4, 5, "Never."), (5, 6, "Ok.")
    )
    assert [words for words, _, _ in found(text)] == ["No.", "No.", "Why not?", "No, no. Never.", "Never.", "Ok."]
    rolling = srt(*ROLLING, (8.1, 8.11, "that made me furious"), (20, 21, "that made me furious"))
    assert found(rolling) == [*LINES, ("that made me furious", 20, 21)]


@pytest.mark.parametrize(
    ("labels", "speakers"),
    [
        (["Speaker 1", "Speaker 2", "Speaker 1"], ["Speaker 1", "Speaker 2", "Speaker 1"]),
        (
            ['1 "Ana Roe" (16778240)', '2 "Ben Poe" (16784384)', '3 "Ana Roe" (16778240)'],
            ["Ana Roe", "Ben Poe", "Ana Roe"],
        ),
        (['1 "Ana" (1)', '2 "Ben" (2)', '3 "Cleo" (3)'], ["Ana", "Ben", "Cleo"]),
        (["1 Ana", "2 Ben", "3 Ana"], ["Ana", "Ben", "Ana"]),
        (["ana:", "ben:", "ana:"], ["ana", "ben", "ana"]),
        (["cue 1", "cue 2", "cue 3"], ["", "", ""]),
        (["intro", "talk", "end"], ["", "", ""]),
        (["cue", "cue", "cue"], ["", "", ""]),
        (["1", "1", "2"], ["", "", ""]),
        (["9f0c2b1e-77aa-4f5e-9d1c-000000000001/1-0"] * 3, ["", "", ""]),
    ],
)
def test_speakers_in_identifiers(labels: list[str], speakers: list[str]) -> None:
    cues = [f"{label}\n00:0{n}.000 --> 00:0{n + 1}.000\nwords {n}\n" for n, label in enumerate(labels)]
    assert [speaker for speaker, _ in spoken("\n".join(["WEBVTT\n", *cues]))] == speakers


def test_identifiers_of_srt_that_are_no_speakers_are_text() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\na\n\nb\n00:00:02,000 --> 00:00:03,000\nc\n"
    assert found(text) == [("a b", 1, 2), ("c", 2, 3)]
    cues = [f"{name}\n00:00:0{n},000 --> 00:00:0{n + 1},000\nx\n" for n, name in enumerate(["Ana", "Ben", "Ana"])]
    named = "\n".join(cues)
    assert [speaker for speaker, _ in spoken(named)] == ["Ana", "Ben", "Ana"]


def test_a_note_block_ends_at_an_empty_line_or_a_cue() -> None:
    text = (
        "WEBVTT\n\nNOTE made by hand\nsecret\n00:01.000 --> 00:02.000\na\n\n"
        "STYLE\n::cue { color: red }\n\n00:02.000 --> 00:03.000\nb\n"
    )
    assert found(text) == [("a", 1, 2), ("b", 2, 3)]


def test_tagged_names() -> None:
    text = srt(
        (0, 1, "<b>Ana:</b> Hi &amp; hello"), (1, 2, "<i>Ben</i>: Hey"), (2, 3, "<font color=red>Ana: </font>Well")
    )
    assert spoken(text) == [("Ana", "Hi & hello"), ("Ben", "Hey"), ("Ana", "Well")]


def test_a_name_on_its_own_line() -> None:
    assert spoken(srt((0, 1, "Ana:\nHi."), (1, 2, "Ben:\nHey."))) == [("Ana", "Hi."), ("Ben", "Hey.")]


@pytest.mark.parametrize(
    "text",
    [
        "1\n00:00:01,000 --> 00:00:02,000\n" + "a\n" * 100_000,
        "1\n00:00:01,000 --> 00:00:02,000\n" + "\n1" * 100_000,
        "00:00:01,000 --> 00:00:02,000\n" * 20_000,
        "WEBVTT\n\n00:01.000 --> 00:02.000\n" + "NOTE\n\n" * 100_000,
        "1\n00:00:01,000 --> 00:00:02,000\n" + "-" * 1_000_000 + ">",
        "1\n00:00:01,000 --> 00:00:02,000\n" + "0:" * 500_000,
        "1\n00:00:01,000 --> 00:00:02,000\n" + " " * 1_000_000,
        "WEBVTT\n\n" + "\n".join(f"00:01.000 --> 00:02.000\na {'b ' * 500}{n}\n" for n in range(2000)),
    ],
)
def test_hostile_files_take_linear_time(text: str) -> None:
    started = time.perf_counter()
    read(text)
    assert time.perf_counter() - started < 10


def within(text: str, duration_s: float) -> Conversation:
    source = Source(Path("talk.srt"), text)
    return build_conversation(source, parse_srt(source)[0], media_duration_s=duration_s)


def test_times_past_the_end_of_the_recording() -> None:
    text = srt((0, 2.853, "a"), (2.853, 7.112, "b"), (6, 8, "c"))
    conversation = within(text, 5.9)
    assert [(u.text, u.start_s, u.end_s) for u in conversation.utterances] == [("a", 0, 2.853), ("b", 2.853, 5.9)]
    assert conversation.notes == (
        "1 utterance ran past the end of the recording and was cut there",
        "1 utterance started past the end of the recording and was left out",
    )
    kept = within(srt((0, 2, "a"), (2, 6.3, "b"), (5.95, 6.3, "c")), 5.9)
    assert [(u.start_s, u.end_s) for u in kept.utterances] == [(0, 2), (2, 6.3), (5.95, 6.3)]
    assert kept.notes == ()


@pytest.mark.parametrize("cues", [[(5, 7.8, "a")], [(0, 1, "a"), (3, 4, "b"), (4, 5, "c")], [(0, 9, "a")]])
def test_a_transcript_of_another_recording_is_refused(cues: list[tuple[float, float, str]]) -> None:
    with pytest.raises(TranscriptError, match=r"past the end of the recording at 2\.900 s") as caught:
        within(srt(*cues), 2.9)
    assert "belongs to this recording" in caught.value.hint
