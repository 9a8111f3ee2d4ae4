"""Renders the page of the report: one self-contained HTML file that uses no network.

Style and script are inlined, and the content security policy allows only them by their hashes, so that no text of a
transcript can run or load anything. All text is escaped; the script's data is embedded as JSON in which no character
can end the element. Files are written by `report` and `writers`.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib import resources

from mechm_runtime.output.formatting import (
    NO_WORDS,
    UNSURE,
    clock,
    count,
    percent,
    printable,
    probability_of,
    ranges,
    shorten,
    shorten_names,
    speaker_of,
    stages_text,
    total_ms,
    words_of,
)
from mechm_runtime.output.report import summary, timeline
from mechm_runtime.output.report.palette import css_colours, emotion_key, face_icon
from mechm_runtime.types import EMOTIONS, MODALITIES, Analysis, UtteranceAnalysis

NOTE = (
    "Emotions, causes and probabilities are a model’s estimate from what was said and shown. They can be wrong, they "
    "do not tell what somebody really felt, and they are not a diagnosis."
)


def render(analyses: Sequence[Analysis], title: str, terms: str) -> str:
    """The whole page as HTML text."""
    style = css_colours() + _asset("report.css")
    script = _asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    arrow_tips = "".join(
        f'<marker id="tip-{name}" class="e-{name}" viewBox="0 0 10 10" refX="7" refY="5" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.5 9.5 5 0 9.5 2.2 5z"/></marker>'
        for name in (*EMOTIONS, UNSURE)
    )
    many = len(analyses) > 1
    # The title names a single conversation: its id is then shown only where it differs.
    named = many or printable(title).casefold() != printable(analyses[0].conversation_id).casefold()
    sections = "".join(_conversation(analysis, f"c{n}", named=named) for n, analysis in enumerate(analyses, start=1))
    data = {
        "emotions": list(EMOTIONS),
        "modalities": list(MODALITIES),
        "conversations": [_script_data(a) for a in analyses],
    }
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f'<title>{escape(printable(title))}</title><link rel="icon" href="data:,"><style>{style}</style></head>'
        f'<body><a class="skip" href="#main">Skip to the conversation{"s" if many else ""}</a>'
        f"{_asset('faces.svg')}"
        f'<svg class="defs" aria-hidden="true" width="0" height="0"><defs>{arrow_tips}</defs></svg>'
        f'<header class="page"><h1 dir="auto">{escape(printable(title))}</h1>'
        f"{_index(analyses) if many else ''}</header>"
        f'<main id="main">{sections}</main>{_footer(analyses, terms)}'
        '<div class="tip" aria-hidden="true" hidden></div>'
        f'<script type="application/json" id="data">{_embedded(data)}</script><script>{script}</script></body></html>\n'
    )


def _asset(name: str) -> str:
    return resources.files("mechm_runtime.output.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _embedded(data: object) -> str:
    """JSON in which no `<`, `>` or `&` appears, so that no text can close the element or open a comment in it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _script_data(analysis: Analysis) -> dict[str, object]:
    """Values that the script shows on selection; it takes words and names from the page."""
    return {
        "utterances": [
            {
                "id": u.id,
                "emotion": emotion_key(u.emotion),
                "probabilities": [round(u.probabilities.get(emotion, 0.0), 4) for emotion in EMOTIONS],
                "modalities": list(u.modalities),
                "missing": {printable(modality): printable(reason) for modality, reason in u.missing.items()},
            }
            for u in analysis.utterances
        ],
        "pairs": [
            {
                "effect": pair.emotion_utterance,
                "emotion": emotion_key(pair.emotion),
                "cause": pair.cause_utterance,
                "probability": round(pair.probability, 4),
            }
            for pair in timeline.pairs_of(analysis)
        ],
    }


def _index(analyses: Sequence[Analysis]) -> str:
    items = []
    for number, analysis in enumerate(analyses, start=1):
        items.append(
            f'<li><a href="#c{number}"><b dir="auto">{escape(printable(analysis.conversation_id))}</b>'
            f"{timeline.draw_strip(analysis)}"
            f'<span class="soft">{count(len(analysis.utterances), "turn")}, '
            f"{count(len(analysis.pairs), 'cause')}</span></a></li>"
        )
    return f'<nav aria-label="Conversations"><ol class="index">{"".join(items)}</ol></nav>'


def _conversation(analysis: Analysis, prefix: str, *, named: bool) -> str:
    layout = timeline.lay_out(analysis)
    shown = "" if named else ' class="sr"'
    shown_names = shorten_names(layout.speakers, 18)
    names = "".join(
        f"<li>{face_icon(summary.dominant_emotion(analysis, speaker))}"
        f'<span dir="auto">{escape(shown_names[speaker])}</span></li>'
        for speaker in layout.speakers
    )
    long = layout.width > 1.25 * timeline.PANEL_WIDTH
    overview = f'<div class="overview">{timeline.draw_strip(analysis)}<div class="window"></div></div>' if long else ""
    across = "time" if layout.pixels_per_s is not None else "turns, one after the other (their times are unknown)"
    return (
        f'<section class="conversation" id="{prefix}" aria-labelledby="{prefix}-title"><header>'
        f'<h2 id="{prefix}-title" dir="auto"{shown}>{escape(printable(analysis.conversation_id))}</h2>'
        f'<p class="lede">{summary.introduction(analysis)}</p>{summary.speaker_cards(analysis)}</header>'
        f'<div class="columns"><div class="look"><figure class="timeline">{_legend(analysis)}{overview}'
        f'<div class="chart"><ul class="names" aria-hidden="true">{names}</ul>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Timeline, scrolls sideways">'
        f"{timeline.draw(analysis, layout, prefix)}</div></div>"
        f"<figcaption>Left to right: {across}. The taller a block, the more probable its emotion. "
        f"An arrow points from a cause to the emotion that it caused.</figcaption></figure>"
        f'<div class="detail" aria-live="polite"></div>{summary.strongest_causes(analysis, prefix)}</div>'
        f'<ol class="transcript" aria-label="Transcript">{"".join(_rows(analysis, prefix))}</ol></div>'
        f"{_missing(analysis)}</section>"
    )


def _legend(analysis: Analysis) -> str:
    counts = Counter(emotion_key(utterance.emotion) for utterance in analysis.utterances)
    items = [
        f'<li><button type="button" class="e-{name}" data-only="{name}" aria-pressed="false">{face_icon(name)}{name} '
        f'<span class="soft">{counts[name]}</span></button></li>'
        for name in (*EMOTIONS[1:], EMOTIONS[0], UNSURE)
        if counts[name]
    ]
    return f'<ul class="legend" aria-label="Emotions; press one to see only its turns">{"".join(items)}</ul>'


def _rows(analysis: Analysis, prefix: str) -> list[str]:
    by_id = {utterance.id: utterance for utterance in analysis.utterances}
    # Modalities that every turn lacks, such as the faces of a telephone call, are named once below, not in every row.
    everywhere = {m for m in analysis.utterances[0].missing if all(m in u.missing for u in analysis.utterances)}
    return [_row(analysis, utterance, by_id, prefix, everywhere) for utterance in analysis.utterances]


def _row(
    analysis: Analysis,
    utterance: UtteranceAnalysis,
    by_id: dict[int, UtteranceAnalysis],
    prefix: str,
    missing_everywhere: set[str],
) -> str:
    name = emotion_key(utterance.emotion)
    when = f'<span class="time">{clock(utterance.start_s)}</span>' if utterance.start_s is not None else ""
    words = words_of(utterance)
    unknown = ' class="soft"' if words == NO_WORDS else ""
    chips = []
    for pair in analysis.causes_of(utterance.id):
        cause = by_id.get(pair.cause_utterance)
        if cause is None:
            continue
        about = "these words" if cause.id == utterance.id else f"{cause.id} {speaker_of(cause)}"
        mark = "↺" if cause.id == utterance.id else "↖" if cause.id < utterance.id else "↙"
        chips.append(
            f'<a class="chip e-{emotion_key(pair.emotion)}" href="#{prefix}-u{cause.id}" data-u="{cause.id}" '
            f'title="{escape(timeline.describe_pair(pair, by_id))}"><span aria-hidden="true">{mark}</span> '
            f'<span class="sr">because of </span>{escape(about)} '
            f'<span class="soft">{percent(pair.probability)}</span></a>'
        )
    missing_tag = ""
    if missing := {m: reason for m, reason in utterance.missing.items() if m not in missing_everywhere}:
        reasons = "; ".join(f"{printable(modality)}: {printable(reason)}" for modality, reason in missing.items())
        names = ", ".join(map(printable, missing))
        missing_tag = f'<span class="gone" title="{escape(reasons)}">without {escape(names)}</span>'
    because = f'<p class="chips">{"".join(chips)}</p>' if chips else ""
    return (
        f'<li class="row e-{name}{" quiet" if name == EMOTIONS[0] else ""}" id="{prefix}-u{utterance.id}" '
        f'data-u="{utterance.id}"><button type="button" class="node" aria-expanded="false" '
        f'aria-label="{escape(timeline.describe(utterance))}">{face_icon(name)}</button><div class="said">'
        f'<p class="who"><span class="id">{utterance.id}</span> <b dir="auto">{escape(speaker_of(utterance))}</b> '
        f"{when}"
        f'<span class="tag">{name} <span class="soft">{percent(probability_of(utterance))}</span></span>'
        f"{missing_tag}</p>"
        f'<p dir="auto"{unknown}><span class="text">{escape(words)}</span></p>{because}</div></li>'
    )


def _missing(analysis: Analysis) -> str:
    """The modalities used in the conversation, the missing ones with the reasons, repairs of the input, and timings."""
    used = Counter(modality for u in analysis.utterances for modality in u.modalities)
    n = len(analysis.utterances)
    modalities = [m if used[m] == n else f"{m} ({used[m]} of {n} turns)" for m in MODALITIES if used[m]]
    reasons: dict[tuple[str, str], list[int]] = {}
    for utterance in analysis.utterances:
        for modality, reason in utterance.missing.items():
            reasons.setdefault((printable(modality), printable(reason)), []).append(utterance.id)
    lines = []
    for (modality, reason), ids in reasons.items():
        where = "every turn" if len(ids) == n else f"{'turn' if len(ids) == 1 else 'turns'} {shorten(ranges(ids), 60)}"
        lines.append(f"<li>{escape(modality)} is missing in {where}: {escape(reason)}</li>")
    lines += [f"<li>Repaired in the input: {escape(printable(note))}</li>" for note in analysis.notes]
    stages = escape(stages_text(analysis.timings_ms, " ms"))
    took = f"Analysed in {total_ms(analysis.timings_ms):,.0f} ms" + (f" ({stages})" if stages else "") + "."
    used_names = ", ".join(modalities) or "none"
    return (
        f'<div class="facts"><p>Modalities used: {used_names}. {took if analysis.timings_ms else ""}</p>'
        + (f"<ul>{''.join(lines)}</ul>" if lines else "")
        + "</div>"
    )


def _footer(analyses: Sequence[Analysis], terms: str) -> str:
    bundles = ", ".join(f"<code>{escape(printable(b))}</code>" for b in dict.fromkeys(a.bundle_id for a in analyses))
    return (
        f'<footer class="page"><p>{NOTE}</p>'
        + (f"<p>{escape(printable(terms))}</p>" if terms else "")
        + "<p>Made by MECHM"
        + (f" with the bundle {bundles}" if bundles else "")
        + ". This page is complete and loads nothing from the network.</p></footer>"
    )
