"""The MECPE text format, in which ECF 1.0 is published (NUSTM/MECPE).

A conversation is a line `id n_utterances`, a line of (emotion utterance, cause utterance) pairs, which is empty where
there are none, and one line per utterance: `n | speaker | emotion | text | source`. The source is the episode and its
time stamps, `Friends_S1E4: 00:00:03.420 - 00:00:04.382`, or the name of MELD's clip, `train_dia559_utt0`, or nothing.

The emotion of a pair is that of its emotion utterance. None of ECF's 9,794 pairs belongs to a neutral utterance, so a
pair that does is refused. An utterance may start before the one above it: 23 of ECF's do, where people speak at the
same time.
"""

from __future__ import annotations

import re

from mechm_runtime.readers.draft import Draft, Row, check_ids
from mechm_runtime.readers.text_file import Source, clean_text, quote
from mechm_runtime.types import GoldPair

_HEADER = re.compile(r"\s*([0-9]{1,18})\s+([0-9]{1,9})\s*")
_PAIR = re.compile(r"\(\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*\)")
_PAIR_LINE = re.compile(r"\s*\(\s*[0-9]{1,9}\s*,\s*[0-9]{1,9}\s*\)[\s,()0-9]*")
_TIME = r"([0-9]{1,4}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,9})?)"
_EPISODE = re.compile(rf"(\S+?)\s*:\s+{_TIME}\s+-\s+{_TIME}")
_CLIP = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def looks_like(lines: list[str]) -> bool:
    """Whether the first lines are a header and its pairs or first utterance."""
    if len(lines) < 3 or _HEADER.fullmatch(lines[0]) is None:
        return False
    return (not lines[1].strip() or _PAIR_LINE.fullmatch(lines[1]) is not None) and lines[2].count("|") >= 3


def parse(source: Source) -> tuple[Draft, ...]:
    """Read every conversation of the file.

    Raises: TranscriptError: a line that is not of this format, or fewer utterances than the header promises.
        LabelError: an unknown emotion, or a pair of an utterance that does not exist or is neutral.
    """
    lines = source.lines()
    drafts: list[Draft] = []
    index = 0
    while index < len(lines):
        if not lines[index].strip():
            index += 1
            continue
        header = _HEADER.fullmatch(lines[index])
        if header is None:
            raise source.error(
                "not a conversation's first line", where=f"line {index + 1}", hint="it is: id number-of-utterances"
            )
        n_utterances = int(header[2])
        body = index + 2
        if body + n_utterances > len(lines):
            raise source.error(
                f"conversation {header[1]} promises {n_utterances} utterances, and the file ends before them",
                where=f"line {index + 1}",
            )
        drafts.append(_draft(source, header[1], lines, index, n_utterances))
        index = body + n_utterances
    if not drafts:
        raise source.error("no conversations")
    return tuple(drafts)


def _draft(source: Source, name: str, lines: list[str], header: int, n_utterances: int) -> Draft:
    rows: list[Row] = []
    emotions: list[str] = []
    episodes: set[str] = set()
    for index in range(header + 2, header + 2 + n_utterances):
        row, emotion, episode = _row(source, lines[index], f"line {index + 1}")
        rows.append(row)
        emotions.append(emotion)
        if episode:
            episodes.add(episode)
        if len(episodes) > 1:
            raise source.error("another episode than the utterances before it", where=row.where)
    check_ids(source, rows)
    pairs = _pairs(source, lines[header + 1], f"line {header + 2}", rows, emotions)
    return Draft(name, tuple(rows), bool(episodes), tuple(emotions), pairs)


def _row(source: Source, line: str, where: str) -> tuple[Row, str, str]:
    """One utterance, its emotion and its episode ("" without one)."""
    fields = line.split("|", 3)
    number = fields[0].strip()
    if len(fields) != 4 or re.fullmatch("[0-9]{1,9}", number) is None:
        raise source.error(
            "not an utterance", where=where, hint="it is: number | speaker | emotion | text | episode: start - end"
        )
    # The text may hold a bar itself, the last field never does.
    text, bar, origin = fields[3].rpartition("|")
    if not bar:
        text, origin = fields[3], ""
    origin = origin.strip()
    emotion = source.check_emotion(fields[2].strip(), where=where)
    start_s = end_s = clip = None
    episode = ""
    if match := _EPISODE.fullmatch(origin):
        episode = match[1]
        start_s = int(match[2]) * 3600 + int(match[3]) * 60 + float(match[4])
        end_s = int(match[5]) * 3600 + int(match[6]) * 60 + float(match[7])
    elif origin:
        if _CLIP.fullmatch(origin) is None:
            raise source.error(
                f"neither times nor a clip's name: {quote(origin)}",
                where=where,
                hint="it is: Friends_S1E4: 00:00:03.420 - 00:00:04.382, or train_dia559_utt0, or empty",
            )
        clip = origin
    row = Row(int(number), clean_text(fields[1]), clean_text(text), start_s, end_s, where, clip)
    return row, emotion, episode


def _pairs(source: Source, line: str, where: str, rows: list[Row], emotions: list[str]) -> frozenset[GoldPair]:
    if _PAIR.sub("", line).replace(",", "").strip():
        raise source.label_error("not a list of pairs", where=where, hint="it is: (3,1),(3,3), or an empty line")
    label_of = {row.id: emotion for row, emotion in zip(rows, emotions, strict=True)}
    pairs: set[GoldPair] = set()
    for match in _PAIR.finditer(line):
        emotion_utterance, cause_utterance = int(match[1]), int(match[2])
        for end in (emotion_utterance, cause_utterance):
            if end not in label_of:
                raise source.label_error(f"a pair names utterance {end}, which does not exist", where=where)
        emotion = label_of[emotion_utterance]
        if emotion == "neutral":
            raise source.label_error(
                f"pair ({emotion_utterance},{cause_utterance}): utterance {emotion_utterance} is labelled neutral, "
                "and neutral has no cause",
                where=where,
                hint="remove the pair or correct the emotion",
            )
        pairs.add(GoldPair(emotion_utterance, emotion, cause_utterance))
    return frozenset(pairs)
