"""Reads ECF: the annotated conversations of ECF 1.0 or 2.0, with a clip for each utterance.

ECF 2.0 is the data of SemEval-2024 Task 3 (NUSTM/SemEval-2024_ECAC):

    Subtask_2_train.json      [{"conversation_ID", "conversation": [{"utterance_ID", "text", "speaker", "emotion",
                                "video_name"}], "emotion-cause_pairs": [["3_surprise", "1"]]}]
    <clips>/dia1utt1.mp4      a clip per utterance, under its `video_name`

ECF 1.0 (NUSTM/MECPE) has text only and uses MELD's clips; `ecf_vs_meld.txt` maps utterances to clips:

    train.txt, ecf_vs_meld.txt                the same conversations under the same ids
    <clips>/train_splits/dia559_utt0.mp4      `train_dia559_utt0`; dev_splits_complete and output_repeated_splits_test
                                              beside it, as MELD.Raw unpacks

The text is read by `mechm_runtime.readers`. This module adds the clips and reports those that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mechm.data.corpora.files import count_media, count_utterances, keep_usable_clips
from mechm.data.corpora.types import Corpus, CorpusReport, Probe
from mechm_runtime.errors import MediaError, TranscriptError
from mechm_runtime.readers import clip_names, clips_for, read_labelled, read_transcript
from mechm_runtime.types import LabelledConversation


def read_ecf(
    path: Path, *, clips: Path | None = None, names_file: Path | None = None, probe: Probe | None = None
) -> Corpus[LabelledConversation]:
    """Read annotated conversations in SemEval JSON or MECPE text, with their clips where `clips` is given.

    clips: folder of the clips; for ECF 1.0 the folder of MELD's `train_splits`.
    names_file: a transcript of the same conversations with the names of their clips (`ecf_vs_meld.txt`); None where
        `path` contains them, or the clips are named `dia1utt1.mp4` by conversation and utterance.
    probe: opens each clip; None only checks that it exists and is not empty.
    Raises: TranscriptError, LabelError: as `read_labelled`, also for `names_file`, and where that has other utterances
        or no names. MediaError: the folder cannot be listed, or none of its clips can be used.
    """
    labelled = read_labelled(path)
    if clips is None:
        return Corpus(labelled, CorpusReport(path.name, count_utterances(labelled), 0))
    names = clip_names(path) if names_file is None else _names_from(names_file, path, labelled)
    try:
        attached = clips_for([one.conversation for one in labelled], clips, names=names)
    except MediaError as error:
        if names or names_file is not None or "no clip" not in str(error):
            raise
        hint = f"{error.hint}; for ECF 1.0 with the clips of MELD: --clip-names ecf_vs_meld.txt"
        raise MediaError(str(error), hint=hint) from error
    labelled = tuple(replace(one, conversation=with_clips) for one, with_clips in zip(labelled, attached, strict=True))
    kept, problems = keep_usable_clips(labelled, lambda *at: _clip_name(names, *at), probe)
    return Corpus(kept, CorpusReport(path.name, count_utterances(kept), count_media(kept), problems))


def _names_from(
    names_file: Path, path: Path, labelled: Sequence[LabelledConversation]
) -> Mapping[tuple[str, int], str]:
    """Read the names of clips from another transcript of the same conversations.

    Raises: TranscriptError: it has no names for them, or a conversation of the same id has other utterances.
    """
    ids = {one.id: [u.id for u in one.utterances] for one in read_transcript(names_file)}
    for one in labelled:
        conversation = one.conversation
        if ids.get(conversation.id, expected := [u.id for u in conversation.utterances]) != expected:
            raise TranscriptError(
                f"{names_file.name}: conversation {conversation.id} has other utterances than in {path.name}",
                hint="give the file that belongs to this corpus",
            )
    names = clip_names(names_file)
    if not any((one.conversation.id, u.id) in names for one in labelled for u in one.conversation.utterances):
        raise TranscriptError(
            f"{names_file.name}: names no clip of {path.name}", hint="give the file that belongs to this corpus"
        )
    return names


def _clip_name(names: Mapping[tuple[str, int], str], conversation: str, utterance: int) -> str:
    return names.get((conversation, utterance), f"dia{conversation}utt{utterance}.mp4")
