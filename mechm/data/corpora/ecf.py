"""ECF with its clips: the annotated conversations of ECF 1.0 or 2.0, and a recording for each utterance.

ECF 2.0 is the data of SemEval-2024 Task 3 (NUSTM/SemEval-2024_ECAC):

    Subtask_2_train.json      [{"conversation_ID", "conversation": [{"utterance_ID", "text", "speaker", "emotion",
                                "video_name"}], "emotion-cause_pairs": [["3_surprise", "1"]]}]
    <clips>/dia1utt1.mp4      a clip per utterance, under its `video_name`

The text is read by `mechm_runtime.readers`, and so is the MECPE text of ECF 1.0, whose clips are those of MELD. This
adds the clips and says at the end which are missing or cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mechm.data.corpora.files import count_media, count_utterances, keep_usable_clips
from mechm.data.corpora.types import Corpus, CorpusReport, Probe
from mechm_runtime.readers import clip_names, clips_for, read_labelled
from mechm_runtime.types import LabelledConversation


def read_ecf(path: Path, *, clips: Path | None = None, probe: Probe | None = None) -> Corpus[LabelledConversation]:
    """Annotated conversations in SemEval JSON or MECPE text, with their clips where `clips` is given.

    clips: the folder with the clips; for ECF 1.0 the one that holds MELD's `train_splits`.
    probe: opens each clip; without it a clip is only looked for, and taken if it is not empty.
    Raises: TranscriptError, LabelError: as `read_labelled`. MediaError: the folder cannot be listed, or none of its
        clips can be used.
    """
    labelled = read_labelled(path)
    if clips is None:
        return Corpus(labelled, CorpusReport(path.name, count_utterances(labelled), 0))
    names = clip_names(path)
    attached = clips_for([one.conversation for one in labelled], clips, names=names)
    labelled = tuple(replace(one, conversation=with_clips) for one, with_clips in zip(labelled, attached, strict=True))
    kept, problems = keep_usable_clips(labelled, lambda *at: _clip_name(names, *at), probe)
    return Corpus(kept, CorpusReport(path.name, count_utterances(kept), count_media(kept), problems))


def _clip_name(names: Mapping[tuple[str, int], str], conversation: str, utterance: int) -> str:
    return names.get((conversation, utterance), f"dia{conversation}utt{utterance}.mp4")
