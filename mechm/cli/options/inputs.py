"""Reads the INPUT of `mechm analyze`: a recording, a transcript or a folder of clips.

A known ending of the file's name decides which it is, else its first bytes. Everything that can be wrong with an input,
except what only decoding all of it would show, is refused here, before a bundle is loaded. Nothing is decoded in this
process and nothing is downloaded.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import stat
from pathlib import Path
from typing import Literal

from mechm_runtime.errors import InputError, TranscriptError
from mechm_runtime.media import MediaLimits, MediaReader
from mechm_runtime.output.formatting import printable
from mechm_runtime.readers import clip_names, clips_for, conversation_from_media, read_transcript, require_content
from mechm_runtime.readers.text_file import SpeakerNames
from mechm_runtime.types import Conversation, Utterance

Kind = Literal["folder", "recording", "transcript"]

TRANSCRIPT_SUFFIXES = frozenset((".json", ".rttm", ".srt", ".stm", ".txt", ".vtt"))
RECORDING_SUFFIXES = frozenset(
    (
        *(".3gp", ".aac", ".aif", ".aiff", ".amr", ".avi", ".bmp", ".flac", ".flv", ".gif", ".jpeg", ".jpg", ".m4a"),
        *(".m4v", ".mkv", ".mov", ".mp3", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".oga", ".ogg", ".ogv", ".opus"),
        *(".png", ".ts", ".wav", ".weba", ".webm", ".webp", ".wma", ".wmv"),
    )
)

TRANSCRIPTS = "SRT, WebVTT, STM, RTTM, ECF / SemEval JSON or MECPE text"
ACCEPTED = f"give a recording, a transcript ({TRANSCRIPTS}) or a folder of clips"

HEAD_BYTES = 4096
"""Bytes read of a file with an unknown ending to see whether it is text."""


def load_conversations(
    source: Path,
    transcript: Path | None = None,
    *,
    limits: MediaLimits | None = None,
    speaker_names: SpeakerNames = "auto",
) -> tuple[Conversation, ...]:
    """The conversations of a recording, a transcript or a folder of clips.

    transcript: speakers, words and times; a folder needs one, a transcript takes none.
    limits: on recordings; None for the defaults.
    speaker_names: how names at the start of lines are found; see `read_transcript`.
    Raises: InputError: none of the three, a combination that makes no sense, or nothing to analyse. MediaError,
        TranscriptError, LabelError: what is in the files. MissingExtraError: a recording, without the `media` extra.
    """
    try:
        return _load(source, transcript, limits, speaker_names)
    except InputError as error:
        # The readers name the problem and its place, but not always the remedy.
        error.hint = error.hint or "correct it and run this again; mechm analyze --help says what INPUT may be"
        raise


def kind_of(path: Path) -> Kind:
    """The kind of a path, from its name and first bytes.

    Raises: InputError: nothing is there, it may not be read, or it is neither a file nor a folder.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            raise InputError(f"{shown(path)} is neither a file nor a folder", hint="save it to a file first")
        suffix = path.suffix.lower()
        if suffix in TRANSCRIPT_SUFFIXES:
            return "transcript"
        if suffix in RECORDING_SUFFIXES:
            return "recording"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        if re.match(r"[a-z]{2,8}:/", str(path)):
            raise InputError(
                f"{shown(path)} is an address, and nothing is fetched", hint="download it and give the file"
            ) from error
        raise InputError(f"{shown(path)}: no such file or folder", hint="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise InputError(f"{shown(path)} cannot be read ({reason})", hint=ACCEPTED) from error
    return "transcript" if looks_like_text(head) else "recording"


def looks_like_text(head: bytes) -> bool:
    """Whether the start of a file is text in any encoding: no control characters, or a UTF-16 byte order mark.

    Text in an unsupported encoding counts too: the readers name the problem and how to convert the file.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    return all(byte >= 0x20 or byte in b"\t\n\f\r" for byte in head)


def shown(path: Path) -> str:
    """A path as the user gave it, safe to print."""
    return printable(os.fsencode(path).decode("utf-8", errors="replace"))


def quoted(path: Path) -> str:
    """A path as a shell takes it, for the commands in hints."""
    return shlex.quote(shown(path))


def _load(
    source: Path, transcript: Path | None, limits: MediaLimits | None, speaker_names: SpeakerNames
) -> tuple[Conversation, ...]:
    kind = kind_of(source)
    if transcript is None:
        if kind == "folder":
            raise InputError(
                f"{shown(source)} is a folder: a transcript must say which clip is whose",
                hint=f"mechm analyze {quoted(source)} --transcript conversation.json",
            )
        if kind == "recording":
            return (_alone(source, limits),)
        conversations = read_transcript(source, speaker_names=speaker_names)
        require_content(conversations)
        return conversations
    if kind == "transcript":
        _refuse_two_transcripts(source, transcript)
    _require_transcript(transcript)
    if kind == "folder":
        conversations = read_transcript(transcript, speaker_names=speaker_names)
        return clips_for(conversations, source, names=clip_names(transcript))
    return (_recorded(source, transcript, limits, speaker_names),)


def _alone(recording: Path, limits: MediaLimits | None) -> Conversation:
    """A recording without a transcript: one utterance."""
    with MediaReader(limits) as reader:
        info = reader.probe(recording)
    if info.container == "image":
        # A picture has no duration, so it is the clip of its one utterance.
        return Conversation(recording.stem, (Utterance(1, media=recording),))
    return conversation_from_media(recording, info.duration_s or 0.0)


def _recorded(
    recording: Path, transcript: Path, limits: MediaLimits | None, speaker_names: SpeakerNames
) -> Conversation:
    """A recording with its transcript."""
    # Read twice: errors of the transcript alone are found before the decoder starts, then with the recording's length.
    (conversation,) = read_transcript(transcript, media=recording, speaker_names=speaker_names)
    if not any(utterance.start_s is not None for utterance in conversation.utterances):
        raise TranscriptError(
            f"{shown(transcript)} gives no times, so nobody can tell which part of {shown(recording)} is whose",
            hint=f"give SRT, WebVTT, STM or start_s and end_s in JSON; or the words alone: "
            f"mechm analyze {quoted(transcript)}",
        )
    with MediaReader(limits) as reader:
        duration_s = reader.probe(recording).duration_s
    (conversation,) = read_transcript(
        transcript, media=recording, media_duration_s=duration_s, speaker_names=speaker_names
    )
    return conversation


def _refuse_two_transcripts(source: Path, transcript: Path) -> None:
    """Refuse a second transcript; if the two arguments were swapped, the hint has them in the right order."""
    try:
        swapped = kind_of(transcript) != "transcript"
    except InputError:
        swapped = False
    other = f"mechm analyze {quoted(transcript)} --transcript {quoted(source)}"
    raise InputError(
        f"{shown(source)} is a transcript itself: --transcript goes with a recording or a folder of clips",
        hint=other if swapped else f"mechm analyze {quoted(source)}",
    )


def _require_transcript(path: Path) -> None:
    """Refuse a folder or a recording where a transcript should be, before its bytes are read as text."""
    kind = kind_of(path)
    if kind != "transcript":
        raise TranscriptError(f"--transcript {shown(path)} is a {kind}, not a transcript", hint=f"give {TRANSCRIPTS}")
