"""Read transcripts and folders of clips into conversations.

Formats: SRT, WebVTT, STM, RTTM, ECF / SemEval JSON and MECPE text. Only text files are opened, with the standard
library alone; `mechm_runtime.media` opens recordings.
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
