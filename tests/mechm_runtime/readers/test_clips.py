"""Clips are found by name, and a recording without a transcript is one utterance or an error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mechm_runtime.errors import InputError, MediaError, TranscriptError
from mechm_runtime.readers import clips_for, conversation_from_media
from mechm_runtime.types import Conversation, Utterance

TALK = Conversation("3", (Utterance(1, text="Hi"), Utterance(2, text="Ho"), Utterance(3, text="Hm")))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def clips(conversations: tuple[Conversation, ...], folder: Path) -> list[str | None]:
    return [
        None if u.media is None else u.media.relative_to(folder).as_posix() for c in conversations for u in c.utterances
    ]


def test_clips_are_attached_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "dia3utt1.mp4", "dia3utt1.wav", "dia3utt3.wav", "dia1utt2.mp4", "dia3utt2.txt", "dia3utt2.mp4/x")
    attached = clips_for([TALK], tmp_path)
    assert clips(attached, tmp_path) == ["dia3utt1.mp4", None, "dia3utt3.wav"]
    assert [u.text for u in attached[0].utterances] == ["Hi", "Ho", "Hm"]


def test_names_from_the_transcript_win(tmp_path: Path) -> None:
    touch(tmp_path, "dia3utt1.mp4", "dia3utt2.mp4", "a.mkv", "train_dia559_utt0.mp4")
    names = {("3", 1): "a.mkv", ("3", 2): "gone.mp4", ("3", 3): "train_dia559_utt0"}
    assert clips(clips_for([TALK], tmp_path, names=names), tmp_path) == [
        "a.mkv",
        "dia3utt2.mp4",
        "train_dia559_utt0.mp4",
    ]


def test_the_folders_of_meld(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train_splits/dia5_utt0.mp4",
        "dev_splits_complete/dia5_utt0.mp4",
        "output_repeated_splits_test/dia5_utt0.mp4",
    )
    names = {("3", 1): "train_dia5_utt0", ("3", 2): "dev_dia5_utt0", ("3", 3): "test_dia5_utt0"}
    assert clips(clips_for([TALK], tmp_path, names=names), tmp_path) == [
        "train_splits/dia5_utt0.mp4",
        "dev_splits_complete/dia5_utt0.mp4",
        "output_repeated_splits_test/dia5_utt0.mp4",
    ]


@pytest.mark.parametrize("name", ["../dia3utt1.mp4", "/etc/passwd", "a/b.mp4", "..", "", "x\0", "x" * 200])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "dia3utt1.mp4")
    with pytest.raises(TranscriptError, match="not a clip's name"):
        clips_for([TALK], tmp_path, names={("3", 1): name})


def test_a_folder_without_these_clips_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "dia4utt1.mp4")
    with pytest.raises(MediaError, match="no clip of this transcript") as caught:
        clips_for([TALK], tmp_path)
    assert "dia3utt1.mp4" in caught.value.hint
    for folder in (tmp_path / "missing", tmp_path / "dia4utt1.mp4", tmp_path / "\0"):
        with pytest.raises(MediaError, match="cannot be listed"):
            clips_for([TALK], folder)


def test_a_short_recording_is_one_utterance_without_words() -> None:
    path = Path("x/call.wav")
    assert conversation_from_media(path, 30.0) == Conversation(
        "call", (Utterance(1, text=None, start_s=0.0, end_s=30.0),), path
    )
    with pytest.raises(InputError, match=r"call\.wav: 30\.5 s without a transcript") as caught:
        conversation_from_media(path, 30.5)
    assert "--transcript" in caught.value.hint
    for duration_s in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MediaError, match="no duration"):
            conversation_from_media(path, duration_s)
