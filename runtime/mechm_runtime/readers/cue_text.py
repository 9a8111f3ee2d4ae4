"""The text of a cue without its mark-up: spoken lines, each with the name that `<v Name>` gives it.

Tags, positions (`{\\an8}`) and the times of single words are removed and entities decoded. WebVTT escapes "<" in text,
so that everything in angle brackets is a tag there; in SRT only known tags are.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from mechm_runtime.readers.cues import Cue
from mechm_runtime.readers.text_file import clean_text

_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?[ \t\n]([^<>]*)>")
_ANY_TAG = re.compile(r"</?[A-Za-z0-9][^<>]*>|</>")
_KNOWN_TAG = re.compile(
    r"</?(?:i|b|u|s|em|strong|font|span|c|v|lang|ruby|rt)(?:[\s.][^<>]*)?/?>|<[0-9]{1,4}(?:[:.,][0-9]{1,3}){1,3}>",
    re.IGNORECASE,
)
_WORD_TIME = re.compile(r"<[0-9]{1,4}(?::[0-9]{1,2}){1,2}[.,][0-9]{1,3}>")
_POSITION = re.compile(r"\{\\[^{}]*\}")


@dataclass(frozen=True, slots=True)
class SpokenLine:
    """A line of a cue as it is spoken.

    voice: the name of its `<v Name>`, or "". span: index of its voice span in the cue, whose lines belong together.
    """

    text: str
    voice: str = ""
    span: int = 0


@dataclass(frozen=True, slots=True)
class SpokenCue:
    """A cue without mark-up.

    line: of its times in the file, from 1. start_s, end_s: seconds. label: its identifier, "" for a number or none.
    lines: those with text. word_times: words carry times of their own, as in automatic captions.
    """

    line: int
    start_s: float
    end_s: float
    label: str
    lines: tuple[SpokenLine, ...]
    word_times: bool = False


def spoken_cue(cue: Cue, *, webvtt: bool) -> SpokenCue:
    """Remove the mark-up of a cue."""
    payload = "\n".join(cue.lines)
    tag = _ANY_TAG if webvtt else _KNOWN_TAG
    pieces = _VOICE.split(_POSITION.sub("", payload))  # text, name, text, name, text, …
    spans = [("", pieces[0]), *zip(pieces[1::2], pieces[2::2], strict=True)]
    lines = tuple(
        SpokenLine(text, clean_text(html.unescape(voice)), span)
        for span, (voice, words) in enumerate(spans)
        for line in html.unescape(tag.sub("", words)).split("\n")
        if (text := clean_text(line))
    )
    return SpokenCue(
        cue.line, cue.start_s, cue.end_s, clean_text(cue.label), lines, _WORD_TIME.search(payload) is not None
    )
