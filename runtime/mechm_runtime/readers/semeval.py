"""ECF / SemEval-2024 Task 3 JSON: conversations with or without annotation, and submissions.

The form is the one NUSTM/SemEval-2024_ECAC publishes: a list of `{"conversation_ID", "conversation": [{"utterance_ID",
"text", "speaker", "emotion", "video_name", "video_source"}], "emotion-cause_pairs": [["3_surprise", "1"]]}`. A single
such object without a list is read too. The cause may carry Subtask 1's span ("1_the text"), which is not used.
`start_s` and `end_s`, seconds from the start of the recording, are an addition of this library; they take precedence
over `video_source`, whose times count from the start of the episode.

Neutral: in the published data (ECF 1.0 and 2.0) no pair's emotion utterance is neutral, and every pair has its
utterance's label, so other annotation is refused. Submissions may contain neutral pairs; the official
scorer counts them neither as found nor as missed, and so does `mechm.evaluation`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from mechm_runtime.readers.draft import Draft, Row, check_ids
from mechm_runtime.readers.text_file import Source, clean_text, quote
from mechm_runtime.types import GoldPair

_CLOCK = re.compile(r"([0-9]{1,4}):([0-5]?[0-9]):([0-5]?[0-9](?:\.[0-9]{1,9})?)")
_EMOTION_END = re.compile(r"U?([0-9]{1,9})_(.*)", re.DOTALL)
_CAUSE_END = re.compile(r"U?([0-9]{1,9})(?:_.*)?", re.DOTALL)
_FORM_HINT = 'each conversation is {"conversation_ID": 1, "conversation": [{"utterance_ID": 1, "text": "…"}]}'


def parse(source: Source) -> tuple[Draft, ...]:
    """Read every conversation of the file.

    Raises: TranscriptError: not JSON of this form. LabelError: an unknown emotion, or a pair of an utterance that
        does not exist, is neutral, or has another emotion.
    """
    return tuple(_draft(source, item, index) for index, item in enumerate(_items(source), start=1))


def parse_submission(source: Source) -> Mapping[str, frozenset[GoldPair]]:
    """Read predicted pairs: conversation id -> pairs without duplicates. The file need not hold the utterances.

    Raises: TranscriptError: not JSON of this form, or a conversation twice. LabelError: a malformed pair, an
        unknown emotion, or a conversation without "emotion-cause_pairs".
    """
    submission: dict[str, frozenset[GoldPair]] = {}
    for index, item in enumerate(_items(source), start=1):
        name = _conversation_id(source, item, index)
        if name in submission:
            raise source.error(f"conversation {quote(name)} appears twice")
        pairs = _pairs(source, item, name)
        if pairs is None:
            raise source.label_error('no "emotion-cause_pairs"', where=f"conversation {name}")
        submission[name] = pairs
    return submission


def _items(source: Source) -> list[dict[str, object]]:
    """The JSON objects of the file, one per conversation."""
    try:
        data: object = json.loads(source.text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise source.error(f"not JSON ({error.msg})", where=f"line {error.lineno}") from error
    except RecursionError as error:
        raise source.error("JSON nested too deeply", hint=_FORM_HINT) from error
    except ValueError as error:  # an integer longer than Python converts, or NaN and Infinity
        raise source.error("JSON holds a number that is not finite or has too many digits") from error
    items = data if isinstance(data, list) else [data]
    if not items:
        raise source.error("no conversations", hint=_FORM_HINT)
    objects: list[dict[str, object]] = []
    for index, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise source.error("not an object", where=f"conversation {index} in the list", hint=_FORM_HINT)
        objects.append(item)
    return objects


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _draft(source: Source, item: dict[str, object], index: int) -> Draft:
    name = _conversation_id(source, item, index)
    turns = item.get("conversation")
    if not isinstance(turns, list):
        raise source.error('no list "conversation"', where=f"conversation {name}", hint=_FORM_HINT)
    rows: list[Row] = []
    emotions: list[str | None] = []
    clocks: set[str] = set()
    for position, turn in enumerate(turns, start=1):
        where = f"conversation {name}, utterance {position}"
        if not isinstance(turn, dict):
            raise source.error("not an object", where=where, hint=_FORM_HINT)
        row, clock = _row(source, turn, where)
        rows.append(row)
        clocks.add(clock)
        emotion = _string(source, turn, "emotion", where)
        emotions.append(None if emotion is None else source.check_emotion(emotion, where=where))
    clocks.discard("")
    if len(clocks) > 1:
        raise source.error(
            "utterances count their times from different starts",
            where=f"conversation {name}",
            hint="give every utterance start_s and end_s, or a video_source of one episode",
        )
    check_ids(source, rows)
    pairs = _pairs(source, item, name)
    if pairs is not None:
        _check_pairs(source, name, rows, emotions, pairs)
    return Draft(name, tuple(rows), clocks not in (set(), {"recording"}), tuple(emotions), pairs)


def _conversation_id(source: Source, item: dict[str, object], index: int) -> str:
    value = item.get("conversation_ID")
    where = f"conversation {index} in the list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    if isinstance(value, str) and len(value) <= 200:
        name = clean_text(source.check_unicode(value, where=where))
        if name:
            return name
    raise source.error('no usable "conversation_ID"', where=where, hint="give it a number or a short text")


def _row(source: Source, turn: dict[str, object], where: str) -> tuple[Row, str]:
    """One utterance, and the zero of its times: "recording", "episode NAME", or "" without times."""
    identifier = turn.get("utterance_ID")
    if isinstance(identifier, str) and re.fullmatch("U?[0-9]{1,9}", identifier):
        identifier = int(identifier.removeprefix("U"))
    if not isinstance(identifier, int) or isinstance(identifier, bool):
        raise source.error('no usable "utterance_ID"', where=where, hint="number utterances from 1")
    start_s, end_s, clock = _times(source, turn, where)
    row = Row(
        id=identifier,
        speaker=clean_text(_string(source, turn, "speaker", where) or ""),
        text=clean_text(_string(source, turn, "text", where) or ""),
        start_s=start_s,
        end_s=end_s,
        where=where,
        clip=_string(source, turn, "video_name", where),
    )
    return row, clock


def _string(source: Source, turn: dict[str, object], key: str, where: str) -> str | None:
    value = turn.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise source.error(f'"{key}" is not text', where=where)
    return source.check_unicode(value, where=where)


def _times(source: Source, turn: dict[str, object], where: str) -> tuple[float | None, float | None, str]:
    given = {key: turn[key] for key in ("start_s", "end_s") if turn.get(key) is not None}
    if len(given) == 1:
        raise source.error(f'"{next(iter(given))}" alone', where=where, hint="give both start_s and end_s, or neither")
    if given:
        start_s, end_s = (_seconds(source, key, value, where) for key, value in given.items())
        return start_s, end_s, "recording"
    video_source = turn.get("video_source")
    if video_source is None:
        return None, None, ""
    hint = 'it is ["S01E01", "00:07:40.335", "00:07:44.880"]'
    if (
        not isinstance(video_source, list)
        or len(video_source) != 3
        or not all(isinstance(p, str) for p in video_source)
    ):
        raise source.error('"video_source" is not an episode and two times', where=where, hint=hint)
    episode, *clocks = video_source
    matches = [_CLOCK.fullmatch(clock) for clock in clocks]
    if matches[0] is None or matches[1] is None:
        raise source.error('"video_source" holds a time that is not one', where=where, hint=hint)
    start_s, end_s = (int(m[1]) * 3600 + int(m[2]) * 60 + float(m[3]) for m in matches if m is not None)
    return start_s, end_s, f"episode {episode}"


def _seconds(source: Source, key: str, value: object, where: str) -> float:
    # The bound is checked before the conversion: float() of a long integer overflows.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
        raise source.error(f'"{key}" is not a number of seconds', where=where)
    return float(value)


def _pairs(source: Source, item: dict[str, object], name: str) -> frozenset[GoldPair] | None:
    value = item.get("emotion-cause_pairs")
    if value is None:
        return None
    hint = 'a pair is ["3_surprise", "1"]'
    if not isinstance(value, list):
        raise source.label_error('"emotion-cause_pairs" is not a list', where=f"conversation {name}", hint=hint)
    pairs: set[GoldPair] = set()
    for position, pair in enumerate(value, start=1):
        where = f"conversation {name}, pair {position}"
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise source.label_error("not a pair", where=where, hint=hint)
        cause = str(pair[1]) if isinstance(pair[1], int) and not isinstance(pair[1], bool) else pair[1]
        emotion_end = _EMOTION_END.fullmatch(pair[0])
        cause_end = _CAUSE_END.fullmatch(cause) if isinstance(cause, str) else None
        if emotion_end is None or cause_end is None:
            raise source.label_error("not a pair", where=where, hint=hint)
        emotion = source.check_emotion(emotion_end[2], where=where)
        pairs.add(GoldPair(int(emotion_end[1]), emotion, int(cause_end[1])))
    return frozenset(pairs)


def _check_pairs(
    source: Source, name: str, rows: list[Row], emotions: list[str | None], pairs: frozenset[GoldPair]
) -> None:
    label_of = {row.id: emotion for row, emotion in zip(rows, emotions, strict=True)}
    for pair in sorted(pairs):
        where = f"conversation {name}, pair {pair.emotion_utterance}_{pair.emotion}, {pair.cause_utterance}"
        for end in (pair.emotion_utterance, pair.cause_utterance):
            if end not in label_of:
                raise source.label_error(f"there is no utterance {end}", where=where)
        if pair.emotion == "neutral":
            raise source.label_error("neutral has no cause", where=where, hint="remove the pair or correct the emotion")
        label = label_of[pair.emotion_utterance]
        if label is not None and label != pair.emotion:
            raise source.label_error(f"utterance {pair.emotion_utterance} is labelled {label}", where=where)
