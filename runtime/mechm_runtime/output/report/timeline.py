"""Draws the timeline as SVG: one lane per speaker, one block per utterance, one curved arrow per pair.

The width of a block is the duration of its utterance, its height the probability of its emotion. Where any time is
unknown, x is the number of the turn. The drawing works without script: blocks are links to the transcript.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from statistics import median

from mechm_runtime.output.formatting import UNSURE, clock, percent, probability_of, shorten, speaker_of, words_of
from mechm_runtime.output.report.palette import emotion_key
from mechm_runtime.types import EMOTIONS, Analysis, Pair, UtteranceAnalysis

PANEL_WIDTH = 560
"""Pixels of the left column on a desktop; shorter conversations are stretched to it, longer ones scroll."""
TOP, LANE_HEIGHT, BOTTOM = 44, 78, 26
SIDE = 20
MIN_BLOCK_HEIGHT, MAX_BLOCK_HEIGHT = 10, 42
MIN_BLOCK_WIDTH = 6.0
MEDIAN_BLOCK_WIDTH = 25.0
TURN_WIDTH, TURN_BLOCK_WIDTH = 46.0, 36.0
FACE_SIZE = 22
TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
MIN_TICK_DISTANCE = 64


@dataclass(frozen=True, slots=True)
class Block:
    """Place of an utterance in the drawing: lane (from 0), and middle, width and height in pixels."""

    utterance: UtteranceAnalysis
    lane: int
    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> float:
        """The upper edge."""
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True)
class Layout:
    """All blocks by utterance id, and the axis: pixels per second from `start_s`, or None where turns are counted."""

    speakers: tuple[str, ...]
    blocks: dict[int, Block]
    width: float
    height: float
    start_s: float
    pixels_per_s: float | None


def speakers_of(analysis: Analysis) -> tuple[str, ...]:
    """Speakers in the order in which they first speak."""
    return tuple(dict.fromkeys(speaker_of(utterance) for utterance in analysis.utterances))


def pairs_of(analysis: Analysis) -> tuple[Pair, ...]:
    """The pairs of which both utterances are in the conversation; others cannot be drawn."""
    ids = {utterance.id for utterance in analysis.utterances}
    return tuple(p for p in analysis.pairs if p.emotion_utterance in ids and p.cause_utterance in ids)


def is_timed(analysis: Analysis) -> bool:
    """Whether every utterance has a start and an end."""
    return all(u.start_s is not None and u.end_s is not None for u in analysis.utterances)


def lay_out(analysis: Analysis) -> Layout:
    """Place every utterance in the drawing."""
    speakers = speakers_of(analysis)
    lanes = {speaker: lane for lane, speaker in enumerate(speakers)}
    timed = is_timed(analysis)
    if timed:
        spans = [(u.start_s or 0.0, u.end_s or 0.0) for u in analysis.utterances]
    else:
        spans = [(float(number), number + 1.0) for number in range(len(analysis.utterances))]
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    scale = TURN_WIDTH
    if timed:
        typical = max(median(end - start for start, end in spans), 0.1)
        scale = max((PANEL_WIDTH - 2 * SIDE) / max(last - first, 1.0), MEDIAN_BLOCK_WIDTH / typical)
    blocks = {}
    for utterance, (start, end) in zip(analysis.utterances, spans, strict=True):
        lane = lanes[speaker_of(utterance)]
        width = max((end - start) * scale - 1.5, MIN_BLOCK_WIDTH) if timed else TURN_BLOCK_WIDTH
        height = MIN_BLOCK_HEIGHT + (MAX_BLOCK_HEIGHT - MIN_BLOCK_HEIGHT) * min(
            max(probability_of(utterance), 0.0), 1.0
        )
        x = SIDE + ((start + end) / 2 - first) * scale
        blocks[utterance.id] = Block(utterance, lane, x, TOP + (lane + 0.5) * LANE_HEIGHT, width, height)
    return Layout(
        speakers,
        blocks,
        2 * SIDE + (last - first) * scale,
        TOP + LANE_HEIGHT * len(speakers) + BOTTOM,
        first,
        scale if timed else None,
    )


def draw(analysis: Analysis, layout: Layout, prefix: str) -> str:
    """The SVG element.

    prefix: of the ids of the transcript's rows, to which the blocks link.
    """
    wide, high = round(layout.width), round(layout.height)
    arrows = [_arrow(index, pair, layout) for index, pair in enumerate(pairs_of(analysis))]
    return (
        f'<svg class="lanes" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" role="group" '
        f'aria-label="Timeline; the transcript says the same in words">'
        f"{_axis(layout)}"
        # Arrows that cross a lane are drawn below its blocks, so that they do not cover faces.
        f'<g class="arrows">{"".join(arrows)}</g><g class="blocks">{"".join(_blocks(layout, prefix))}</g></svg>'
    )


def draw_strip(analysis: Analysis) -> str:
    """The whole conversation as a thin band of colours, for the index and for navigating a long conversation."""
    n_lanes = len(speakers_of(analysis))
    layout = lay_out(analysis)
    marks = [
        f'<rect class="e-{emotion_key(b.utterance.emotion)}" x="{b.x - b.width / 2:.1f}" y="{b.lane * 10 + 1}" '
        f'width="{b.width:.1f}" height="8"/>'
        for b in layout.blocks.values()
        if b.utterance.emotion != EMOTIONS[0]
    ]
    neutral = "".join(
        f"M{b.x - b.width / 2:.1f} {b.lane * 10 + 5}h{b.width:.1f}"
        for b in layout.blocks.values()
        if b.utterance.emotion == EMOTIONS[0]
    )
    return (
        f'<svg class="strip" viewBox="0 0 {round(layout.width)} {n_lanes * 10}" preserveAspectRatio="none" '
        f'height="{min(max(n_lanes * 8, 14), 40)}" aria-hidden="true"><path d="{neutral}"/>{"".join(marks)}</svg>'
    )


def describe(utterance: UtteranceAnalysis) -> str:
    """One line about an utterance for screen readers and tooltips."""
    when = "" if utterance.start_s is None else f", {clock(utterance.start_s)}"
    emotion = f"{utterance.emotion or UNSURE} {percent(probability_of(utterance))}"
    return f"{utterance.id}, {speaker_of(utterance)}{when}, {emotion}: {shorten(words_of(utterance), 80)}"


def describe_pair(pair: Pair, by_id: dict[int, UtteranceAnalysis]) -> str:
    """One line about a pair for screen readers and tooltips."""
    effect = by_id[pair.emotion_utterance]
    who = f"{speaker_of(effect)}’s {pair.emotion} in {effect.id}"
    if pair.cause_utterance == pair.emotion_utterance:
        return f"{who} is caused by these very words ({percent(pair.probability)})"
    cause = by_id[pair.cause_utterance]
    quote = shorten(words_of(cause), 60)
    return f"{who} is caused by {cause.id}, {speaker_of(cause)}: “{quote}” ({percent(pair.probability)})"


def _axis(layout: Layout) -> str:
    bottom = layout.height - BOTTOM
    parts = []
    for lane, speaker in enumerate(layout.speakers):
        y = TOP + (lane + 0.5) * LANE_HEIGHT
        parts.append(f'<path class="lane" d="M0 {y:.1f}H{layout.width:.0f}"/>')
        # For print; on screen the names stay beside the drawing when it scrolls.
        parts.append(f'<text class="lane-name" x="2" y="{y - 26:.1f}">{escape(shorten(speaker, 18))}</text>')
    for x, text in _ticks(layout):
        parts.append(f'<path class="tick" d="M{x:.1f} {TOP - 8}V{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}">{text}</text>')
    return f'<g class="axis" aria-hidden="true">{"".join(parts)}</g>'


def _ticks(layout: Layout) -> list[tuple[float, str]]:
    if layout.pixels_per_s is None:
        return [(block.x, str(block.utterance.id)) for block in layout.blocks.values()]
    scale = layout.pixels_per_s
    step = next((s for s in TICK_STEPS_S if s * scale >= MIN_TICK_DISTANCE), TICK_STEPS_S[-1])
    second = -(-layout.start_s // step) * step
    ticks = []
    while (x := SIDE + (second - layout.start_s) * scale) <= layout.width - SIDE / 2:
        ticks.append((x, clock(second)))
        second += step
    return ticks


def _blocks(layout: Layout, prefix: str) -> list[str]:
    parts = []
    last_face = dict.fromkeys(range(len(layout.speakers)), -1e9)
    for block in layout.blocks.values():
        utterance = block.utterance
        name = emotion_key(utterance.emotion)
        shapes = [
            f'<rect class="hit" x="{block.x - max(block.width, 14) / 2:.1f}" y="{block.top:.1f}" '
            f'width="{max(block.width, 14):.1f}" height="{block.height:.1f}"/>',
            f'<rect class="bar" x="{block.x - block.width / 2:.1f}" y="{block.top:.1f}" '
            f'width="{block.width:.1f}" height="{block.height:.1f}" rx="{min(7.0, block.width / 2):.1f}"/>',
        ]
        if name != EMOTIONS[0]:
            # Faces of short turns would cover each other: the later ones are shown when they are selected.
            crowded = block.x - last_face[block.lane] < FACE_SIZE * 0.8
            if not crowded:
                last_face[block.lane] = block.x
            size = FACE_SIZE
            shapes.append(
                f'<use class="face{" crowded" if crowded else ""}" href="#face-{name}" x="{block.x - size / 2:.1f}" '
                f'y="{block.y - size / 2:.1f}" width="{size}" height="{size}"/>'
            )
        parts.append(
            f'<a class="u e-{name}" href="#{prefix}-u{utterance.id}" data-u="{utterance.id}" '
            f'aria-label="{escape(describe(utterance))}">{"".join(shapes)}</a>'
        )
    return parts


def _arrow(index: int, pair: Pair, layout: Layout) -> str:
    cause, effect = layout.blocks[pair.cause_utterance], layout.blocks[pair.emotion_utterance]
    path = _path(cause, effect)
    by_id = {block.utterance.id: block.utterance for block in (cause, effect)}
    name = emotion_key(pair.emotion)
    weight = 1.2 + 2.2 * min(max(pair.probability, 0.0), 1.0)
    label = escape(describe_pair(pair, by_id))
    return (
        f'<g class="link e-{name}" data-p="{index}" role="img" aria-label="{label}">'
        f'<path class="hit" d="{path}"/>'
        f'<path class="line" d="{path}" stroke-width="{weight:.1f}" marker-end="url(#tip-{name})"/></g>'
    )


def _path(cause: Block, effect: Block) -> str:
    """A curve from cause to effect: a loop over itself, an arc over its lane, or an S between two lanes."""
    if cause is effect:
        x, top = effect.x, effect.top - 2
        return (
            f"M{x - 6:.1f} {top:.1f}C{x - 22:.1f} {top - 26:.1f} {x + 22:.1f} {top - 26:.1f} {x + 6:.1f} {top - 1:.1f}"
        )
    forward = 1.0 if effect.x >= cause.x else -1.0
    x1 = cause.x + forward * min(cause.width / 4, 6.0)
    x2 = effect.x - forward * min(effect.width / 4, 6.0)
    if cause.lane == effect.lane:
        y1, y2 = cause.top - 2, effect.top - 4
        rise = min(y1, y2) - min(14 + 0.1 * abs(x2 - x1), 30.0)
        return (
            f"M{x1:.1f} {y1:.1f}C{x1 + forward * 4:.1f} {rise:.1f} {x2 - forward * 4:.1f} {rise:.1f} {x2:.1f} {y2:.1f}"
        )
    down = effect.lane > cause.lane
    y1 = cause.bottom + 2 if down else cause.top - 2
    y2 = effect.top - 4 if down else effect.bottom + 4
    middle = (y1 + y2) / 2
    # A turn may start where the last one ended: without extra width the S would become a vertical line.
    slack = forward * max(0.0, 14.0 - abs(x2 - x1)) / 2
    return f"M{x1:.1f} {y1:.1f}C{x1 - slack:.1f} {middle:.1f} {x2 + slack:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"
