"""Figures: they are whole SVG documents that carry the report's numbers, and nothing that a name smuggles in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mechm.evaluation.figures import write_figures
from mechm.evaluation.figures.style import DARK, LIGHT
from mechm.evaluation.report import ScoreReport
from mechm.evaluation.run import evaluate, score_submission
from mechm_runtime.errors import InputError
from mechm_runtime.types import (
    EMOTIONS,
    Analysis,
    Conversation,
    GoldPair,
    LabelledConversation,
    Pair,
    Utterance,
    UtteranceAnalysis,
)

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ["confusion.svg", "risk_coverage.svg", "reliability.svg"]


@pytest.fixture
def report() -> ScoreReport:
    """Four joyful utterances: two found, one taken for fear, one left open."""
    turns = tuple(Utterance(number, text="hm") for number in (1, 2, 3, 4))
    gold = LabelledConversation(Conversation("1", turns), ("joy",) * 4, frozenset({GoldPair(1, "joy", 1)}))

    def analyze(conversation: Conversation) -> Analysis:
        found = (("joy", 0.9), ("joy", 0.7), ("fear", 0.6), (None, 0.3))
        utterances = tuple(
            UtteranceAnalysis(u.id, "", "hm", None, None, emotion, {emotion or "anger": p}, ("text",))
            for u, (emotion, p) in zip(conversation.utterances, found, strict=True)
        )
        return Analysis("1", utterances, (Pair(1, "joy", 1, 0.8), Pair(2, "joy", 2, 0.4)), {}, "rule")

    return evaluate([gold], analyze, gold_name="a <b> & c.txt", system="bundle x")


def words(figure: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in figure.iter(f"{SVG}text")]


def groups(figure: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The elements drawn under names that start so."""
    return [element for element in figure.iter(f"{SVG}g") if (element.get("id") or "").startswith(name)]


def drawn(group: ElementTree.Element) -> str:
    return " ".join(f"{path.get('d')} {path.get('style')}" for path in group.iter(f"{SVG}path"))


def test_every_figure_stands_alone_and_says_what_it_is_of(report: ScoreReport, tmp_path: Path) -> None:
    written = write_figures(report, tmp_path / "made" / "figures")
    assert [path.name for path in written] == NAMES
    for path in written:
        figure = ElementTree.parse(path).getroot()  # noqa: S314 (our own file)
        assert figure.get("role") == "img"
        assert figure.get("aria-labelledby") == "title desc"
        assert "a <b> & c.txt · bundle x (text)" in words(figure)
        description = figure.find(f"{SVG}desc")
        assert description is not None
        assert description.text
        assert "http" not in path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "prefers-color-scheme:dark" in path.read_text()


def test_the_matrix_holds_every_count(report: ScoreReport, tmp_path: Path) -> None:
    figure = ElementTree.parse(write_figures(report, tmp_path)[0]).getroot()  # noqa: S314
    cells = groups(figure, "cell-")
    assert len(cells) == 7 * 8, "a column for abstentions"
    opacities = [float(found) for cell in cells for found in re.findall(r"fill-opacity: ([\d.]+)", drawn(cell))]
    assert sum(opacities) == pytest.approx(0.75, abs=0.01), "shares of the one row there is"
    assert {*EMOTIONS, "abstained", "50%", "25%"} <= set(words(figure))
    description = figure.find(f"{SVG}desc")
    assert description is not None
    assert description.text == "joy, 4 annotated: 1 fear, 2 joy, 1 abstained"


def test_curves_lie_where_their_values_are(report: ScoreReport, tmp_path: Path) -> None:
    _, risk_coverage, reliability = (ElementTree.parse(p).getroot() for p in write_figures(report, tmp_path))  # noqa: S314
    assert report.risk_coverage is not None
    assert [point.risk for point in report.risk_coverage.curve] == pytest.approx([0, 0, 1 / 3])
    (line,) = groups(risk_coverage, "curve")
    points = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn(line))]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert y0 == y1 > y2, "up is more risk, and y grows downwards"
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2), "coverage rises by a quarter each time"
    marks = groups(reliability, "mark-")
    assert report.calibration is not None
    n_marks = len(report.calibration.emotions.bins) + len(report.calibration.pairs.bins)
    assert len(marks) == n_marks
    assert sum("ECE of" in line for line in words(reliability)) == 2, "and two in the legend"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark() -> None:
    for colours in (LIGHT, DARK):
        assert contrast(colours["soft"], colours["card"]) >= 4.5
        card, heat = ([int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("card", "heat"))
        for opacity in (0.0, 0.25, 0.5, 0.75):
            mixed = [round((1 - opacity) * c + opacity * h) for c, h in zip(card, heat, strict=True)]
            assert contrast(colours["ink"], "#" + "".join(f"{c:02x}" for c in mixed)) >= 4.5
        for line in ("one", "two"):
            assert contrast(colours[line], colours["card"]) >= 3, "graphical objects"


def test_a_submission_has_no_figures_and_a_file_is_no_folder(report: ScoreReport, tmp_path: Path) -> None:
    gold = [LabelledConversation(Conversation("1", (Utterance(1),)), ("joy",), frozenset())]
    assert write_figures(score_submission(gold, {"1": []}, gold_name="g", system="s"), tmp_path / "none") == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make"):
        write_figures(report, tmp_path / "file")


def test_equal_reports_have_equal_bytes_and_matplotlib_is_left_as_it_was(report: ScoreReport, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.rcParams["font.size"] = 31
    try:
        first = [path.read_bytes() for path in write_figures(report, tmp_path / "one")]
        assert matplotlib.rcParams["font.size"] == 31
    finally:
        matplotlib.rcdefaults()
    assert [path.read_bytes() for path in write_figures(report, tmp_path / "two")] == first


def test_a_light_install_is_told_which_extra_draws(fresh_python: Any) -> None:
    code = "from mechm.evaluation.figures import require_matplotlib as r; r()"
    done = fresh_python(code, without=("matplotlib",))
    assert "MissingExtraError" in done.stderr
    assert "bench" in done.stderr


def test_drawing_uses_no_pyplot(fresh_python: Any) -> None:
    code = (
        "import sys, mechm.evaluation.figures; assert 'matplotlib' not in sys.modules\n"
        "from mechm.evaluation.figures.style import add_axes, figure_style, new_figure\n"
        "from mechm.evaluation.figures.svg import to_svg\n"
        "with figure_style(): to_svg(new_figure('a', 'b', 200), 'a', 'b')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
