"""Reads MELD: dialogues of the TV show Friends with an emotion and a clip per utterance (Poria et al., ACL 2019).

The layout of the release (declare-lab/MELD and MELD.Raw):

    <folder>/train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv
        Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime
        1,"also I was the point person …",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:21,731"
    <clips>/train_splits/dia0_utt0.mp4            each also inside train/, dev/ or test/, as the archive unpacks
    <clips>/dev_splits_complete/dia0_utt0.mp4
    <clips>/output_repeated_splits_test/dia0_utt0.mp4

Remains of Windows-1252 in older copies of the tables are decoded. MELD's emotions are those of `EMOTIONS`; others are
refused. Causes are not annotated (ECF annotates them for the same show): `pairs` is always empty.

A conversation's id is `train_dia0`; utterance ids are MELD's plus one, since ours start at 1, and may have gaps.
Times are relative to the dialogue's earliest utterance; some are out of order in the release and are not changed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mechm.data.corpora.files import TableRow, count_media, count_utterances, keep_usable_clips, read_table
from mechm.data.corpora.types import Corpus, CorpusReport, Probe
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.readers import clips_for
from mechm_runtime.readers.text_file import clean_text, quote
from mechm_runtime.types import EMOTIONS, Conversation, LabelledConversation, Utterance

CLIP_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
"""Folder of each split's clips in MELD.Raw."""

COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
"""The columns that are read; the others may be absent."""

_TIME = re.compile(r"([0-9]{1,2}):([0-5]?[0-9]):([0-5]?[0-9])[,.]([0-9]{1,3})")


def read_meld(
    folder: Path, split: str = "train", *, clips: Path | None = None, probe: Probe | None = None
) -> Corpus[LabelledConversation]:
    """Read one split of MELD, with its clips where `clips` is given.

    folder: contains `<split>_sent_emo.csv`. split: train, dev or test.
    clips: folder of MELD.Raw, or the split's own folder of clips.
    probe: opens each clip; None only checks that it exists and is not empty.
    Raises: InputError: the table is missing, or a row is malformed, has an unknown emotion, or repeats another.
        MediaError: none of the clips exists or can be used.
    """
    if split not in CLIP_FOLDERS:
        raise InputError(f"MELD has no split {split!r}", hint=f"use one of {', '.join(CLIP_FOLDERS)}")
    path = folder / f"{split}_sent_emo.csv"
    labelled = tuple(_conversations(path, split))
    if not labelled:
        raise InputError(f"{path.name}: no utterances below the first line")
    if clips is None:
        return Corpus(labelled, CorpusReport(f"MELD {split}", count_utterances(labelled), 0))
    names = {
        (one.conversation.id, utterance.id): f"{one.conversation.id}_utt{utterance.id - 1}"
        for one in labelled
        for utterance in one.conversation.utterances
    }
    hint = f"the clips are {CLIP_FOLDERS[split]}/dia0_utt0.mp4 … below the folder of MELD.Raw"
    try:
        attached = clips_for([one.conversation for one in labelled], _clip_root(clips, split), names=names)
    except MediaError as error:
        raise MediaError(f"{clips.name}: no clip of MELD's split {split}", hint=hint) from error
    labelled = tuple(replace(one, conversation=with_clips) for one, with_clips in zip(labelled, attached, strict=True))
    kept, problems = keep_usable_clips(labelled, lambda *at: f"{names[at].removeprefix(f'{split}_')}.mp4", probe)
    return Corpus(kept, CorpusReport(f"MELD {split}", count_utterances(kept), count_media(kept), problems))


def _clip_root(clips: Path, split: str) -> Path:
    """Return the parent of the split's folder of clips."""
    if clips.name == CLIP_FOLDERS[split]:
        return clips.parent
    inner = clips / split
    return inner if (inner / CLIP_FOLDERS[split]).is_dir() else clips


@dataclass(frozen=True, slots=True)
class _Line:
    """An utterance; times in seconds from the episode's start."""

    row: TableRow
    id: int
    emotion: str
    start_s: float
    end_s: float


def _conversations(path: Path, split: str) -> Iterator[LabelledConversation]:
    dialogues: defaultdict[int, list[_Line]] = defaultdict(list)
    for row in read_table(path, COLUMNS, hint="take the table as declare-lab/MELD has it in data/MELD"):
        line = _line(row)
        before = dialogues[row.number("Dialogue_ID")]
        if before and line.id <= before[-1].id:
            what = "repeats" if line.id == before[-1].id else "comes after"
            raise row.error(f"Utterance_ID {line.id - 1} {what} the one of line {before[-1].row.line}")
        before.append(line)
    for number, lines in dialogues.items():
        origin_s = min(line.start_s for line in lines)
        utterances = tuple(
            Utterance(
                line.id,
                clean_text(line.row.values["Speaker"]),
                clean_text(line.row.values["Utterance"]),
                line.start_s - origin_s,
                line.end_s - origin_s,
            )
            for line in lines
        )
        emotions = tuple(line.emotion for line in lines)
        yield LabelledConversation(Conversation(f"{split}_dia{number}", utterances), emotions, frozenset())


def _line(row: TableRow) -> _Line:
    emotion = row.values["Emotion"].strip().lower()
    if emotion not in EMOTIONS:
        raise row.error(f"unknown emotion {quote(emotion)}", hint=f"use one of {', '.join(EMOTIONS)}")
    start_s, end_s = _seconds(row, "StartTime"), _seconds(row, "EndTime")
    if end_s < start_s:
        raise row.error("EndTime is before StartTime")
    return _Line(row, row.number("Utterance_ID") + 1, emotion, start_s, end_s)


def _seconds(row: TableRow, column: str) -> float:
    match = _TIME.fullmatch(row.values[column].strip())
    if match is None:
        raise row.error(f"{column} {quote(row.values[column])} is not a time", hint="expected 00:16:16,059")
    hours, minutes, seconds, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")
