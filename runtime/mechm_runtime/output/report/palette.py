"""Colours, face icons and adjectives of the emotions in the report.

The colours were found by a search: among hues near those that people expect of each emotion, the set whose two closest
members are farthest apart in OKLab, for normal sight and for the three kinds of colour blindness (Machado et al. 2009,
full severity). The distance of the closest two is 0.11, about five times a just noticeable difference. Face icons
(`assets/faces.svg`) and words repeat the colours, so that nothing is shown by colour alone.
"""

from __future__ import annotations

from html import escape

from mechm_runtime.output.formatting import UNSURE
from mechm_runtime.types import EMOTIONS

COLOURS: dict[str, str] = {
    "neutral": "#c1c4cc",
    "anger": "#ee4a0d",
    "disgust": "#1a9866",
    "fear": "#a35bd1",
    "joy": "#ebb815",
    "sadness": "#5daaf6",
    "surprise": "#dd77b0",
}

ADJECTIVES: dict[str, str] = {
    "neutral": "neutral",
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "afraid",
    "joy": "glad",
    "sadness": "sad",
    "surprise": "surprised",
}
"""Emotion -> adjective for sentences such as "Ines seems surprised"."""


def emotion_key(emotion: str | None) -> str:
    """Key of an emotion's colour and face icon: its label, or `UNSURE` for an abstention."""
    return emotion if emotion in EMOTIONS else UNSURE


def css_colours() -> str:
    """CSS rules: one class per emotion that sets the custom property with its colour."""
    rules = [f".e-{emotion}{{--e:{colour}}}" for emotion, colour in COLOURS.items()]
    return "".join(rules) + f".e-{UNSURE}{{--e:var(--card)}}"


def face_icon(emotion: str | None, *, label: str = "") -> str:
    """An inline SVG of a face; hidden from screen readers unless it has a label."""
    name = emotion_key(emotion)
    about = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="face e-{name}" viewBox="0 0 24 24" {about}><use href="#face-{name}"/></svg>'
