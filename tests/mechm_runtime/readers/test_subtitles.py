"""SRT and WebVTT: what is written comes back, and what is not understood is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechm_runtime.errors import TranscriptError
from mechm_runtime.readers import read_transcript
from mechm_runtime.readers.draft import build_conversation
from mechm_runtime.readers.subtitles import parse_srt, parse_webvtt
from mechm_runtime.readers.text_file import Source
from mechm_runtime.types import Conversation


def read_srt(text: str) -> Conversation:
    source = Source(Path("talk.srt"), text)
    return build_conversation(source, parse_srt(source)[0])


def read_webvtt(text: str) -> Conversation:
    source = Source(Path("talk.vtt"), text)
    return build_conversation(source, parse_webvtt(source)[0])


def turns(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [(utterance.speaker, utterance.text) for utterance in conversation.utterances]


def stamp(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


WORDS = st.text(
    st.characters(categories=["L", "N", "S", "P"], exclude_characters="<>&{}:-–"), min_size=1, max_size=8
).filter(lambda word: word[0].isalpha())
TEXTS = st.lists(WORDS, max_size=6)
CUES = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 9000), st.sampled_from(["", "Joey", "Dr. Long", "Zoë"]), TEXTS),
    min_size=1,
    max_size=12,
)


def expected(cues: list[tuple[int, int, str, list[str]]]) -> list[tuple[str, str | None, float, float]]:
    start, rows = 0, []
    for number, (gap, duration, speaker, spoken) in enumerate(cues):
        start += gap
        # No cue repeats the one above it, which would be left out.
        words = [f"w{number}", *spoken] if spoken else []
        rows.append((speaker if words else "", " ".join(words) or None, start / 1000, (start + duration) / 1000))
    return rows


def found(conversation: Conversation) -> list[tuple[str, str | None, float | None, float | None]]:
    return [(u.speaker, u.text, u.start_s, u.end_s) for u in conversation.utterances]


@settings(deadline=None)
@given(CUES, st.sampled_from(["\n", "\r\n", "\r"]))
def test_webvtt_comes_back_as_it_was_written(cues: list[tuple[int, int, str, list[str]]], line_end: str) -> None:
    lines = ["WEBVTT - made by a test", ""]
    rows = expected(cues)
    for number, (speaker, text, start_s, end_s) in enumerate(rows):
        times = f"{stamp(round(start_s * 1000), '.')} --> {stamp(round(end_s * 1000), '.')} align:start"
        voice = f"<v.loud {speaker}>" if speaker else ""
        lines += [f"cue {number}", times, voice + (text or "").replace(" ", "\n"), ""]
    assert found(read_webvtt(line_end.join(lines))) == rows


@settings(deadline=None)
@given(CUES, st.sampled_from(["\n", "\r\n", "\r"]))
def test_srt_comes_back_as_it_was_written(cues: list[tuple[int, int, str, list[str]]], line_end: str) -> None:
    # Every cue with words is named, so that names count as speakers.
    rows = expected([(gap, duration, speaker or "Ross", words) for gap, duration, speaker, words in cues])
    lines: list[str] = []
    for number, (speaker, text, start_s, end_s) in enumerate(rows, start=1):
        times = f"{stamp(round(start_s * 1000), ',')} --> {stamp(round(end_s * 1000), ',')}"
        lines += [str(number), times, f"{speaker}: {text}" if text else "", ""]
    assert found(read_srt(line_end.join(lines))) == rows


def test_ways_to_name_a_speaker() -> None:
    conversation = read_webvtt(
        "WEBVTT\n\n"
        "00:01.000 --> 00:02.000\n<v Joey>How you <i>doin'</i>?</v> <v Rachel>Fine &amp; you?\n\n"
        "00:02.000 --> 00:03.000\n- Hello?\n- Who is\nthis?\n\n"
        "00:03.000 --> 00:04.000\nMonica: It is me.\nRoss: And me.\n\n"
        "00:04.000 --> 00:05.000\nMonica: Again.\nRoss: Always.\n\n"
        "00:05.000 --> 00:06.000\n&gt;&gt; Breaking news.\n\n"
        "00:06.000 --> 00:07.000\nRemember: no cake.\n"
    )
    assert turns(conversation) == [
        ("Joey", "How you doin'?"),
        ("Rachel", "Fine & you?"),
        ("", "Hello?"),
        ("", "Who is this?"),
        ("Monica", "It is me."),
        ("Ross", "And me."),
        ("Monica", "Again."),
        ("Ross", "Always."),
        ("", "Breaking news."),
        ("", "Remember: no cake."),
    ]
    assert [u.start_s for u in conversation.utterances] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    assert [u.id for u in conversation.utterances] == list(range(1, 11))


def test_brackets_from_diarization_tools() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\n[SPEAKER_00]: Hello there.\n"
    assert turns(read_srt(text)) == [("SPEAKER_00", "Hello there.")]


def test_a_dash_that_is_no_turn() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\n-5 degrees\n--and falling\nat 12:30, see https://example.org\n"
    assert turns(read_srt(text)) == [("", "-5 degrees --and falling at 12:30, see https://example.org")]


def test_webvtt_blocks_that_are_not_cues() -> None:
    conversation = read_webvtt(
        "WEBVTT\nKind: captions\n\nNOTE made by hand\nover two lines\n\nSTYLE\n::cue { color: red }\n\n"
        "REGION\nid:left\n\n"
        "intro\n01:02.500 --> 1:00:03.250 line:0 position:20%\nHello <00:01:02.700><c.yellow>you</c>\n"
    )
    assert found(conversation) == [("", "Hello you", 62.5, 3603.25)]


def test_srt_oddities() -> None:
    # No blank line between cues, one inside a cue, a position, tags in capitals, "<" that is no tag, no last line end.
    conversation = read_srt(
        "1\n00:00:01,000 --> 00:00:02,000 X1:10 X2:20\n{\\an8}<FONT color=red>One</FONT>\n"
        "2\n00:00:02,5 --> 00:00:03\ntwo\n\nand a half\n\n3\n00:00:04,000 --> 00:00:05,000\n3 < 4 > 2"
    )
    assert found(conversation) == [("", "One", 1, 2), ("", "two and a half", 2.5, 3), ("", "3 < 4 > 2", 4, 5)]


def test_a_cue_without_text_stays_as_sound_only() -> None:
    conversation = read_srt("1\n00:00:01,000 --> 00:00:02,000\n\n2\n00:00:02,000 --> 00:00:03,000\n<i> </i>\n")
    assert found(conversation) == [("", None, 1, 2), ("", None, 2, 3)]


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\n\x1b[31mred\x07 \u0085 &#27;[0m\n"
    spoken = read_srt(text).utterances[0].text
    assert spoken is not None
    assert spoken.isprintable()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("1\n00:00:O5,000 --> 00:00:06,000\nsecret\n", 2, "not a line of times"),
        ("secret\n00:00:05,000 --> 00:00:06,000\na\n", 1, "without its line of times"),
        ("1\n00:00:05,000 --> tomorrow\nsecret\n", 2, "not a line of times"),
        ("1\n00:00:05,000 --> 00:61:06,000\nsecret\n", 2, "above 59"),
        ("secret\n\n1\n00:00:05,000 --> 00:00:06,000\na\n", 1, "without its line of times"),
        ("1\n00:00:01,000 --> 00:00:02,000\na\n\n2\n00:00:03,000\nsecret\n", 5, "without its line of times"),
        ("1\n9999:00:01,000 --> 9999:00:02,000\nsecret\n", 2, "not in 0.."),
    ],
)
def test_a_broken_srt_names_the_line_and_not_the_text(text: str, line: int, words: str) -> None:
    with pytest.raises(TranscriptError, match=rf"talk\.srt, line {line}: .*{words}") as caught:
        read_srt(text)
    assert "secret" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("WEBVTT\n\nsecret\n", 3),
        ("WEBVTT\n\nsecret\n\n00:01.000 --> 00:02.000\na\n", 3),
        ("webvtt\n\n00:01.000 --> 00:02.000\nsecret\n", 1),
    ],
)
def test_webvtt_text_is_never_lost(text: str, line: int) -> None:
    with pytest.raises(TranscriptError, match=f"line {line}: ") as caught:
        read_webvtt(text)
    assert "secret" not in str(caught.value)


def test_files_without_cues() -> None:
    with pytest.raises(TranscriptError, match="no cues"):
        read_webvtt("WEBVTT\n\nNOTE nothing\n")


def test_a_webvtt_file_with_another_suffix(tmp_path: Path) -> None:
    path = tmp_path / "talk.srt"
    path.write_text("WEBVTT\n\n00:01.000 --> 00:02.000\n<v Joey>Hi\n", encoding="utf-8-sig")
    (conversation,) = read_transcript(path)
    assert conversation.id == "talk"
    assert turns(conversation) == [("Joey", "Hi")]


HOSTILE = [
    "<v " + " " * 50_000,
    "<v\n" * 20_000,
    "<" * 50_000,
    "{\\" * 50_000,
    "&" * 50_000,
    "x\n\n" * 20_000,
    "<i " * 30_000,
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("payload", HOSTILE)
def test_hostile_payloads_take_linear_time(payload: str) -> None:
    read_srt(f"1\n00:00:01,000 --> 00:00:02,000\nx{payload}")
