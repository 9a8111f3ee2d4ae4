"""How an emotion looks and reads in the report: a colour, a face, a few words.

The colours were searched for, not chosen by eye: hues near what people expect of each emotion, and among those the set
whose two closest members are farthest apart in OKLab for normal sight and for the three kinds of colour blindness
(Machado et al. 2009, full severity). Distance of the closest two: 0.11, about five times a just noticeable difference.
Faces (`assets/faces.svg`) and words say the same, so that nothing rests on colour alone.
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
"""For sentences: "Ines seems surprised"."""


def kind(emotion: str | None) -> str:
    """The name under which an emotion's colour and face go: its label, or `UNSURE` for an abstention."""
    return emotion if emotion in EMOTIONS else UNSURE


def css_colours() -> str:
    """One class an emotion that sets the custom property the style sheet paints with."""
    rules = [f".e-{emotion}{{--e:{colour}}}" for emotion, colour in COLOURS.items()]
    return "".join(rules) + f".e-{UNSURE}{{--e:var(--card)}}"


def face(emotion: str | None, *, label: str = "") -> str:
    """An inline face; decoration for screen readers unless it is given a label."""
    name = kind(emotion)
    about = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="face e-{name}" viewBox="0 0 24 24" {about}><use href="#face-{name}"/></svg>'
