"""The SEMAINE reader, on sessions in the layout of the database's download."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mechm.data.corpora import Problem, SemaineConfig, read_semaine, read_semaine_config
from mechm_runtime.errors import InputError, LabelError, MediaError

HAPPY, CROSS, GLOOMY, CALM = (0.6, 0.5), (-0.6, 0.5), (-0.6, -0.5), (0.6, -0.5)
"""Valence and activation in the four quadrants."""


def trace(path: Path, *pieces: tuple[float, float], step_s: float = 0.02) -> None:
    """A FEELtrace: (until_s, value) pieces one after the other."""
    lines, index = [], 0
    for until_s, value in pieces:
        while index * step_s < until_s - 1e-9:
            lines.append(f"{index * step_s:.2f} {value}")
            index += 1
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def words(path: Path, *turns: tuple[tuple[int, int, str], ...]) -> None:
    lines = []
    for number, turn in enumerate(turns, 1):
        lines += [f"---recording 3 turn {number}---", *(f"{start} {end} {word}" for start, end, word in turn), "."]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def session(root: Path, number: int, points: tuple[tuple[float, float], ...] = (HAPPY, CROSS)) -> Path:
    """Two turns of the user, 1 to 2 s and 3 to 4 s, the operator between them; each point holds for 2.5 s."""
    folder = root / "Sessions" / str(number)
    folder.mkdir(parents=True)
    words(
        folder / f"wordLevel_alignedTranscript_{number}_user",
        ((1000, 1400, "HELLO"), (1400, 2000, "POPPY")),
        ((3000, 4000, "NO"),),
    )
    words(folder / f"wordLevel_alignedTranscript_{number}_operator", ((2100, 2900, "WHY"),))
    (folder / "alignedTranscript_03.4Poppy.txt").write_text(
        "00:01:000 00:02:000 User\tHello, Poppy! (laughs)\n"
        "00:02:100 00:02:900 Operator\tWhy?\n"
        "00:03:000 00:04:000 User\tNo.\n",
        encoding="utf-8",
    )
    for rater in (1, 2):
        for dimension, axis in (("V", 0), ("A", 1)):
            pieces = [(2.5 * (i + 1), point[axis]) for i, point in enumerate(points)]
            trace(folder / f"R{rater}S{number}TUCPoD{dimension}.txt", *pieces)
    (folder / "2008.12.05.16.03.15_User HeadMounted_Poppy.wav").write_bytes(b"x")
    (folder / "session.xml").write_text("<session/>", encoding="utf-8")
    return folder


def test_traced_turns_become_labelled_utterances(tmp_path: Path) -> None:
    folder = session(tmp_path, 16)
    corpus = read_semaine(tmp_path)
    (one,) = corpus.items
    assert one.conversation.id == "16"
    assert [(u.id, u.speaker, u.text, u.start_s, u.end_s) for u in one.conversation.utterances] == [
        (1, "User", "Hello, Poppy!", 1.0, 2.0),
        (2, "User", "No.", 3.0, 4.0),
    ]
    assert one.emotions == ("joy", "anger")
    assert one.pairs == frozenset()
    assert one.conversation.media == folder / "2008.12.05.16.03.15_User HeadMounted_Poppy.wav"
    assert (corpus.report.n_items, corpus.report.n_media, corpus.report.problems) == (2, 2, ())
    assert read_semaine(tmp_path / "Sessions").items == corpus.items


def test_sessions_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        session(tmp_path, number)
    assert [one.conversation.id for one in read_semaine(tmp_path).items] == ["9", "10", "100"]


@pytest.mark.parametrize(("point", "label"), [(HAPPY, "joy"), (CROSS, "anger"), (GLOOMY, "sadness"), (CALM, "neutral")])
def test_quadrants_are_labels(point: tuple[float, float], label: str) -> None:
    assert SemaineConfig().label(*point) == label
    other = SemaineConfig(
        pleasant_active="surprise", unpleasant_active="fear", unpleasant_passive=None, pleasant_passive="joy"
    )
    assert other.label(*point) == {"joy": "surprise", "anger": "fear", "sadness": None, "neutral": "joy"}[label]


@pytest.mark.parametrize("angle", range(0, 360, 30))
def test_near_the_neutral_point_all_is_neutral(angle: int) -> None:
    config = SemaineConfig(neutral_valence=0.1, neutral_activation=-0.2, neutral_radius=0.3, pleasant_passive="joy")
    x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    assert config.label(0.1 + 0.299 * x, -0.2 + 0.299 * y) == "neutral"
    assert config.label(0.1 + 0.301 * x, -0.2 + 0.301 * y) != "neutral"
    assert SemaineConfig(neutral_radius=0.0).label(0.0, 0.0) == "neutral"


def test_raters_are_weighed_alike(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    # The first rater, sampled ten times as often, must not outvote the other two.
    trace(folder / "R1S1TUCPoDV.txt", (5.0, 1.0), step_s=0.002)
    trace(folder / "R2S1TUCPoDV.txt", (5.0, -0.9))
    trace(folder / "R3S1TUCPoDV.txt", (5.0, -0.9))
    assert read_semaine(tmp_path).items[0].emotions == ("anger", "anger")


def test_only_samples_within_the_turn_count(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    for rater in (1, 2):
        trace(folder / f"R{rater}S1TUCPoDV.txt", (0.99, -1.0), (2.01, 0.5), (2.99, -1.0), (4.01, 0.5), (9.0, -1.0))
    assert read_semaine(tmp_path).items[0].emotions == ("joy", "joy")


def test_lagging_traces_are_read_later(tmp_path: Path) -> None:
    session(tmp_path, 1, (CALM, HAPPY, GLOOMY))  # 2.5 s each
    assert read_semaine(tmp_path).items[0].emotions == ("neutral", "joy")
    assert read_semaine(tmp_path, config=SemaineConfig(reaction_lag_s=2.0)).items[0].emotions == ("joy", "sadness")


@pytest.mark.parametrize("name", ["R1S1TUCPoDV2.txt", "R1S1TUCPo2DV.txt", "R1S1TUCPoDV10.txt", "R1R1TUCPo3DV.txt"])
def test_a_rater_s_last_attempt_counts(tmp_path: Path, name: str) -> None:
    folder = session(tmp_path, 1)
    (folder / "R2S1TUCPoDV.txt").unlink()
    trace(folder / "R1S1TUCPoDV1.txt", (5.0, 0.9))
    trace(folder / name, (5.0, -0.9))
    assert read_semaine(tmp_path).items[0].emotions == ("anger", "anger")


@pytest.mark.parametrize("name", ["R9S1TUCPoDAn.txt", "R9S1TUCPoDI.txt", "R9S1TOCPoDV.txt", "R9S1TUCPoDVal.txt"])
def test_other_traces_are_passed_over(tmp_path: Path, name: str) -> None:
    (session(tmp_path, 1) / name).write_text("no trace at all", encoding="utf-8")
    corpus = read_semaine(tmp_path)
    assert (corpus.items[0].emotions, corpus.report.problems) == (("joy", "anger"), ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("0.00 0.5\n0.02 high\n", "line 2: not a time and a value"),
        ("0.00 0.5\n\n0.02\n", "line 3: not a time and a value"),
        ("0.00\n0.5 0.02 0.5\n", "line 1: not a time and a value"),
        ("0.00 0.5\n0.02 1.5\n", "line 2: the time is not finite, or the value not in -1..1"),
        ("0.00 nan\n", "line 1: the time is not finite, or the value not in -1..1"),
        ("0.02 0.5\n0.00 0.5\n", "line 2: the time runs backwards"),
        ("", "no samples"),
    ],
)
def test_a_malformed_trace_costs_a_rater(tmp_path: Path, content: str, reason: str) -> None:
    folder = session(tmp_path, 1)
    (folder / "R1S1TUCPoDV.txt").write_text(content, encoding="utf-8")
    corpus = read_semaine(tmp_path)
    assert corpus.items[0].emotions == ("joy", "anger")
    assert corpus.report.problems == (Problem("1/R1S1TUCPoDV.txt", reason),)


def test_turns_without_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    for rater in (1, 2):
        trace(folder / f"R{rater}S1TUCPoDA.txt", (2.5, 0.5))  # ends before the second turn
    corpus = read_semaine(tmp_path)
    assert corpus.items[0].emotions == ("joy",)
    assert corpus.report.left_out == {"turns without enough traces": 1}
    with pytest.raises(InputError, match="1 sessions without a labelled turn"):
        read_semaine(tmp_path, config=SemaineConfig(min_raters=3))
    corpus = read_semaine(tmp_path, config=SemaineConfig(unpleasant_active=None))
    assert corpus.items[0].emotions == ("joy",)
    session(tmp_path, 2)
    corpus = read_semaine(tmp_path, config=SemaineConfig(unpleasant_active=None))
    assert corpus.report.left_out["turns in a quadrant without a label"] == 1


def test_words_stand_in_for_a_transcript_that_does_not_fit(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    (folder / "alignedTranscript_03.4Poppy.txt").write_text("0:0:0 0:1:0 User\tHello.\n", encoding="utf-8")
    corpus = read_semaine(tmp_path)
    assert [u.text for u in corpus.items[0].conversation.utterances] == ["hello poppy", "no"]
    assert [p.name for p in corpus.report.problems] == ["1/alignedTranscript_03.4Poppy.txt"]
    (folder / "alignedTranscript_03.4Poppy.txt").unlink()
    again = read_semaine(tmp_path)
    assert (again.items, again.report.problems) == (corpus.items, ())


def test_an_empty_turn_keeps_texts_and_turns_together(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    words(folder / "wordLevel_alignedTranscript_1_user", (), ((3000, 4000, "NO"),))
    assert [u.text for u in read_semaine(tmp_path).items[0].conversation.utterances] == ["No."]


@pytest.mark.parametrize(
    "content",
    ["1000 2000 HELLO\n", "---recording 3 turn 1---\nHELLO\n", "---recording 3 turn 1---\n2000 1000 HELLO\n"],
)
def test_a_malformed_transcript_costs_its_session(tmp_path: Path, content: str) -> None:
    (session(tmp_path, 1) / "wordLevel_alignedTranscript_1_user").write_text(content, encoding="utf-8")
    session(tmp_path, 2)
    corpus = read_semaine(tmp_path)
    assert [one.conversation.id for one in corpus.items] == ["2"]
    (problem,) = corpus.report.problems
    assert problem.name == "1/wordLevel_alignedTranscript_1_user"
    assert problem.reason.endswith("not a word with its start and end in ms")
    assert corpus.report.left_out == {"sessions without a usable word-level transcript": 1}


def test_both_speakers_have_no_recording_in_common(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)
    config = SemaineConfig(speakers=("User", "Operator"))
    corpus = read_semaine(tmp_path, config=config)
    assert corpus.report.left_out == {"turns without enough traces": 1}  # the operator's
    for dimension, value in zip("VA", GLOOMY, strict=True):
        trace(folder / f"R1S1TOCPoD{dimension}.txt", (5.0, value))
    (one,) = read_semaine(tmp_path, config=config).items
    assert [(u.speaker, u.text) for u in one.conversation.utterances] == [
        ("User", "Hello, Poppy!"),
        ("Operator", "Why?"),
        ("User", "No."),
    ]
    assert one.emotions == ("joy", "sadness", "anger")
    assert one.conversation.media is None


def test_a_recording_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    folder = session(tmp_path, 1)

    def probe(path: Path) -> None:
        raise MediaError(f"{path.name}: cut off")

    corpus = read_semaine(tmp_path, probe=probe)
    assert corpus.items[0].conversation.media is None
    assert corpus.report.n_media == 0
    name = "2008.12.05.16.03.15_User HeadMounted_Poppy.wav"
    assert corpus.report.problems == (Problem(f"1/{name}", "cut off"),)
    (folder / name).unlink()
    assert read_semaine(tmp_path).report.problems == (Problem("1/User HeadMounted", "missing"),)


def test_what_is_no_download_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError) as caught:
            read_semaine(folder)
        assert "Sessions/1" in caught.value.hint
    (tmp_path / "Sessions" / "1").mkdir(parents=True)
    with pytest.raises(InputError, match="1 sessions without a usable word-level transcript"):
        read_semaine(tmp_path)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(LabelError, match="unpleasant_active: unknown emotion 'rage'"):
        SemaineConfig(unpleasant_active="rage")
    for bad in ({"neutral_radius": -0.1}, {"neutral_radius": math.nan}, {"min_raters": 0}, {"reaction_lag_s": -1.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            replace(SemaineConfig(), **bad)
    for speakers in ((), ("Poppy",)):
        with pytest.raises(InputError, match="speakers"):
            SemaineConfig(speakers=speakers)


def test_a_config_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(
        '{"neutral_radius": 0, "pleasant_active": "surprise", "pleasant_passive": null, "min_raters": 2, '
        '"speakers": ["User", "Operator"]}'
    )
    assert read_semaine_config(path) == SemaineConfig(
        neutral_radius=0, pleasant_active="surprise", pleasant_passive=None, min_raters=2, speakers=("User", "Operator")
    )
    path.write_text("{}")
    assert read_semaine_config(path) == SemaineConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "labels.json: not JSON"),
        ("[]", "labels.json: not a JSON object"),
        ('{"radius": 1}', "labels.json: unknown setting 'radius'"),
        ('{"neutral_radius": "1"}', "labels.json: neutral_radius is '1'"),
        ('{"neutral_radius": true}', "labels.json: neutral_radius is 'True'"),
        ('{"min_raters": 1.5}', r"labels.json: min_raters is '1\.5'"),
        ('{"speakers": "User"}', "labels.json: speakers is 'User'"),
        ('{"pleasant_active": 3}', "labels.json: pleasant_active is '3'"),
        ('{"pleasant_active": "rage"}', "pleasant_active: unknown emotion 'rage'"),
        ('{"neutral_radius": -1}', "neutral_radius is -1"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_semaine_config(path)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read labels\.json"):
        read_semaine_config(tmp_path / "labels.json")
