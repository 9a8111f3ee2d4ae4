"""The HTML report: complete, self-contained, safe with any text, readable without colour, alive in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
import runpy
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mechm_runtime.errors import InputError
from mechm_runtime.output.formatting import percent
from mechm_runtime.output.report import render_report, write_report
from mechm_runtime.output.report.palette import ADJECTIVES, COLOURS
from mechm_runtime.output.report.summary import introduction, strongest_pairs
from mechm_runtime.output.report.timeline import PANEL_WIDTH, describe_pair, lay_out
from mechm_runtime.types import EMOTIONS, Analysis, Pair

examples = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("examples.py"))))
ALL = ["phone_call", "scene", "meeting"]
EVIL = "</script><script>window.pwned=1</script><img src=http://x.invalid onerror=alert(1)>'\"&<!--\u202e\ud800\x00"
VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, whether they nest, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def hostile() -> Analysis:
    analysis = examples.phone_call()
    first = dataclasses.replace(analysis.utterances[0], text=EVIL, speaker=EVIL, missing={EVIL: EVIL})
    return dataclasses.replace(
        analysis,
        utterances=(first, *analysis.utterances[1:]),
        conversation_id=EVIL,
        bundle_id=EVIL,
        timings_ms={EVIL: 1.0},
        pairs=(Pair(3, "surprise", 1, 0.7), Pair(1, "joy", 99, 0.9)),
    )


@pytest.mark.parametrize("name", ALL)
def test_everything_that_was_found_is_on_the_page(name: str):
    analysis = getattr(examples, name)()
    text = render_report([analysis], title="A title")
    page = Page(text)
    rows = {a["data-u"]: a for tag, a in page.tags if tag == "li" and "row" in a.get("class", "")}
    blocks = {a["data-u"]: a for tag, a in page.tags if tag == "a" and a.get("class", "").startswith("u ")}
    links = [a for tag, a in page.tags if tag == "g" and a.get("class", "").startswith("link ")]
    assert list(rows) == list(blocks) == [str(u.id) for u in analysis.utterances]
    by_id = {u.id: u for u in analysis.utterances}
    assert [a["aria-label"] for a in links] == [describe_pair(pair, by_id) for pair in analysis.pairs]
    said = "".join(part for parts in page.text.values() for part in parts)
    for utterance in analysis.utterances:
        assert html.unescape(utterance.text) in said
        assert f"e-{utterance.emotion or 'unsure'}" in rows[str(utterance.id)]["class"].split()
        for reason in utterance.missing.values():
            assert reason in said
    for pair in analysis.pairs:
        assert percent(pair.probability) in said
    assert "not a diagnosis" in said
    assert analysis.bundle_id in said
    assert "162 ms" in said


@pytest.mark.parametrize("analysis", [hostile(), examples.meeting()], ids=["hostile", "meeting"])
def test_nothing_is_loaded_and_only_our_own_script_and_style_may_run(analysis: Analysis):
    text = render_report([analysis], title=EVIL)
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset", "action") for name in attributes)
        target = attributes.get("href", "data:,")
        assert target == "data:," or (target.startswith("#") and target[1:] in ids)
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
    style, script = page.text["style"], [t for t in page.text["script"] if not t.startswith("{")]
    assert len(style) == len(script) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind, content in (("style", style[0]), ("script", script[0])):
        digest = base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy


def test_hostile_text_stays_text():
    text = render_report([hostile()], title=EVIL)
    text.encode("utf-8")
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not re.search("[\u202e\x00]", text)
    (data,) = (t for t in page.text["script"] if t.startswith("{"))
    assert not set("<>&") & set(data)
    facts = json.loads(data)["conversations"][0]
    shown = EVIL.replace("\u202e", "\ufffd").replace("\ud800", "\ufffd").replace("\x00", "\ufffd")
    assert facts["utterances"][0]["missing"] == {shown: shown}
    assert [(pair["effect"], pair["cause"]) for pair in facts["pairs"]] == [(3, 1)]


def test_the_script_gets_what_the_arrows_are_numbered_by():
    for name in ALL:
        analysis = getattr(examples, name)()
        page = Page(render_report([analysis], title="x"))
        (data,) = (t for t in page.text["script"] if t.startswith("{"))
        facts = json.loads(data)["conversations"][0]
        numbered = [a["data-p"] for tag, a in page.tags if tag == "g" and "data-p" in a]
        assert numbered == [str(i) for i in range(len(facts["pairs"]))]
        for utterance, shown in zip(analysis.utterances, facts["utterances"], strict=True):
            assert shown["probabilities"] == [round(utterance.probabilities[e], 4) for e in EMOTIONS]


def test_many_conversations_are_listed_and_each_has_its_section():
    analyses = [examples.phone_call(), examples.scene(), examples.meeting(25)]
    page = Page(render_report(analyses, title="Three"))
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["c1", "c2", "c3"]
    listed = [a["href"] for tag, a in page.tags if tag == "a" and a.get("href", "") in ("#c1", "#c2", "#c3")]
    assert listed == ["#c1", "#c2", "#c3"]


def test_one_conversation_is_named_once():
    assert 'class="sr">phone_call</h2>' in render_report([examples.phone_call()], title="Phone_call")
    assert 'dir="auto">phone_call</h2>' in render_report([examples.phone_call()], title="A call")


def test_there_must_be_something_to_show(tmp_path: Path):
    with pytest.raises(InputError):
        write_report([], tmp_path / "report.html", title="x")
    assert list(tmp_path.iterdir()) == []


def test_written_as_rendered(tmp_path: Path):
    analysis = examples.scene()
    write_report([analysis], tmp_path / "report.html", title="x")
    assert (tmp_path / "report.html").read_bytes() == render_report([analysis], title="x").encode("utf-8")


def test_time_runs_to_the_right_and_certainty_upwards():
    for name in ALL:
        analysis = getattr(examples, name)()
        layout = lay_out(analysis)
        lefts = [block.x - block.width / 2 for block in layout.blocks.values()]
        assert lefts == sorted(lefts)
        assert lefts[0] >= 0
        assert max(block.x + block.width / 2 for block in layout.blocks.values()) <= layout.width
        if layout.pixels_per_s is not None:
            blocks = list(layout.blocks.values())
            for a, b in combinations(blocks[:10], 2):
                apart = (b.utterance.start_s + b.utterance.end_s - a.utterance.start_s - a.utterance.end_s) / 2
                assert b.x - a.x == pytest.approx(apart * layout.pixels_per_s)
        by_height = sorted(layout.blocks.values(), key=lambda block: block.height)
        sure = [max(b.utterance.probabilities.values()) for b in by_height if b.utterance.emotion is None]
        decided = [b.utterance.probabilities[b.utterance.emotion] for b in by_height if b.utterance.emotion]
        assert decided == sorted(decided)
        assert sure == sorted(sure)
    assert lay_out(examples.phone_call()).width <= PANEL_WIDTH + 1
    assert lay_out(examples.scene()).pixels_per_s is None


def test_missing_times_of_one_turn_fall_back_to_turns():
    analysis = examples.phone_call()
    untimed = dataclasses.replace(analysis.utterances[4], start_s=None, end_s=None)
    mixed = dataclasses.replace(analysis, utterances=(*analysis.utterances[:4], untimed, *analysis.utterances[5:]))
    assert lay_out(mixed).pixels_per_s is None
    assert "their times are unknown" in render_report([mixed], title="x")


def test_the_story_in_words():
    assert introduction(examples.phone_call()) == (
        "Two people talk for 23 s in 13 turns. 5 of them carry an emotion, most often surprise. 7 causes were found."
    )
    analysis = examples.scene()
    best = strongest_pairs(analysis)
    assert [(p.cause_utterance, p.emotion_utterance) for p in best] == [(1, 3), (3, 4), (9, 10)]
    calm = dataclasses.replace(
        analysis, utterances=tuple(dataclasses.replace(u, emotion="neutral") for u in analysis.utterances), pairs=()
    )
    assert introduction(calm) == "Three people talk in 12 turns. No turn carries a clear emotion."
    render_report([calm], title="x")


def test_two_hundred_turns_stay_a_small_file():
    assert len(render_report([examples.meeting(240)], title="long").encode("utf-8")) < 600_000


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB; identity for normal sight.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson 2020, from linear RGB."""
    to_lms = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.6806995, 0.10739696],
        [0.08830246, 0.28171884, 0.6299787],
    ]
    to_lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(rgb, 0.0, 1.0))


@pytest.mark.parametrize("sight", SIGHTS)
def test_emotions_differ_for_every_kind_of_sight(sight: str):
    assert set(COLOURS) == set(ADJECTIVES) == set(EMOTIONS)
    seen = {name: oklab(np.array(SIGHTS[sight]) @ linear(colour)) for name, colour in COLOURS.items()}
    closest = min(float(np.linalg.norm(seen[a] - seen[b])) for a, b in combinations(seen, 2))
    assert closest > 0.11


def test_text_is_readable_on_light_and_dark():
    style = "".join(Page(render_report([examples.scene()], title="x")).text["style"])
    themes = [dict(re.findall(r"--([a-z]+):(#[0-9a-f]{6})", block)) for block in re.findall(r":root\{([^}]*)\}", style)]
    light, dark = themes[0], themes[1]
    for theme in (light, dark):
        for ink in ("ink", "soft"):
            for ground in ("bg", "card", "lane"):
                a, b = sorted(float(linear(theme[c]) @ [0.2126, 0.7152, 0.0722]) for c in (ink, ground))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)


def test_it_lives_in_a_browser_and_hostile_text_does_not(tmp_path: Path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    write_report([hostile()], tmp_path / "report.html", title=EVIL)
    flags = (
        "--headless --window-size=1280,900 --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync --enable-logging=stderr "
        "--virtual-time-budget=3000 --dump-dom"
    )
    address = f"{(tmp_path / 'report.html').as_uri()}#c1-u3"
    ran = subprocess.run(
        [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in ran.stderr
    assert ran.stdout.count("<script") == 2
    detail = re.search(r'<div class="detail".*?<ul class="senses">', ran.stdout, re.DOTALL)
    assert detail is not None
    assert "Oh, hello." in detail[0]
    assert "surprise" in detail[0]
    assert re.search(r'<svg class="arcs" aria-hidden="true"><g class="link e-surprise on"', ran.stdout)


def test_terms_of_use_and_repairs_are_shown() -> None:
    noted = dataclasses.replace(examples.phone_call(), notes=("2 cues <were> sorted",))
    text = render_report([noted], title="x", terms="For research & more.")
    assert "Repaired in the input: 2 cues &lt;were&gt; sorted" in text
    assert "<p>For research &amp; more.</p>" in text.partition('<footer class="page">')[2]
