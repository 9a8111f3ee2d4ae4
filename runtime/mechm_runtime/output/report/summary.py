"""Summarises a conversation: speakers, their emotions, and the strongest causes.

All numbers are counted from the analysis. The results are HTML fragments with escaped text.
"""

from __future__ import annotations

from collections import Counter
from html import escape

from mechm_runtime.output.formatting import UNSURE, count, duration, percent, shorten, speaker_of, words_of
from mechm_runtime.output.report.palette import ADJECTIVES, emotion_key, face_icon
from mechm_runtime.output.report.timeline import is_timed, pairs_of, speakers_of
from mechm_runtime.types import EMOTIONS, Analysis, Pair

MAX_CAUSES = 3
MAX_SPEAKERS = 8
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")


def introduction(analysis: Analysis) -> str:
    """Two or three sentences about the whole conversation."""
    n_people, n = len(speakers_of(analysis)), len(analysis.utterances)
    people = NUMBERS[n_people] if n_people < len(NUMBERS) else str(n_people)
    verb = "speaks" if n_people == 1 else "talk"
    about = f"{people} {'person' if n_people == 1 else 'people'} {verb}"
    if is_timed(analysis):
        about += f" for {duration(duration_s(analysis))}"
    about += f" in {count(n, 'turn')}."
    emotions = Counter(u.emotion for u in analysis.utterances if emotion_key(u.emotion) not in (EMOTIONS[0], UNSURE))
    emotional = emotions.total()
    if not emotional:
        return f"{about} No turn carries a clear emotion."
    top, top_count = max(emotions.items(), key=lambda item: (item[1], -EMOTIONS.index(item[0] or "")))
    if emotional == 1:
        found = f"One turn carries an emotion: {top}."
    else:
        found = f"{emotional} of them carry an emotion" if emotional < n else "Every one carries an emotion"
        found += f", most often {top}." if top_count > 1 else "."
    n_pairs = len(pairs_of(analysis))
    causes = (
        f"{count(n_pairs, 'cause')} {'was' if n_pairs == 1 else 'were'} found." if n_pairs else "No cause was found."
    )
    return f"{about} {found} {causes}"


def duration_s(analysis: Analysis) -> float:
    """Seconds from the first start to the last end; 0 where times are unknown."""
    starts = [u.start_s for u in analysis.utterances if u.start_s is not None]
    ends = [u.end_s for u in analysis.utterances if u.end_s is not None]
    return max(ends) - min(starts) if starts and ends else 0.0


def emotion_counts(analysis: Analysis, speaker: str) -> list[tuple[str, int]]:
    """A speaker's (label or `UNSURE`, number of utterances), the most frequent first, neutral and unsure last."""
    counts = Counter(emotion_key(u.emotion) for u in analysis.utterances if speaker_of(u) == speaker)
    order = [*EMOTIONS[1:], EMOTIONS[0], UNSURE]
    unemotional = (EMOTIONS[0], UNSURE)
    return sorted(counts.items(), key=lambda item: (item[0] in unemotional, -item[1], order.index(item[0])))


def dominant_emotion(analysis: Analysis, speaker: str) -> str:
    """A speaker's most frequent emotion; neutral only where there is no other."""
    return emotion_counts(analysis, speaker)[0][0]


def speaker_cards(analysis: Analysis) -> str:
    """One card per speaker: face icon, name, most frequent emotion, and a bar with the emotions of all turns."""
    speakers = speakers_of(analysis)
    cards = []
    for speaker in speakers[:MAX_SPEAKERS]:
        counts = emotion_counts(analysis, speaker)
        total = sum(number for _, number in counts)
        name = counts[0][0]
        label_counts = ", ".join(f"{label} {n}" for label, n in counts)
        x, bars = 0.0, []
        for label, n in counts:
            width = 100.0 * n / total
            bars.append(f'<rect class="e-{label}" x="{x:.2f}" width="{max(width - 0.8, 0.4):.2f}" height="8"/>')
            x += width
        cards.append(
            f'<li class="person">{face_icon(name)}<div><p><b dir="auto">{escape(speaker)}</b> '
            f'<span class="soft">{count(total, "turn")}, {_main_emotion(counts)}</span></p>'
            f'<svg class="shares" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(label_counts)}"><title>{escape(label_counts)}</title>{"".join(bars)}</svg></div></li>'
        )
    if len(speakers) > MAX_SPEAKERS:
        cards.append(f'<li class="person soft">and {len(speakers) - MAX_SPEAKERS} more</li>')
    return f'<ul class="people" aria-label="People">{"".join(cards)}</ul>'


def _main_emotion(counts: list[tuple[str, int]]) -> str:
    """The result of `emotion_counts` as a phrase."""
    total = sum(number for _, number in counts)
    name, number = counts[0]
    n_neutral = dict(counts).get(EMOTIONS[0], 0)
    if name == EMOTIONS[0]:
        return "neutral throughout" if number == total else "mostly neutral"
    if name == UNSURE:
        return "no clear emotion"
    if 2 * number > total:
        return f"mostly {name}"
    return f"mostly neutral, some {name}" if 2 * n_neutral > total else f"most often {name}"


def strongest_pairs(analysis: Analysis) -> list[Pair]:
    """The `MAX_CAUSES` most probable pairs, at most one per emotion utterance, in the order of the conversation."""
    best: dict[int, Pair] = {}
    for pair in pairs_of(analysis):
        if pair.emotion_utterance not in best or pair.probability > best[pair.emotion_utterance].probability:
            best[pair.emotion_utterance] = pair
    # A cause in another utterance is more informative than the utterance itself, so such pairs are preferred.
    ranked = sorted(best.values(), key=lambda p: (p.cause_utterance == p.emotion_utterance, -p.probability))
    return sorted(ranked[:MAX_CAUSES], key=lambda pair: pair.emotion_utterance)


def strongest_causes(analysis: Analysis, prefix: str) -> str:
    """The strongest pairs as sentences with quotes; empty where no pair was found."""
    by_id = {utterance.id: utterance for utterance in analysis.utterances}
    items = []
    for pair in strongest_pairs(analysis):
        effect, cause = by_id[pair.emotion_utterance], by_id[pair.cause_utterance]
        who = f'<b dir="auto">{escape(speaker_of(effect))}</b> seems {ADJECTIVES.get(pair.emotion, pair.emotion)}'
        quote = f'<q dir="auto">{escape(shorten(words_of(effect), 90))}</q>'
        if cause.id == effect.id:
            because = "because of what these words say"
        else:
            because = (
                f'because <b dir="auto">{escape(speaker_of(cause))}</b> '
                f"{'said' if cause.id < effect.id else 'then said'} "
                f'<q dir="auto">{escape(shorten(words_of(cause), 90))}</q>'
            )
        items.append(
            f'<li><a class="moment e-{emotion_key(pair.emotion)}" href="#{prefix}-u{effect.id}" data-u="{effect.id}">'
            f'{face_icon(pair.emotion)}<span>{who}: {quote} <span class="because">{because}</span> '
            f'<span class="soft">{percent(pair.probability)}</span></span></a></li>'
        )
    return f'<ol class="moments" aria-label="Strongest causes">{"".join(items)}</ol>' if items else ""
