"""Read a transcript of any supported format.

The format is detected by the content, and by the suffix only where the content is ambiguous: a WebVTT file named .srt
is read as WebVTT. Recordings are not opened: the caller gives their duration where it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechm_runtime.errors import TranscriptError
from mechm_runtime.readers import mecpe, nist, semeval, subtitles
from mechm_runtime.readers.draft import Draft, build_conversation, build_labelled, check_unique_ids
from mechm_runtime.readers.text_file import DEFAULT_MAX_BYTES, Source, SpeakerNames, quote, read_source
from mechm_runtime.types import Conversation, GoldPair, LabelledConversation

FORMATS_HINT = "give SRT, WebVTT, STM, RTTM, ECF / SemEval JSON or MECPE text"


@dataclass(frozen=True, slots=True)
class _Format:
    parse: Callable[[Source], tuple[Draft, ...]]
    labelled: bool


_JSON = _Format(semeval.parse, labelled=True)
_MECPE = _Format(mecpe.parse, labelled=True)
_SRT = _Format(subtitles.parse_srt, labelled=False)
_WEBVTT = _Format(subtitles.parse_webvtt, labelled=False)
_STM = _Format(nist.parse_stm, labelled=False)
_RTTM = _Format(nist.parse_rttm, labelled=False)

# For files with ambiguous content: the reader of that format then names the line that is wrong.
_BY_SUFFIX = {".json": _JSON, ".srt": _SRT, ".vtt": _WEBVTT, ".stm": _STM, ".rttm": _RTTM, ".txt": _MECPE}


def read_transcript(
    path: Path,
    *,
    media: Path | None = None,
    media_duration_s: float | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    speaker_names: SpeakerNames = "auto",
) -> tuple[Conversation, ...]:
    """Read the conversations of a transcript; its annotation is checked and not returned.

    path: SRT, WebVTT, STM, RTTM, ECF / SemEval JSON or MECPE text.
    media: the recording that the transcript belongs to. It is one recording, so there is one conversation: the only
        one of the file, or the one whose id is the recording's name without its suffix (STM and RTTM name it so).
    media_duration_s: the recording's duration; utterances that exceed it by more than half a second are cut there or
        left out, and refused where most of the transcript lies past it.
    max_bytes: larger files are refused unread.
    speaker_names: how names at the start of lines are found: `auto` decides over the whole file, `prefix` takes the
        words before a line's first colon, `none` leaves all of them in the text.

    Raises: TranscriptError: the file cannot be read, is of no known format, or contradicts itself or the recording.
        LabelError: annotation in it names an unknown emotion or an utterance that does not exist.
    """
    source = read_source(path, max_bytes=max_bytes, speaker_names=speaker_names)
    drafts: Sequence[Draft] = _detect(source).parse(source)
    check_unique_ids(source, drafts)
    if media is not None and len(drafts) > 1:
        drafts = [draft for draft in drafts if draft.id == media.stem] or drafts
        if len(drafts) > 1:
            raise source.error(
                f"{len(drafts)} conversations for one recording",
                hint=f"keep the recording's own, or give it the id {quote(media.stem)}",
            )
    return tuple(build_conversation(source, draft, media=media, media_duration_s=media_duration_s) for draft in drafts)


def parse_conversation(text: str, *, name: str) -> Conversation:
    """Read one conversation from ECF / SemEval JSON text; its annotation is checked and not returned.

    name: of the text in error messages.

    Raises: TranscriptError: not JSON of this form, or not one conversation. LabelError: as `read_transcript`.
    """
    source = Source(Path(name), text)
    drafts = semeval.parse(source)
    if len(drafts) != 1:
        raise source.error(f"{len(drafts)} conversations, not one")
    return build_conversation(source, drafts[0], media=None, media_duration_s=None)


def read_labelled(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> tuple[LabelledConversation, ...]:
    """Read annotated conversations: ECF / SemEval JSON or MECPE text.

    Times count from the start of each conversation's earliest utterance.

    Raises: TranscriptError: as `read_transcript`, and for a format that holds no annotation. LabelError: annotation
        that is missing or unknown, or names an utterance that does not exist.
    """
    source = read_source(path, max_bytes=max_bytes)
    found = _detect(source)
    if not found.labelled:
        raise source.error("this format holds no annotation", hint="give ECF / SemEval JSON or MECPE text")
    drafts = found.parse(source)
    check_unique_ids(source, drafts)
    return tuple(build_labelled(source, draft) for draft in drafts)


def read_submission(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Mapping[str, frozenset[GoldPair]]:
    """Read a SemEval submission: conversation id -> predicted pairs, without duplicates.

    Raises: TranscriptError: the file cannot be read, or is not a submission. LabelError: an item is not a pair, or
        names an unknown emotion.
    """
    return semeval.parse_submission(read_source(path, max_bytes=max_bytes))


def clip_names(path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Mapping[tuple[str, int], str]:
    """Read the names of clips in a transcript, for `clips_for`: (conversation id, utterance id) -> name.

    JSON holds them as `video_name`, MECPE text as the MELD clip in the last field. Utterances without a clip are left
    out; other formats have none.

    Raises: TranscriptError, LabelError: as `read_transcript`.
    """
    source = read_source(path, max_bytes=max_bytes)
    drafts = _detect(source).parse(source)
    return {(draft.id, row.id): row.clip for draft in drafts for row in draft.rows if row.clip}


def require_content(conversations: Sequence[Conversation]) -> None:
    """Refuse conversations that hold nothing to analyse: no text, no recording and no clip in any of them.

    Raises: TranscriptError: they hold none.
    """
    for conversation in conversations:
        if conversation.media is not None or any(u.text or u.media is not None for u in conversation.utterances):
            return
    raise TranscriptError(
        "every utterance is empty, and there is no recording", hint="give a transcript with text, or the recording"
    )


def _detect(source: Source) -> _Format:
    """The format of a file.

    Raises: TranscriptError: an empty file, or one that looks like none of the formats.
    """
    content = source.text.strip()
    if not content:
        raise source.error("the file is empty", hint=FORMATS_HINT)
    lines = source.lines()
    if subtitles.is_webvtt(source.text):
        return _WEBVTT
    if subtitles.is_srt(lines):
        return _SRT
    if nist.is_rttm(lines):
        return _RTTM
    if nist.is_stm(lines):
        return _STM
    if mecpe.looks_like(lines):
        return _MECPE
    by_suffix = _BY_SUFFIX.get(source.path.suffix.lower())
    if content[0] in "[{" and (by_suffix in (None, _MECPE) or content[-1] in "]}"):
        return _JSON
    # Any text may be named .txt; only one that starts with a number is taken for MECPE.
    if by_suffix is None or (by_suffix is _MECPE and not content[0].isdigit()):
        raise source.error("not a transcript of a known format", hint=FORMATS_HINT)
    return by_suffix
