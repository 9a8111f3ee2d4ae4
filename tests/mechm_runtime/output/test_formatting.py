"""Text of names and of stage times."""

from __future__ import annotations

import pytest

from mechm_runtime.output.formatting import shorten_names, stages_text


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["Ana", "Ben"], ["Ana", "Ben"]),
        (["Speaker 1", "Speaker 2"], ["Speak… 1", "Speak… 2"]),
        (["SPEAKER_00", "SPEAKER_01", "SPEAKER_10"], ["SPEAK…00", "SPEAK…01", "SPEAK…10"]),
        (["x" * 40 + "1" + "y" * 40, "x" * 40 + "2" + "y" * 40], None),
    ],
)
def test_names_are_never_cut_to_the_same_letters(names: list[str], shown: list[str] | None) -> None:
    found = shorten_names([*names, *names], 8)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    if shown is not None:
        assert [one.replace(" ", "") for one in found.values()] == [one.replace(" ", "") for one in shown]


def test_stages_that_overlap_say_so() -> None:
    assert stages_text({"total": 100.0, "text": 60.0, "fusion": 30.0}) == "text 60, fusion 30"
    assert stages_text({"total": 100.0, "text": 60.4, "fusion": 39.9}, " ms") == "text 60 ms, fusion 40 ms"
    assert stages_text({"total": 100.0, "text": 60.0, "voice": 70.0}) == "text 60, voice 70; some at the same time"
    assert stages_text({"total": 5.0}) == ""
