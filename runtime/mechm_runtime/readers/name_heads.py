"""The part of a line that may name its speaker: `Name: words`, `[Name] words` or `NAME> words`.

One line is looked at here: where a name could end, and how much the words before that place look like a name. Whether
they are one is decided over the whole file by `speaker_names`.

English decides what looks like a sentence ("I told him: never again"); other languages are judged by their punctuation,
their capitals and a few verbs of saying.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from mechm_runtime.readers.name_words import (
    DISCOURSE,
    FUNCTION_WORDS,
    NUMBERED,
    PARTICLES,
    SOUNDS,
    SUBJECTS,
    VERBS,
)
from mechm_runtime.readers.text_file import clean_text

MAX_NAME_CHARACTERS = 60
MAX_NAME_WORDS = 8

_COLONS = ":：﹕︓꞉"
_FORMAT_CHARACTERS = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"
_PAIRS = {
    "[": "]",
    "(": ")",
    "{": "}",
    "<": ">",
    "【": "】",
    "〔": "〕",
    "（": "）",
    "［": "］",
    "《": "》",
    "「": "」",
}
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "'": "'", "‘": "’", "『": "』"}
_EMPHASIS = "*_"
_NEVER_IN_NAMES = re.compile(r"[;!?…。！？；=\\^~{}<>%$€£♪♫]|\.\.|[0-9]:[0-9]")
_UNKNOWN = re.compile(r"[?？]{1,3}")
_WORD = re.compile(r"[^\s,，、/|]+")
_REMARK = re.compile(r"\s*(?:[(\[（【][^()\[\]（）【】]*[)\]）】]|[|–—].*| - .*)$")
_IDENTIFIER = re.compile(r"[\w.+-]*[0-9_@]\S*")
_CASELESS = re.compile(r"[\u0590-\u08ff\u0900-\u0dff\u0e00-\u0eff\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

_CJK_SPEECH = re.compile(
    r"(?:[说說道问問喊叫答讲講]|告诉.{0,3}|告訴.{0,3}|言った|言う|말했다)$|^(?:我|你|您|他|她|它|这|這|那|就|但|所以|因为).{1,}$"
)


class Likeness(IntEnum):
    """How much the words before a colon look like a name.

    SENTENCE: a subject and its verb, never a name by itself. WEAK: words that open remarks ("Note", "Step 2"). NUMBER:
    digits alone, which count things more often than people. PLAIN: several words, not all of them capitalised. STRONG:
    anything else that can be a name.
    """

    SENTENCE = 0
    WEAK = 1
    NUMBER = 2
    PLAIN = 3
    STRONG = 4


@dataclass(frozen=True, slots=True)
class Head:
    """The words of a line that may be its speaker's name.

    name: without brackets, quotes and marks of emphasis. words: the rest of the line. colon: a colon ends the name,
    as opposed to a bracket or `>`. is_lower: the name starts with a small letter.
    """

    name: str
    words: str
    likeness: Likeness
    colon: bool
    is_lower: bool

    @property
    def key(self) -> str:
        """The name without its capitals, by which it is recognised again."""
        return self.name.casefold()


def find_head(line: str) -> Head | None:
    """The words of a line that may be its speaker's name; None where there are none. Takes linear time."""
    line = line.lstrip().lstrip(_FORMAT_CHARACTERS).lstrip()
    at = _colon(line)
    if at is not None:
        return _head(line[:at], line[at + 1 :], colon=True)
    return _bracketed(line) or _prompted(line)


def _colon(line: str) -> int | None:
    """Index of the colon that may end a name; None for the colons of times, addresses and smileys."""
    depth = 0
    for index, character in enumerate(line[: MAX_NAME_CHARACTERS + 8]):
        if character in "([（【［":
            depth += 1
        elif character in ")]）】］":
            depth = max(0, depth - 1)
        elif character in _COLONS and depth == 0:
            before, after = line[index - 1 : index] if index else "", line[index + 1 : index + 2]
            if character == ":" and before.isdigit() and after.isdigit():
                continue  # a time, a score or a ratio
            return index if index and not _is_address_or_smiley(line, index) else None
    return None


def _is_address_or_smiley(line: str, index: int) -> bool:
    before, after, second = line[index - 1], line[index + 1 : index + 2], line[index + 2 : index + 3]
    if line[index] != ":" or not after or after.isspace():
        return False
    if after in "/\\:":
        return True
    ends = not second or not second.isalnum()
    if after in ")(|]}>" and (ends or second in ")("):
        return True
    return before.isspace() and ends and not after.isspace()


def _bracketed(line: str) -> Head | None:
    """`[Name] words` or `(Name) words`; None for a sound such as `[laughter]`."""
    close = _PAIRS.get(line[:1])
    end = line.find(close, 1, MAX_NAME_CHARACTERS + 2) if close else -1
    if end < 0 or line[:1] in "<{":
        return None
    name = line[1:end].strip()
    letters = [word.casefold().strip(".") for word in _WORD.findall(name)]
    if not letters or SOUNDS.intersection(letters) or (letters[-1].endswith("ing") and name[0].islower()):
        return None
    return _head(name, line[end + 1 :], colon=False)


def _prompted(line: str) -> Head | None:
    """`NAME> words`."""
    end = line.find(">", 1, MAX_NAME_CHARACTERS + 1)
    after = line[end:].lstrip(">")
    if end < 0 or line[end - 1] in "-=< " or (after and not after[0].isspace()):
        return None
    return None if line[:end].isdecimal() else _head(line[:end], after, colon=False)


def _head(raw: str, words: str, *, colon: bool) -> Head | None:
    name = clean_text(raw).strip(_FORMAT_CHARACTERS + " ")
    if name[:1] in _EMPHASIS and name[:1]:
        words = words.lstrip(_EMPHASIS) if words[:1] in _EMPHASIS else words
        name = name.strip(_EMPHASIS + " ")
    quoted = len(name) > 2 and _QUOTES.get(name[0]) == name[-1]
    if quoted or (len(name) > 2 and _PAIRS.get(name[0]) == name[-1]):
        name = name[1:-1].strip(_EMPHASIS + " ")
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        return None
    if _UNKNOWN.fullmatch(name):
        return Head(name, words, Likeness.STRONG, colon, is_lower=False)
    core = _REMARK.sub("", name) or name
    tokens = _WORD.findall(core)
    if not tokens or len(tokens) > MAX_NAME_WORDS or _NEVER_IN_NAMES.search(core) or _ends_a_sentence(core, tokens):
        return None
    if not any(character.isalnum() or ord(character) > 0x2000 for character in core):
        return None
    likeness = Likeness.WEAK if quoted else _likeness(core, tokens)
    return Head(name, words, likeness if colon else min(likeness, Likeness.PLAIN), colon, core[0].islower())


def _ends_a_sentence(core: str, tokens: list[str]) -> bool:
    """Whether a full stop or comma inside the words shows that they are no name: "Dr. O'Neil" is one, "Ok. So" not."""
    if core[-1] in ",，、" or core[0] in ",.，、)]":
        return True
    return any(
        token.endswith(".")
        and "." not in token[:-1]  # initials
        and (len(token) > 5 or token[:-1].casefold() in DISCOURSE or token[0].islower())
        for token in tokens[:-1]
    )


def _likeness(core: str, tokens: list[str]) -> Likeness:
    folded = [token.casefold().replace("’", "'").strip(".\"'“”()[]") for token in tokens]
    cased = [token for token in tokens if token[0].isalpha() and not _CASELESS.match(token)]
    shouted = core.isupper()
    titled = not shouted and all(token[0].isupper() for token in cased) and len(cased) > 1
    if _CASELESS.search(core):
        if _CJK_SPEECH.search(core):
            return Likeness.SENTENCE
        return Likeness.STRONG if max(map(len, tokens)) <= 10 or not cased else Likeness.PLAIN
    if len(tokens) == 1:
        if core.isdecimal() and core[0] != "0":
            return Likeness.NUMBER
        return Likeness.WEAK if folded[0] in DISCOURSE or folded[0] in NUMBERED else Likeness.STRONG
    if _is_sentence(tokens, folded, shouted=shouted, titled=titled):
        return Likeness.SENTENCE
    if core.casefold() in DISCOURSE or (folded[0] in NUMBERED and folded[1][:1].isdigit()):
        return Likeness.WEAK
    if folded[0] in FUNCTION_WORDS and not titled and not (shouted and folded[0] in ("the", "a")):
        return Likeness.WEAK
    if "," in core and folded[0] in DISCOURSE | FUNCTION_WORDS:
        return Likeness.SENTENCE
    plain = any(
        token[0].islower() and word not in PARTICLES and not _IDENTIFIER.fullmatch(token)
        for token, word in zip(tokens[1:], folded[1:], strict=True)
    )
    return Likeness.PLAIN if plain else Likeness.STRONG


def _is_sentence(tokens: list[str], folded: list[str], *, shouted: bool, titled: bool) -> bool:
    if folded[0] in SUBJECTS and not titled:
        return True
    return any(
        word in VERBS or word.endswith(("n't", "'re", "'ll", "'ve", "'m"))
        for token, word in zip(tokens[1:], folded[1:], strict=True)
        if shouted or token[0].islower()
    )
