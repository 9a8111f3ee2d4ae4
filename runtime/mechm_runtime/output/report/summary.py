"""A conversation in a few words: who spoke, how it felt, and its strongest causes.

Everything is counted from the analysis; nothing is added to it. The results are HTML fragments with their text escaped.
"""

from __future__ import annotations

from collections import Counter
from html import escape

from mechm_runtime.output.formatting import UNSURE, count, percent, shorten, span, speaker_of, words_of
from mechm_runtime.output.report.palette import ADJECTIVES, face, kind
from mechm_runtime.output.report.timeline import is_timed, pairs_of, speakers_of
from mechm_runtime.types import EMOTIONS, Analysis, Pair

MAX_MOMENTS = 3
MAX_PEOPLE = 8
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def lede(analysis: Analysis) -> str:
    """Two or three sentences about the whole conversation."""
    n_people, n = len(speakers_of(analysis)), len(analysis.utterances)
    people = NUMBERS[n_people] if n_people < len(NUMBERS) else str(n_people)
    verb = "speaks" if n_people == 1 else "talk"
    about = f"{people} {'person' if n_people == 1 else 'people'} {verb}"
    if is_timed(analysis):
        about += f" for {span(duration_s(analysis))}"
    about += f" in {count(n, 'turn')}."
    feelings = Counter(u.emotion for u in analysis.utterances if kind(u.emotion) not in (EMOTIONS[0], UNSURE))
    emotional = feelings.total()
    if not emotional:
        return f"{about} No turn carries a clear emotion."
    top, top_count = max(feelings.items(), key=lambda item: (item[1], -EMOTIONS.index(item[0] or "")))
    if emotional == 1:
        felt = f"One turn carries an emotion: {top}."
    else:
        felt = f"{emotional} of them carry an emotion" if emotional < n else "Every one carries an emotion"
        felt += f", most often {top}." if top_count > 1 else "."
    n_pairs = len(pairs_of(analysis))
    causes = (
        f"{count(n_pairs, 'cause')} {'was' if n_pairs == 1 else 'were'} found." if n_pairs else "No cause was found."
    )
    return f"{about} {felt} {causes}"


def duration_s(analysis: Analysis) -> float:
    """From the first start to the last end, 0 where times are unknown."""
    starts = [u.start_s for u in analysis.utterances if u.start_s is not None]
    ends = [u.end_s for u in analysis.utterances if u.end_s is not None]
    return max(ends) - min(starts) if starts and ends else 0.0


def shares(analysis: Analysis, speaker: str) -> list[tuple[str, int]]:
    """How often a speaker showed what: (label or `UNSURE`, number of utterances), neutral and unsure last."""
    counts = Counter(kind(u.emotion) for u in analysis.utterances if speaker_of(u) == speaker)
    order = [*EMOTIONS[1:], EMOTIONS[0], UNSURE]
    quiet = (EMOTIONS[0], UNSURE)
    return sorted(counts.items(), key=lambda item: (item[0] in quiet, -item[1], order.index(item[0])))


def dominant(analysis: Analysis, speaker: str) -> str:
    """The emotion a speaker showed most often; neutral only where there is no other."""
    return shares(analysis, speaker)[0][0]


def people(analysis: Analysis) -> str:
    """A card a speaker: face and name, what they mostly showed, and a bar of all their turns."""
    speakers = speakers_of(analysis)
    cards = []
    for speaker in speakers[:MAX_PEOPLE]:
        counted = shares(analysis, speaker)
        total = sum(number for _, number in counted)
        name = counted[0][0]
        told = ", ".join(f"{label} {n}" for label, n in counted)
        x, bars = 0.0, []
        for label, n in counted:
            width = 100.0 * n / total
            bars.append(f'<rect class="e-{label}" x="{x:.2f}" width="{max(width - 0.8, 0.4):.2f}" height="8"/>')
            x += width
        cards.append(
            f'<li class="person">{face(name)}<div><p><b dir="auto">{escape(speaker)}</b> '
            f'<span class="soft">{count(total, "turn")}, {_mostly(counted)}</span></p>'
            f'<svg class="shares" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(told)}"><title>{escape(told)}</title>{"".join(bars)}</svg></div></li>'
        )
    if len(speakers) > MAX_PEOPLE:
        cards.append(f'<li class="person soft">and {len(speakers) - MAX_PEOPLE} more</li>')
    return f'<ul class="people" aria-label="People">{"".join(cards)}</ul>'


def _mostly(counted: list[tuple[str, int]]) -> str:
    """The result of `shares` in words."""
    total = sum(number for _, number in counted)
    name, number = counted[0]
    quiet = dict(counted).get(EMOTIONS[0], 0)
    if name == EMOTIONS[0]:
        return "neutral throughout" if number == total else "mostly neutral"
    if name == UNSURE:
        return "no clear emotion"
    if 2 * number > total:
        return f"mostly {name}"
    return f"mostly neutral, some {name}" if 2 * quiet > total else f"most often {name}"


def strongest_pairs(analysis: Analysis) -> list[Pair]:
    """The most probable pairs, at most one an effect, in the order of the conversation."""
    best: dict[int, Pair] = {}
    for pair in pairs_of(analysis):
        if pair.emotion_utterance not in best or pair.probability > best[pair.emotion_utterance].probability:
            best[pair.emotion_utterance] = pair
    # A cause in other words tells more than "these very words": among the strong ones such pairs go first.
    ranked = sorted(best.values(), key=lambda p: (p.cause_utterance == p.emotion_utterance, -p.probability))
    return sorted(ranked[:MAX_MOMENTS], key=lambda pair: pair.emotion_utterance)


def moments(analysis: Analysis, prefix: str) -> str:
    """The strongest pairs as sentences with quotes; empty where no pair was found."""
    by_id = {utterance.id: utterance for utterance in analysis.utterances}
    items = []
    for pair in strongest_pairs(analysis):
        effect, cause = by_id[pair.emotion_utterance], by_id[pair.cause_utterance]
        who = f'<b dir="auto">{escape(speaker_of(effect))}</b> seems {ADJECTIVES.get(pair.emotion, pair.emotion)}'
        quote = f'<q dir="auto">{escape(shorten(words_of(effect), 90))}</q>'
        if cause.id == effect.id:
            because = "because of what these words tell"
        else:
            because = (
                f'because <b dir="auto">{escape(speaker_of(cause))}</b> '
                f"{'said' if cause.id < effect.id else 'then said'} "
                f'<q dir="auto">{escape(shorten(words_of(cause), 90))}</q>'
            )
        items.append(
            f'<li><a class="moment e-{kind(pair.emotion)}" href="#{prefix}-u{effect.id}" data-u="{effect.id}">'
            f'{face(pair.emotion)}<span>{who}: {quote} <span class="because">{because}</span> '
            f'<span class="soft">{percent(pair.probability)}</span></span></a></li>'
        )
    return f'<ol class="moments" aria-label="Strongest causes">{"".join(items)}</ol>' if items else ""
