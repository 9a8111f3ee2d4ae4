"""How much bytes look like ordinary writing when they are read in an encoding of before Unicode.

Nearly every file can be read in nearly every single-byte encoding, so validity says little: read in the wrong one,
small letters are followed by capitals, words mix alphabets, and symbols stand inside of words. East Asian encodings are
judged by the share of their common characters, which each standard has put into a range of lead bytes of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_PUNCTUATION = frozenset("’‘“”„‚–—…«»¡¿°€£§·•№™©®\u00a0¼½¾²³♪")
_WESTERN = frozenset("àáâãäåæçèéêëìíîïñòóôõöøùúûüÿœßÀÁÂÃÄÅÆÇÈÉÊËÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ")
_CENTRAL = frozenset("ąćęłńóśźżáčďéěíňřšťúůýžőűöüäßâăîşţđëçôĄĆĘŁŃÓŚŹŻÁČĎÉĚÍŇŘŠŤÚŮÝŽŐŰÖÜÄÂĂÎŞŢĐ")
_SPACE_BETWEEN = re.compile(r"(?<=[^\x00-\x7f])[,.!?]? (?=[^\x00-\x7f])")
_LONGEST_RUN = 3
"""Letters with marks that stand side by side in languages of the Latin alphabet; a run of more is another alphabet."""

_CONTRACTION = re.compile(rb"[A-Za-z]\x92(?:s|t|m|d|re|ve|ll)\b")

MIN_FREQUENT = 0.45
"""Least share of an alphabet's ten most frequent letters."""

MIN_LIKENESS = 0.9
LEVEL = 0.03
"""Least share of characters that fit, and how far below the best candidate another one still rivals it."""


def likely_encodings(sample: bytes) -> list[str]:
    """Encodings in which bytes read as ordinary writing, the most likely ones; several where they are level."""
    scores = {name: score for name, judge in _JUDGES.items() if (score := judge(name, sample)) >= MIN_LIKENESS}
    if _CONTRACTION.search(sample):
        scores.pop("mac_roman", None)  # don’t in Windows-1252 is donít there
    best = max(scores.values(), default=0.0)
    return [name for name, score in scores.items() if score >= best - LEVEL]


def _latin(letters: frozenset[str]) -> Callable[[str, bytes], float]:
    return lambda name, sample: _single_byte(name, sample, letters.__contains__, latin=True)


def _script(pattern: str, common: str) -> Callable[[str, bytes], float]:
    """Judge letters of an alphabet. common: its ten most frequent letters, which are over half of a text."""
    matches = re.compile(pattern).fullmatch

    def judge(name: str, sample: bytes) -> float:
        score = _single_byte(name, sample, lambda letter: matches(letter) is not None, latin=False)
        letters = [letter for letter in sample.decode(name, errors="ignore").lower() if matches(letter)]
        frequent = sum(letter in common for letter in letters)
        return score if frequent >= MIN_FREQUENT * len(letters) else 0.0

    return judge


def _single_byte(name: str, sample: bytes, fits: Callable[[str], bool], *, latin: bool) -> float:
    try:
        text = sample.decode(name)
    except UnicodeDecodeError:
        return 0.0
    good = total = run = 0
    padded = f" {text} "
    for before, character, after in zip(padded, padded[1:], padded[2:], strict=False):
        if character.isascii():
            run = 0
            continue
        total += 1
        if character.isalpha():
            run += 1
            mixed = not latin and any(near.isascii() and near.isalpha() for near in (before, after))
            shuffled = character.isupper() and (before.islower() or (before.isalpha() and after.islower()))
            good += fits(character) and not mixed and not shuffled and not (latin and run > _LONGEST_RUN)
        else:
            run = 0
            inside = before.isalpha() and after.isalpha() and character not in "’–—…·"
            good += character in _PUNCTUATION and not inside
    return good / total if total else 0.0


def _double_byte(
    lead: tuple[int, int], marks: tuple[int, int], *, kana: bool = False, spaces: bool = False
) -> Callable[[str, bytes], float]:
    """Judge by the lead bytes: of common characters, and of punctuation and kana (`marks`).

    kana: of Japanese. spaces: words are separated, as in Korean, whose bytes are also common Chinese characters.
    """

    def judge(name: str, sample: bytes) -> float:
        try:
            text = sample.decode(name)
        except UnicodeDecodeError:
            return 0.0
        good = total = n_kana = 0
        n_spaces = len(_SPACE_BETWEEN.findall(text))
        for character in text:
            if character.isascii():
                continue
            total += 1
            encoded = character.encode(name)
            is_kana = "\u3041" <= character <= "\u30ff"
            n_kana += is_kana
            common = len(encoded) == 2 and (lead[0] <= encoded[0] <= lead[1] or marks[0] <= encoded[0] <= marks[1])
            good += common and (kana or not is_kana)
        # Japanese has more kana than characters of Chinese.
        fits = (n_kana * 4 >= total or not kana) and spaces == (n_spaces * 12 >= total)
        return good / total if total and fits else 0.0

    return judge


_JUDGES: dict[str, Callable[[str, bytes], float]] = {
    "cp1252": _latin(_WESTERN),
    "mac_roman": _latin(_WESTERN),
    "cp1250": _latin(_CENTRAL),
    "cp1251": _script(r"[А-Яа-яЁёІіЇїЄєҐґ]", "оеаинтсрвлі"),
    "koi8_r": _script(r"[А-Яа-яЁё]", "оеаинтсрвл"),
    "cp866": _script(r"[А-Яа-яЁё]", "оеаинтсрвл"),
    "mac_cyrillic": _script(r"[А-Яа-яЁёІіЇїЄєҐґ]", "оеаинтсрвлі"),
    "cp1253": _script(r"[Α-Ωα-ωΆΈΉΊΌΎΏάέήίόύώϊϋΐΰς]", "αοιετσνηυρ"),
    "cp1255": _script(r"[א-ת]", "יוהלאתמרבש"),
    "cp1256": _script(r"[ء-يپچژگ]", "اليمونترهبك"),
    "gb18030": _double_byte((0xB0, 0xD7), (0xA1, 0xA3)),
    "big5": _double_byte((0xA4, 0xC6), (0xA1, 0xA3)),
    "cp932": _double_byte((0x88, 0x97), (0x81, 0x83), kana=True),
    "euc_jp": _double_byte((0xB0, 0xCF), (0xA1, 0xA5), kana=True),
    "cp949": _double_byte((0xB0, 0xC8), (0xA1, 0xA3), spaces=True),
}
