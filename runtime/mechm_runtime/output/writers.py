"""Writes analyses to files: JSON, WebVTT, and the submission format of SemEval-2024 Task 3, Subtask 2.

Files are replaced atomically: a reader sees the old file or the whole new one. They are UTF-8 with \\n line ends. The
HTML report is written by `report`; `mechm_runtime.readers` reads these formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.output.formatting import (
    NO_WORDS,
    UNSURE,
    percent,
    printable,
    probability_of,
    shorten,
    speaker_of,
    words_of,
)
from mechm_runtime.system.atomic_write import write_atomically
from mechm_runtime.types import EMOTIONS, Analysis, Utterance, UtteranceAnalysis

QUOTE_CHARACTERS = 40
"""Most characters of a cause's words in a subtitle: about one line of a phone held upright."""

# WebVTT's own colour classes are too few for the emotions. These are the colours of the terminal table, lighter, since
# players show cues on a dark background.
CUE_COLOURS = {
    "anger": "#ff8a70",
    "disgust": "#7fd6a4",
    "fear": "#c9a6ff",
    "joy": "#ffd34d",
    "sadness": "#86bdff",
    "surprise": "#ff9ed8",
}


JSON_LINES = ".jsonl"
"""Suffix of files with one JSON object per line."""


def write_json(analyses: Sequence[Analysis], path: Path, *, as_list: bool = False) -> None:
    """Write analyses as JSON: one as an indented object, several (or none) as a list with one per line.

    A path that ends in `.jsonl` gets JSON Lines: one object per line, for any number of analyses.

    as_list: write a list for one analysis too, for a caller that analysed several and has one left.

    Raises: InputError: the file cannot be written.
    """
    if path.suffix.lower() == JSON_LINES:
        text = "".join(analysis.to_json() + "\n" for analysis in analyses)
    elif len(analyses) == 1 and not as_list:
        text = analyses[0].to_json(indent=2) + "\n"
    else:
        text = "[" + ",\n".join(analysis.to_json() for analysis in analyses) + "]\n"
    # A lone surrogate (a transcript may hold one) has no UTF-8 form; as a backslash escape it is the same JSON string.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_submission(analyses: Sequence[Analysis], path: Path, *, with_conversation: bool = False) -> None:
    """Write a submission for the task's scorer: a JSON list of conversations with their pairs.

    Each item is `{"conversation_ID": 16, "emotion-cause_pairs": [["1_surprise", "1"], ...]}`; a conversation id that
    is a number is written as one. Pairs are sorted by emotion utterance, then by cause.

    with_conversation: also write `"conversation"`, the utterances in the format of the task's data with the decided
        emotion (left out where the pipeline abstains), so that the file can be read as a labelled conversation.

    Raises:
        InputError: two analyses have the same conversation id, or the file cannot be written.
        LabelError: a pair's emotion is not one of the six that the task scores.
    """
    items: list[dict[str, object]] = []
    seen: set[int | str] = set()
    for analysis in analyses:
        conversation_id = _numeric(analysis.conversation_id)
        if conversation_id in seen:
            raise InputError(
                f"conversation id {conversation_id} appears twice: a scorer would keep only one of them",
                hint="give conversations unique ids",
            )
        seen.add(conversation_id)
        item: dict[str, object] = {"conversation_ID": conversation_id}
        if with_conversation:
            item["conversation"] = [_task_utterance(utterance) for utterance in analysis.utterances]
        item["emotion-cause_pairs"] = _task_pairs(analysis)
        items.append(item)
    text = "[" + ",\n ".join(json.dumps(item, ensure_ascii=False) for item in items) + "]\n"
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_vtt(analysis: Analysis, path: Path) -> None:
    """Write one cue per utterance: the speaker as voice tag, the words, and below them the emotion and its causes.

    Raises: InputError: an utterance has no times, or the file cannot be written.
    """
    write_bytes(path, vtt_of(analysis).encode("utf-8"))


def write_vtts(analyses: Sequence[Analysis], path: Path) -> tuple[Path, ...]:
    """Write subtitles for one or many conversations; players need one file per recording.

    One analysis is written to `path`, several into files beside it with the conversation's id before the suffix:
    `talks.vtt` becomes `talks.16.vtt`, `talks.20.vtt`. Nothing is written unless every conversation can be.

    Returns: the files written, in the order of `analyses`.
    Raises: InputError: as `write_vtt`, no analyses, or two conversations whose ids give the same file name.
    """
    paths = vtt_paths([analysis.conversation_id for analysis in analyses], path)
    texts = [vtt_of(analysis) for analysis in analyses]
    for one, text in zip(paths, texts, strict=True):
        write_bytes(one, text.encode("utf-8"))
    return paths


def vtt_paths(conversation_ids: Sequence[str], path: Path) -> tuple[Path, ...]:
    """The files that `write_vtts` writes for these conversations.

    Raises: InputError: no conversations, or two whose ids give the same file name.
    """
    if not conversation_ids:
        raise InputError("there is no conversation to write subtitles for")
    if len(conversation_ids) == 1:
        return (path,)
    paths = tuple(path.with_name(f"{path.stem}.{_file_part(name)}{path.suffix}") for name in conversation_ids)
    for index, one in enumerate(paths):
        if one in paths[:index]:
            raise InputError(f"two conversations would be written to {one.name}", hint="give conversations unique ids")
    return paths


def vtt_of(analysis: Analysis) -> str:
    """The WebVTT text of `write_vtt`.

    Raises: InputError: an utterance has no times.
    """
    require_times(analysis.conversation_id, analysis.utterances)
    blocks = [
        "WEBVTT",
        "NOTE\nEmotions and causes are a model's estimate, not a diagnosis.\n"
        + _escape(f"Conversation {printable(analysis.conversation_id)}, bundle {printable(analysis.bundle_id)}."),
        "STYLE\n" + "\n".join(f"::cue(.{name}) {{ color: {colour}; }}" for name, colour in CUE_COLOURS.items()),
    ]
    by_id = {utterance.id: utterance for utterance in analysis.utterances}
    # WebVTT requires cues in the order of their starts, in which turns of people who speak at once may not be.
    in_time = sorted(analysis.utterances, key=lambda u: (u.start_s or 0.0, u.id))
    blocks += [_cue(analysis, utterance, by_id) for utterance in in_time]
    return "\n\n".join(blocks) + "\n"


def require_times(conversation_id: str, utterances: Sequence[Utterance | UtteranceAnalysis]) -> None:
    """Refuse utterances without times, which subtitles need; to be called before the analysis too.

    Raises: InputError: an utterance has no times.
    """
    untimed = [u.id for u in utterances if u.start_s is None or u.end_s is None]
    if untimed:
        some = ", ".join(map(str, untimed[:5])) + (", …" if len(untimed) > 5 else "")
        raise InputError(
            f"conversation {printable(conversation_id)} has utterances without times ({some}): "
            "subtitles need a start and an end",
            hint="give a transcript with times (SRT, WebVTT, STM), or write --json instead",
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, see `write_atomically`.

    A link is followed: the file that it names is replaced, not the link. A device or pipe is written directly.

    Raises: InputError: the folder does not exist, `path` is a folder, or the system refuses.
    """
    target = path.resolve()
    if target.is_dir():
        raise InputError(f"{path} is a folder", hint="give the name of a file")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: its folder does not exist", hint=f"mkdir -p {target.parent}")
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            write_atomically(target, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _numeric(conversation_id: str) -> int | str:
    """The id as in the task's files: an integer where the text is one."""
    return int(conversation_id) if re.fullmatch(r"0|[1-9][0-9]{0,17}", conversation_id) else conversation_id


def _task_pairs(analysis: Analysis) -> list[list[str]]:
    pairs = sorted({(pair.emotion_utterance, pair.emotion, pair.cause_utterance) for pair in analysis.pairs})
    for utterance_id, emotion, _ in pairs:
        if emotion not in EMOTIONS[1:]:
            raise LabelError(
                f"conversation {analysis.conversation_id}: the pair of utterance {utterance_id} carries {emotion!r}",
                hint=f"the task scores {', '.join(EMOTIONS[1:])}",
            )
    return [[f"{utterance_id}_{emotion}", str(cause)] for utterance_id, emotion, cause in pairs]


def _task_utterance(utterance: UtteranceAnalysis) -> dict[str, object]:
    item: dict[str, object] = {
        "utterance_ID": utterance.id,
        "text": utterance.text or "",
        "speaker": utterance.speaker,
    }
    if utterance.emotion is not None:
        item["emotion"] = utterance.emotion
    return item


def _cue(analysis: Analysis, utterance: UtteranceAnalysis, by_id: dict[int, UtteranceAnalysis]) -> str:
    start_ms = round((utterance.start_s or 0.0) * 1000)
    # A cue must end after it starts: an utterance without duration gets the format's smallest step.
    end_ms = max(round((utterance.end_s or 0.0) * 1000), start_ms + 1)
    words = words_of(utterance)
    spoken = f"<i>{NO_WORDS}</i>" if words == NO_WORDS else _escape(words)
    voice = _escape(speaker_of(utterance))
    lines = [str(utterance.id), f"{_timestamp(start_ms)} --> {_timestamp(end_ms)}", f"<v {voice}>{spoken}</v>"]
    if utterance.emotion != EMOTIONS[0]:
        label = utterance.emotion or UNSURE
        lines.append(f"<c.{label}>{label} {_escape(percent(probability_of(utterance)))}</c>")
    lines += [
        f"<i>← {_escape(_cause_words(utterance, by_id.get(pair.cause_utterance)))}</i>"
        for pair in analysis.causes_of(utterance.id)
    ]
    return "\n".join(lines)


def _cause_words(utterance: UtteranceAnalysis, cause: UtteranceAnalysis | None) -> str:
    if cause is None or cause.id == utterance.id:
        return f"{utterance.id} these words"
    return f"{cause.id} {speaker_of(cause)}: {shorten(words_of(cause), QUOTE_CHARACTERS)}"


def _escape(text: str) -> str:
    """Escape cue text and voice names; `>` too, since "-->" is not allowed there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _timestamp(milliseconds: int) -> str:
    seconds, ms = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{ms:03d}"


def _file_part(conversation_id: str) -> str:
    """The id as part of a file name: without separators and leading dots, at most 80 characters."""
    return re.sub(r"[^\w.-]+", "_", conversation_id).strip("._")[:80] or "conversation"
