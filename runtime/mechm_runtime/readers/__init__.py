"""Readers: from transcripts and folders of clips to conversations.

What there is: SRT, WebVTT, STM, RTTM, ECF / SemEval JSON and MECPE text. They open text files only, with the standard
library alone; recordings are the business of `mechm_runtime.media`.
"""

from mechm_runtime.readers.clips import clips_for, conversation_from_media
from mechm_runtime.readers.formats import (
    clip_names,
    parse_conversation,
    read_labelled,
    read_submission,
    read_transcript,
    require_content,
)
from mechm_runtime.readers.text_file import DEFAULT_MAX_BYTES

__all__ = [
    "DEFAULT_MAX_BYTES",
    "clip_names",
    "clips_for",
    "conversation_from_media",
    "parse_conversation",
    "read_labelled",
    "read_submission",
    "read_transcript",
    "require_content",
]
