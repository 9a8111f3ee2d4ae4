"""The terminal table: everything is in it at any width, nothing runs over, nothing steers the terminal."""

from __future__ import annotations

import dataclasses
import re
import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from mechm_runtime.output.formatting import clock, duration, percent, printable, ranges, shorten
from mechm_runtime.output.table import EMOTION_STYLES, render_table
from mechm_runtime.types import EMOTIONS, Pair

examples = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("examples.py"))))
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("width", [72, 80, 99, 100, 160, 250])
@pytest.mark.parametrize("name", ["phone_call", "scene", "meeting"])
def test_every_utterance_fits_with_emotion_and_causes(name: str, width: int):
    analysis = getattr(examples, name)()
    text = render_table(analysis, width, colour=False)
    assert all(cell_len(line) <= width for line in text.splitlines())
    rows = {int(row[1]): row[0] for row in re.finditer(r"^ *(\d+)  .*(?:\n {6,}.*)*", text, re.MULTILINE)}
    assert set(rows) == {utterance.id for utterance in analysis.utterances}
    for utterance in analysis.utterances:
        row = rows[utterance.id]
        assert f" {utterance.emotion or 'unsure'} " in row
        assert utterance.text.split()[0] in row
        for pair in analysis.causes_of(utterance.id):
            cause = "self" if pair.cause_utterance == utterance.id else str(pair.cause_utterance)
            assert re.search(rf"(← |, ){cause} {re.escape(percent(pair.probability))}", row)


def test_modalities_are_shown_by_place_and_reasons_below():
    text = render_table(examples.phone_call(), 100, colour=False)
    assert " TAFS " in text.splitlines()[0]
    assert text.count(" TA×·") == 13
    assert "× face missing in every utterance: the recording has no video track" in text
    assert "× face missing in 5, 14: no face" in render_table(examples.meeting(18), 100, colour=False)
    assert "(nearest: 12 disgust)" in text


def test_summary_counts_and_times():
    text = render_table(examples.phone_call(), 200, colour=False)
    assert "7 pairs found in 13 utterances, 2 speakers, 5 with an emotion · 162 ms (decode 41," in text
    assert "bundle small-int8-3f9c2a71d0b4" in text


def test_colour_only_adds_to_the_same_text():
    analysis = examples.scene()
    coloured = render_table(analysis, 100, colour=True)
    assert ANSI.search(coloured)
    plain = [line.rstrip() for line in ANSI.sub("", coloured).splitlines()]
    assert plain == render_table(analysis, 100, colour=False).splitlines()


def test_emotions_differ_in_colour():
    assert set(EMOTION_STYLES) == set(EMOTIONS)
    assert len(set(EMOTION_STYLES.values())) == len(EMOTIONS)


def test_transcripts_cannot_steer_the_terminal():
    analysis = examples.phone_call()
    evil = "\x1b]0;title\x07\x1b[2Jgone\r\n\u202eback [red]markup[/red] :smile:"
    first = dataclasses.replace(analysis.utterances[0], text=evil, speaker="\x1b[1mX\x9b", missing={"face": "\x1b[0m"})
    text = render_table(dataclasses.replace(analysis, utterances=(first, *analysis.utterances[1:])), 160, colour=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "[red]markup[/red] :smile:" in text


def test_wide_characters_keep_the_columns():
    analysis = examples.phone_call()
    first = dataclasses.replace(analysis.utterances[0], text="これは" * 40, speaker="田中さんと鈴木さん")
    text = render_table(dataclasses.replace(analysis, utterances=(first, *analysis.utterances[1:])), 80, colour=False)
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "neutral 81%" in text


def test_unknown_words_speakers_and_many_causes():
    analysis = examples.phone_call()
    bare = dataclasses.replace(analysis.utterances[5], text=None, speaker="", start_s=None, end_s=None)
    utterances = (*analysis.utterances[:5], bare, *analysis.utterances[6:])
    pairs = tuple(Pair(6, "joy", cause, 0.5 + cause / 100) for cause in range(1, 7))
    text = render_table(dataclasses.replace(analysis, utterances=utterances, pairs=pairs), 120, colour=False)
    assert re.search(r"6 +- +\? +\(words unknown\) .* ← self 56%, 5 55%, 4 54% \+3", text)


def test_five_thousand_utterances_take_seconds():
    analysis = examples.meeting(5000)
    start = time.process_time()
    text = render_table(analysis, 120, colour=False)
    assert time.process_time() - start < 20
    assert text.count("\n") > 5000


def test_wording():
    assert [clock(s) for s in (-1, 0, 59.99, 75.2, 3675)] == ["0:00", "0:00", "0:59", "1:15", "1:01:15"]
    assert [duration(s) for s in (23.6, 59.7, 185, 4320)] == ["24 s", "1 min 00 s", "3 min 05 s", "1 h 12 min"]
    assert [percent(p) for p in (0.0, 0.004, 0.5, 0.994, 1.0)] == ["0%", "<1%", "50%", ">99%", "100%"]
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert shorten("a friendly sentence, really", 20) == "a friendly sentence…"
    assert shorten("x" * 30, 10) == "x" * 9 + "…"
    assert len(shorten("words of some length here", 12)) <= 12
    assert printable("a\u200db\n\tc\x00") == "a\u200db c\ufffd"
