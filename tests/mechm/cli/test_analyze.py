"""`mechm analyze` refuses bad input in one line before any work, and analyses everything else."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mechm.cli import main
from mechm.cli.options.inputs import kind_of, load_conversations
from mechm_runtime.analysis.deadline import CostEstimator
from mechm_runtime.errors import InputError
from mechm_runtime.readers import read_submission, read_transcript

SRT = "1\n00:00:00,100 --> 00:00:00,900\nAnna: We won!\n\n2\n00:00:01,000 --> 00:00:01,800\nBen: Really?\n"
STM = "call 1 Anna 0.1 0.9 We won!\ncall 1 Ben 1.0 1.8 Really?\n"
COMMAND = [sys.executable, "-c", "from mechm.cli import main; main()", "analyze"]


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, and the lines of standard error."""

    code: int
    out: str
    err: list[str]


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(INPUT, option, ...)` is `mechm analyze INPUT option ...` in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["analyze", *map(str, arguments)])
        printed = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), printed.out, printed.err.splitlines())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seconds of two voices, their transcript, and a folder for the outputs."""
    write_wav(tmp_path / "call.wav")
    (tmp_path / "call.srt").write_text(SRT)
    (tmp_path / "call.stm").write_text(STM)
    (tmp_path / "talk.json").write_text(conversations_json(3))
    return tmp_path


def write_wav(path: Path, *, seconds: float = 2.0) -> Path:
    t = np.arange(round(16_000 * seconds)) / 16_000
    samples = (8_000 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    return path


def write_mp4(path: Path, *, n_frames: int = 20) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(n_frames):
            pixels = np.full((64, 96, 3), 10 * index, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def conversation(number: int | str, texts: list[str], **more: object) -> dict[str, object]:
    turns = [{"utterance_ID": k, "speaker": "AB"[k % 2], "text": text} for k, text in enumerate(texts, start=1)]
    return {"conversation_ID": number, "conversation": turns, **more}


def conversations_json(n: int) -> str:
    return json.dumps([conversation(number, ["We won!", "Really?", "Yes, at last."]) for number in range(1, n + 1)])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(ended: Ended, *words: str) -> None:
    """Exit code 2, nothing on standard output, one error and one hint."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert [line.partition(":")[0] for line in ended.err] == ["error", "hint"], ended.err
    assert ended.err[1].removeprefix("hint:").strip()
    for word in words:
        assert word in ended.err[0], ended.err


# Bad input. Each maker writes something broken and returns the arguments; no bundle is there, and none is missed.

Maker = Callable[[Path], list[object]]
BAD: dict[str, tuple[str, Maker]] = {}


def bad(words: str) -> Callable[[Maker], Maker]:
    """Add a maker to the list; the error names its `words`."""

    def add(maker: Maker) -> Maker:
        BAD[maker.__name__] = (words, maker)
        return maker

    return add


def with_json(folder: Path, *items: object) -> list[object]:
    path = folder / "bad.json"
    path.write_text(json.dumps(list(items)))
    return [path]


def with_transcript(folder: Path, text: str, name: str = "bad.srt") -> list[object]:
    (folder / name).write_text(text)
    return [folder / "call.wav", "--transcript", folder / name]


@bad("no such file or folder")
def nothing_there(folder: Path) -> list[object]:
    return [folder / "gone.mp4"]


@bad("is an address, and nothing is fetched")
def an_address(folder: Path) -> list[object]:
    return ["https://example.org/call.wav"]


@bad("neither a file nor a folder")
def a_pipe(folder: Path) -> list[object]:
    os.mkfifo(folder / "pipe.wav")
    return [folder / "pipe.wav"]


@bad("cannot be read (File name too long)")
def an_endless_name(folder: Path) -> list[object]:
    return [folder / ("a" * 300 + ".wav")]


@bad("is not media")
def text_that_is_called_mp4(folder: Path) -> list[object]:
    (folder / "notes.mp4").write_text("We won!\n")
    return [folder / "notes.mp4"]


@bad("is not media")
def bytes_without_a_name(folder: Path) -> list[object]:
    (folder / "data").write_bytes(bytes(range(256)) * 20)
    return [folder / "data"]


@bad("not a transcript of a known format")
def text_without_a_name(folder: Path) -> list[object]:
    (folder / "notes").write_text("Dear diary,\nwe won.\n")
    return [folder / "notes"]


@bad("is empty")
def an_empty_recording(folder: Path) -> list[object]:
    (folder / "empty.mp4").touch()
    return [folder / "empty.mp4"]


@bad("the file is empty")
def an_empty_transcript(folder: Path) -> list[object]:
    (folder / "empty.srt").touch()
    return [folder / "empty.srt"]


@bad("cut off")
def a_truncated_mp4(folder: Path) -> list[object]:
    whole = write_mp4(folder / "whole.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    return [folder / "half.mp4", "--transcript", folder / "call.srt"]


@bad("zero length")
def sound_of_zero_length(folder: Path) -> list[object]:
    return [write_wav(folder / "silent.wav", seconds=0)]


@bad("silent.wav")
def sound_of_zero_length_with_a_transcript(folder: Path) -> list[object]:
    return [write_wav(folder / "silent.wav", seconds=0), "--transcript", folder / "call.srt"]


@bad("film.mp4")
def a_video_without_frames(folder: Path) -> list[object]:
    return [write_mp4(folder / "film.mp4", n_frames=0), "--transcript", folder / "call.srt"]


@bad("film.avi")
def a_video_that_lost_its_frames(folder: Path) -> list[object]:
    whole = write_mp4(folder / "film.avi").read_bytes()
    (folder / "film.avi").write_bytes(whole[: whole.index(b"movi") + 4])
    return [folder / "film.avi", "--transcript", folder / "call.srt"]


@bad("40.0 s without a transcript")
def a_long_recording_alone(folder: Path) -> list[object]:
    return [write_wav(folder / "long.wav", seconds=40)]


@bad("above the limit of 1 s")
def a_recording_above_the_limit(folder: Path) -> list[object]:
    return [folder / "call.wav", "--limit-duration", 1]


@bad("past the end of the recording at 2.000 s")
def times_past_the_recording(folder: Path) -> list[object]:
    return with_transcript(folder, SRT.replace("00:00:0", "00:00:1"))


@bad("past the end of the recording")
def stm_times_past_the_recording(folder: Path) -> list[object]:
    return with_transcript(folder, STM.replace("1.8", "29.8"), "bad.stm")


@bad("before it starts")
def a_time_that_ends_before_it_starts(folder: Path) -> list[object]:
    return with_transcript(folder, STM.replace("1.8", "0.2"), "bad.stm")


@bad("gives no times")
def a_transcript_without_times_for_a_recording(folder: Path) -> list[object]:
    return [folder / "call.wav", "--transcript", *with_json(folder, conversation(1, ["We won!"]))]


@bad("3 conversations for one recording")
def many_conversations_for_one_recording(folder: Path) -> list[object]:
    return [folder / "call.wav", "--transcript", folder / "talk.json"]


@bad("appears twice")
def an_utterance_id_twice(folder: Path) -> list[object]:
    turns = [{"utterance_ID": 1, "text": "We won!"}, {"utterance_ID": 1, "text": "Really?"}]
    return with_json(folder, {"conversation_ID": 1, "conversation": turns})


@bad("comes after 2")
def utterance_ids_that_fall(folder: Path) -> list[object]:
    turns = [{"utterance_ID": 2, "text": "We won!"}, {"utterance_ID": 1, "text": "Really?"}]
    return with_json(folder, {"conversation_ID": 1, "conversation": turns})


@bad("appears twice")
def a_conversation_id_twice(folder: Path) -> list[object]:
    return with_json(folder, conversation(1, ["We won!"]), conversation(1, ["Really?"]))


@bad("has no utterances")
def a_conversation_without_utterances(folder: Path) -> list[object]:
    return with_json(folder, conversation(1, []))


@bad("every utterance is empty")
def empty_text(folder: Path) -> list[object]:
    return with_json(folder, conversation(1, ["", "  "]), conversation(2, [""]))


@bad("every utterance is empty")
def turns_without_words(folder: Path) -> list[object]:
    (folder / "call.rttm").write_text("SPEAKER call 1 0.1 0.8 <NA> <NA> Anna <NA> <NA>\n")
    return [folder / "call.rttm"]


@bad("unknown emotion 'boredom'")
def an_unknown_emotion(folder: Path) -> list[object]:
    turns = [{"utterance_ID": 1, "text": "Well.", "emotion": "boredom"}]
    return with_json(folder, {"conversation_ID": 1, "conversation": turns})


@bad("there is no utterance 7")
def a_pair_that_points_nowhere(folder: Path) -> list[object]:
    return with_json(folder, conversation(1, ["We won!"], **{"emotion-cause_pairs": [["1_joy", "7"]]}))


@bad("is not UTF-8")
def a_transcript_in_no_encoding(folder: Path) -> list[object]:
    (folder / "bad.srt").write_bytes(SRT.encode().replace(b"Really", b"Ol\x81\x8d\x8f\x90\xff"))
    return [folder / "call.wav", "--transcript", folder / "bad.srt"]


@bad("is not UTF-8")
def a_transcript_in_no_encoding_without_a_suffix(folder: Path) -> list[object]:
    (folder / "bad").write_bytes(SRT.encode().replace(b"Really", b"Ol\x81\x8d\x8f\x90\xff"))
    return [folder / "bad"]


@bad("is NUL")
def a_nul_character(folder: Path) -> list[object]:
    (folder / "bad.srt").write_bytes(SRT.encode() + b"\0")
    return [folder / "bad.srt"]


@bad("not JSON")
def half_a_json_file(folder: Path) -> list[object]:
    (folder / "bad.json").write_text(conversations_json(2)[:-40])
    return [folder / "bad.json"]


@bad("nested too deeply")
def json_that_is_a_tower(folder: Path) -> list[object]:
    (folder / "bad.json").write_text("[" * 100_000 + "]" * 100_000)
    return [folder / "bad.json"]


@bad("is a folder: a transcript must say which clip is whose")
def a_folder_alone(folder: Path) -> list[object]:
    return [folder]


@bad("no clip of this transcript")
def a_folder_without_a_clip(folder: Path) -> list[object]:
    (folder / "clips").mkdir()
    return [folder / "clips", "--transcript", folder / "talk.json"]


@bad("is not a clip's name")
def a_clip_outside_the_folder(folder: Path) -> list[object]:
    turns = [{"utterance_ID": 1, "text": "We won!", "video_name": "../call.wav"}]
    return [folder, "--transcript", *with_json(folder, {"conversation_ID": 1, "conversation": turns})]


@bad("is a transcript itself")
def two_transcripts(folder: Path) -> list[object]:
    return [folder / "call.srt", "--transcript", folder / "call.stm"]


@bad("is a recording, not a transcript")
def two_recordings(folder: Path) -> list[object]:
    return [folder / "call.wav", "--transcript", write_mp4(folder / "talk.mp4")]


@bad("is a folder, not a transcript")
def a_folder_as_transcript(folder: Path) -> list[object]:
    return [folder / "call.wav", "--transcript", folder]


@bad("no such file or folder")
def a_transcript_that_is_not_there(folder: Path) -> list[object]:
    return [folder / "call.wav", "--transcript", folder / "gone.srt"]


@bad("only audio and face may be used")
def a_transcript_whose_words_may_not_be_used(folder: Path) -> list[object]:
    return [folder / "call.srt", "--modality", "audio", "--modality", "face"]


@bad("its folder does not exist")
def an_output_in_no_folder(folder: Path) -> list[object]:
    return [folder / "call.srt", "--report", folder / "gone" / "talk.html"]


@bad("is a folder")
def an_output_that_is_a_folder(folder: Path) -> list[object]:
    return [folder / "call.srt", "--submission", folder]


@bad("both name")
def one_file_for_two_outputs(folder: Path) -> list[object]:
    return [folder / "call.srt", "--json", folder / "out", "--report", folder / "x" / ".." / "out"]


@bad("both name")
def a_file_of_many_for_two_outputs(folder: Path) -> list[object]:
    turns = [{"utterance_ID": 1, "text": "We won!", "start_s": 0, "end_s": 1}]
    many = [{"conversation_ID": k, "conversation": turns} for k in (1, 2)]
    return [*with_json(folder, *many), "--vtt", folder / "out.vtt", "--json", folder / "out.2.vtt"]


@bad("would replace what is analysed")
def an_output_over_the_input(folder: Path) -> list[object]:
    (folder / "link.srt").symlink_to(folder / "call.srt")
    return [folder / "call.srt", "--vtt", folder / "link.srt"]


@bad("would replace what is analysed")
def an_output_over_a_clip(folder: Path) -> list[object]:
    shutil.copy(folder / "call.wav", folder / "dia1utt1.wav")
    return [folder, "--transcript", folder / "talk.json", "--json", folder / "dia1utt1.wav"]


@bad("only --json goes to standard output")
def a_report_to_standard_output(folder: Path) -> list[object]:
    return [folder / "call.srt", "--report", "-"]


@bad("cannot be written")
def an_output_behind_links_in_a_circle(folder: Path) -> list[object]:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    return [folder / "call.srt", "--json", folder / "a"]


@bad("utterances without times (1, 2, 3)")
def subtitles_without_times(folder: Path) -> list[object]:
    return [folder / "talk.json", "--vtt", folder / "talk.vtt"]


@bad("no bundle at")
def no_bundle(folder: Path) -> list[object]:
    return [folder / "call.srt", "--bundle", folder / "gone"]


@bad("has no bundle.json")
def a_folder_that_is_no_bundle(folder: Path) -> list[object]:
    return [folder / "call.srt", "--bundle", folder]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHM_BUNDLE", str(folder / "no bundle here"))
    words, maker = BAD[name]
    arguments = maker(folder)
    before = contents(folder)
    ended = run(*arguments)
    assert_refused(ended, words)
    assert contents(folder) == before
    assert "We won" not in "\n".join(ended.err), "what is said stays out of messages"


def test_a_refusal_has_no_stack_trace_in_a_process_of_its_own(folder: Path) -> None:
    (folder / "notes.mp4").write_text("We won!\n")
    done = subprocess.run([*COMMAND, str(folder / "notes.mp4")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'INPUT'"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--modality", "smell"], "'smell' is not one of"),
        (["--threads", "0"], "0 is not in the range"),
        (["--llm", "gguf"], "'gguf' is not one of"),
        (["--llm-url", "http://127.0.0.1:8000"], "--llm-url is for --llm vllm"),
        (["--limit-duration", "0"], "0"),
        (["--quiet"], "--quiet shows nothing"),
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, run: Run, arguments: list[str], words: str) -> None:
    ended = run(*([folder / "call.srt"] if arguments else []), *arguments)
    assert ended.code == 2
    assert words in "\n".join(ended.err)
    assert not any("Traceback" in line for line in ended.err)


def test_swapped_arguments_are_answered_with_the_command_that_works(folder: Path, run: Run) -> None:
    ended = run(folder / "call.srt", "--transcript", folder / "call.wav")
    assert_refused(ended)
    assert ended.err[1] == f"hint: mechm analyze {folder / 'call.wav'} --transcript {folder / 'call.srt'}"


def test_an_unwritable_folder_is_refused_before_the_work(folder: Path, run: Run) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert_refused(run(folder / "call.srt", "--json", locked / "out.json"), "may not be written to")


# What INPUT is.


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.srt", b"\x00\x01", "transcript"),
        ("a.MP4", b"text", "recording"),
        ("a.tar", b"text", "transcript"),
        ("a", SRT.encode(), "transcript"),
        ("a", "﻿Zoë: 你好".encode(), "transcript"),
        ("a", "Zoë".encode("utf-16"), "transcript"),
        ("a", "Zoë".encode("latin-1"), "transcript"),
        ("a", b"", "transcript"),
        ("a", b"RIFF\x24\x00\x00\x00WAVE", "recording"),
        ("a", struct.pack(">I4s", 32, b"ftypisom"), "recording"),
    ],
)
def test_the_kind_comes_from_the_name_or_else_from_the_content(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert kind_of(tmp_path / name) == kind
    assert kind_of(tmp_path) == "folder"


def test_what_is_read_is_what_was_given(folder: Path) -> None:
    (alone,) = load_conversations(folder / "call.wav")
    assert [(u.id, u.text, u.start_s, u.end_s) for u in alone.utterances] == [(1, None, 0.0, 2.0)]
    assert alone.media == folder / "call.wav"
    (timed,) = load_conversations(folder / "call.wav", folder / "call.stm")
    assert [(u.speaker, u.start_s) for u in timed.utterances] == [("Anna", 0.1), ("Ben", 1.0)]
    assert timed.media == folder / "call.wav"
    (words,) = load_conversations(folder / "call.srt")
    assert words.media is None
    assert len(load_conversations(folder / "talk.json")) == 3


def test_clips_belong_to_their_utterances(folder: Path) -> None:
    shutil.copy(folder / "call.wav", folder / "dia2utt3.wav")
    conversations = load_conversations(folder, folder / "talk.json")
    clips = {(c.id, u.id): u.media for c in conversations for u in c.utterances if u.media}
    assert clips == {("2", 3): folder / "dia2utt3.wav"}


def test_a_picture_is_one_utterance_without_times(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "face.png")
    (conversation,) = load_conversations(tmp_path / "face.png")
    (utterance,) = conversation.utterances
    assert (utterance.media, utterance.start_s, utterance.text) == (tmp_path / "face.png", None, None)


def test_a_file_name_in_no_encoding_is_refused_readably(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\ufffd\.wav: no such file"):
        load_conversations(tmp_path / "gone\udcff.wav")


# With a bundle: random weights, so that everything but the answers' meaning can be looked at.


@pytest.fixture
def analyze(run: Run, tiny_bundle: Path) -> Run:
    """As `run`, with the tiny bundle."""

    def analyze(*arguments: object) -> Ended:
        return run(*arguments, "--bundle", tiny_bundle, "--threads", 1)

    return analyze


def test_words_alone(folder: Path, analyze: Run) -> None:
    ended = analyze(folder / "call.srt")
    assert (ended.code, ended.err) == (0, [])
    assert "We won!" in ended.out
    assert "2 utterances, 2 speakers" in ended.out
    assert not ended.out.endswith("\n\n")


def test_a_recording_with_its_transcript(folder: Path, analyze: Run) -> None:
    ended = analyze(folder / "call.wav", "--transcript", folder / "call.stm", "--json", "-")
    assert ended.code == 0
    answer = json.loads(ended.out)
    assert [u["modalities"] for u in answer["utterances"]] == [["text", "audio"]] * 2
    assert set(answer["utterances"][0]["missing"]) == {"face", "scene"}
    assert sum(answer["utterances"][0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_a_recording_alone(folder: Path, analyze: Run) -> None:
    ended = analyze(folder / "call.wav", "--json", "-")
    (utterance,) = json.loads(ended.out)["utterances"]
    assert utterance["modalities"] == ["audio"]


def test_modalities_and_precision_are_those_asked_for(folder: Path, analyze: Run) -> None:
    arguments = [folder / "call.wav", "--transcript", folder / "call.stm", "--json", "-"]
    answers = [
        json.loads(analyze(*arguments, *more).out)["utterances"]
        for more in (["--modality", "audio"], ["--precision", "fp32"], ["--precision", "int8"])
    ]
    assert [u["modalities"] for u in answers[0]] == [["audio"]] * 2
    probabilities = [[u["probabilities"] for u in answer] for answer in answers[1:]]
    assert probabilities[0] != probabilities[1]
    for one, other in zip(*probabilities, strict=True):
        assert one == pytest.approx(other, abs=0.1)


def test_the_sample_fills_every_form(tmp_path: Path, repository: Path, analyze: Run) -> None:
    sample = repository / "sample"
    files = {name: tmp_path / f"out.{name}" for name in ("json", "vtt", "submission", "report")}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    ended = analyze(sample / "conversation.mp4", "--transcript", sample / "conversation.srt", *options)
    assert ended.code == 0
    assert ended.err == [f"wrote {path}" for path in files.values()]
    assert sorted(tmp_path.iterdir()) == sorted(files.values()), "nothing half-written stays behind"
    answer = json.loads(files["json"].read_text())
    assert len(answer["utterances"]) == 14
    assert {modality for u in answer["utterances"] for modality in u["modalities"]} >= {"text", "audio", "scene"}
    (subtitles,) = read_transcript(files["vtt"])
    (words,) = read_transcript(sample / "conversation.srt")
    assert [(u.speaker, u.start_s) for u in subtitles.utterances] == [(u.speaker, u.start_s) for u in words.utterances]
    pairs = read_submission(files["submission"])
    assert {len(found) for found in pairs.values()} == {len(answer["pairs"])}
    page = files["report"].read_text()
    assert "<title>conversation" in page
    assert "waffles" in page


def test_the_phone_call(mechm_data: Path, analyze: Run) -> None:
    call = mechm_data / "media" / "phone_call.wav"
    ended = analyze(call, "--transcript", call.with_suffix(".stm"))
    assert ended.code == 0
    assert "13 utterances, 2 speakers" in ended.out
    ended = analyze(call, "--transcript", call.with_suffix(".rttm"), "--json", "-")
    assert {tuple(u["modalities"]) for u in json.loads(ended.out)["utterances"]} == {("audio",)}


def test_a_video_without_sound(mechm_data: Path, analyze: Run) -> None:
    ended = analyze(mechm_data / "media" / "carphone_no_audio.mp4", "--json", "-")
    (utterance,) = json.loads(ended.out)["utterances"]
    assert "scene" in utterance["modalities"]
    assert utterance["missing"]["audio"] == "no audio track"


def test_a_broken_clip_costs_its_utterance_a_modality_only(folder: Path, analyze: Run) -> None:
    clips = folder / "clips"
    clips.mkdir()
    whole = write_mp4(clips / "dia1utt1.mp4").read_bytes()
    (clips / "dia1utt2.mp4").write_bytes(whole[: len(whole) // 2])
    ended = analyze(clips, "--transcript", *with_json(folder, conversation(1, ["We won!", "Really?", "Yes."])))
    assert (ended.code, ended.err) == (0, [])
    notes = [line for line in ended.out.splitlines() if line.startswith("×")]
    assert any("scene missing in 2: dia1utt2.mp4" in line for line in notes), notes
    assert any("scene missing in 3: no clip" in line for line in notes), notes
    ended = analyze(clips, "--transcript", folder / "bad.json", "--json", "-")
    used = [u["modalities"] for u in json.loads(ended.out)["utterances"]]
    assert "scene" in used[0]
    assert used[1:] == [["text"], ["text"]]


def test_many_conversations_are_all_shown_and_written(folder: Path, analyze: Run) -> None:
    ended = analyze(folder / "talk.json", "--json", folder / "out.jsonl", "--submission", folder / "out.json")
    assert ended.code == 0
    assert [line for line in ended.out.splitlines() if line.startswith("Conversation")] == [
        f"Conversation {number}" for number in (1, 2, 3)
    ]
    lines = (folder / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["conversation_id"] for line in lines] == ["1", "2", "3"]
    assert set(read_submission(folder / "out.json")) == {"1", "2", "3"}
    printed = analyze(folder / "talk.json", "--json", "-", "--quiet")
    same = [{**json.loads(line), "timings_ms": {}} for line in printed.out.splitlines()]
    assert same == [{**json.loads(line), "timings_ms": {}} for line in lines]


def test_one_failure_among_many_loses_nothing_else(folder: Path, analyze: Run) -> None:
    times = {"start_s": 0, "end_s": 1}
    many = [
        {"conversation_ID": number, "conversation": [{"utterance_ID": 1, "text": text, **times}]}
        for number, text in (("x", "We won!"), ("y", ""), ("z", ""))
    ]
    (path,) = with_json(folder, *many)
    ended = analyze(path, "--json", folder / "out.jsonl", "--vtt", folder / "out.vtt", "--quiet")
    assert ended.code == 2
    assert [line.partition(": ")[0] for line in ended.err] == ["not analysed", "not analysed", "error", "hint"]
    assert ended.err[0].startswith("not analysed: y: ")
    assert ended.err[2] == "error: 2 of 3 conversations could not be analysed"
    (line,) = (folder / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["conversation_id"] == "x"
    assert [file.name for file in folder.glob("out*.vtt")] == ["out.x.vtt"], "named as if none had failed"


def test_when_all_fail_nothing_is_written(folder: Path, analyze: Run) -> None:
    clips = folder / "clips"
    clips.mkdir()
    for number in (1, 2):
        (clips / f"dia{number}utt1.wav").write_bytes(b"RIFF")
    (path,) = with_json(folder, conversation(1, [""]), conversation(2, [""]))
    ended = analyze(clips, "--transcript", path, "--report", folder / "out.html")
    assert ended.code == 2
    assert ended.err[-2] == "error: 2 of 2 conversations could not be analysed"
    assert not (folder / "out.html").exists()


def test_a_llama_that_the_bundle_lacks_is_no_silent_none(analyze: Run, folder: Path) -> None:
    ended = analyze(folder / "call.srt", "--llm", "onnx")
    assert ended.code == 2
    assert "no Llama" in ended.err[0]
    assert "--llm none" in ended.err[1]
    assert analyze(folder / "call.srt", "--llm", "none").code == 0


def test_5000_utterances(tmp_path: Path, tiny_bundle: Path) -> None:
    """They work, in seconds, and a terminal sees how far it is while the output stays a file."""
    texts = [f"This is the number {k}, and it surprised nobody at all." for k in range(5000)]
    (path,) = with_json(tmp_path, conversation(1, texts))
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        while True:
            try:
                seen.append(os.read(ours, 65536))
            except OSError:  # how Linux says that a terminal's other end is closed
                return
            if not seen[-1]:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    start_s = time.monotonic()
    try:
        done = subprocess.run(
            [*COMMAND, str(path), "--bundle", str(tiny_bundle), "--json", "-"],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            check=False,
        )
    finally:
        os.close(theirs)
        watcher.join(10)
        os.close(ours)
    elapsed_s = time.monotonic() - start_s
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["utterances"]) == 5000
    assert elapsed_s < 20
    drawn = b"".join(seen).decode()
    assert "Analysing" in drawn
    percents = {int(word) for word in drawn.replace("%", " % ").split() if word.isdigit()}
    assert len([percent for percent in percents if 0 < percent < 100]) >= 3, "the bar moved inside the conversation"


@pytest.fixture
def slow_process(tmp_path: Path, tiny_bundle: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An analysis that takes half a minute and has printed its first conversation."""
    (path,) = with_json(tmp_path, *(conversation(k, ["We won!", "Really?"] * 50) for k in range(1, 1001)))
    command = [*COMMAND, str(path), "--bundle", str(tiny_bundle), "--report", str(tmp_path / "out.html")]
    # A shell starts background jobs with SIGINT ignored, and children would inherit that from a test run in one.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, inherited)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_an_interrupt_ends_it_without_a_trace(slow_process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    slow_process.send_signal(signal.SIGINT)
    _, err = slow_process.communicate(timeout=30)
    assert slow_process.returncode == 130
    assert err.decode().splitlines() == ["interrupted"]
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_a_terminal_without_arrows_gets_question_marks(folder: Path, tiny_bundle: Path) -> None:
    done = subprocess.run(
        [*COMMAND, str(folder / "call.srt"), "--bundle", str(tiny_bundle)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "We won!" in done.stdout
    assert "????" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_costs_no_file(folder: Path, tiny_bundle: Path) -> None:
    command = [*COMMAND, str(folder / "call.srt"), "--bundle", str(tiny_bundle)]
    for options, written in (([], []), (["--json", str(folder / "o.json")], [f"wrote {folder / 'o.json'}"])):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*command, *options], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[: len(written) + 1] == [
            *written,
            "error: cannot print: No space left on device",
        ]
        assert "Traceback" not in done.stderr
    assert json.loads((folder / "o.json").read_text())["conversation_id"] == "call"


def test_a_reader_that_stops_reading_costs_no_file(folder: Path, tiny_bundle: Path) -> None:
    command = [*COMMAND, str(folder / "call.srt"), "--bundle", str(tiny_bundle), "--json", str(folder / "o.json")]
    theirs, ours = os.pipe()
    os.close(theirs)
    done = subprocess.run(command, stdout=ours, stderr=subprocess.PIPE, text=True, check=False)
    os.close(ours)
    assert (done.returncode, done.stderr) == (1, f"wrote {folder / 'o.json'}\n")


def test_it_needs_nothing_of_the_training_side(
    folder: Path, tiny_bundle: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = f"""
import sys
sys.argv = ["mechm", "analyze", {str(folder / "call.wav")!r}, "--transcript", {str(folder / "call.stm")!r},
            "--bundle", {str(tiny_bundle)!r}]
from mechm.cli import main
main()
"""
    without = ("torch", "transformers", "peft", "onnx", "vllm", "safetensors", "scipy", "mechm_export")
    done = fresh_python(code, without=without)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 utterances" in done.stdout


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("a changed byte", "was changed"),
        ("a missing file", "is missing"),
        ("a newer schema", "has schema 2"),
        ("a path that leaves", "leaves its folder"),
        ("a link", "is a link"),
    ],
)
def test_a_bad_bundle_is_refused_in_one_line(
    damage: str, words: str, folder: Path, tiny_bundle: Path, run: Run
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, folder / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    victim = bundle / next(name for name in manifest["files"] if name.startswith("onnx/"))
    if damage == "a changed byte":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "a missing file":
        victim.unlink()
    elif damage == "a link":
        moved = victim.rename(folder / "elsewhere.onnx")
        victim.symlink_to(moved)
    else:
        from mechm_runtime.bundle.manifest import manifest_id

        if damage == "a newer schema":
            manifest["schema_version"] = 2
        else:
            manifest["files"]["../elsewhere.onnx"] = {"size_bytes": 1, "sha256": "0" * 64}
        manifest["id"] = manifest_id(manifest["preset"], manifest)
        (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert_refused(run(folder / "call.srt", "--bundle", bundle), words)


# In time


def test_a_deadline_leaves_out_what_does_not_fit(
    run: Run, folder: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = CostEstimator.__init__

    def slow_scenes(self: CostEstimator) -> None:
        begin(self)
        self.observe("scene", 1, 1e9)

    monkeypatch.setattr(CostEstimator, "__init__", slow_scenes)
    video = [
        write_mp4(folder / "call.mp4"),
        "--transcript",
        folder / "call.srt",
        "--bundle",
        tiny_bundle,
        "--json",
        "-",
    ]
    ended = run(*video, "--deadline-ms", 60_000)
    assert ended.code == 0
    for utterance in json.loads(ended.out)["utterances"]:
        assert utterance["missing"]["scene"] == "left out to meet the deadline of 60000 ms"
    assert "scene" in json.loads(run(*video).out)["utterances"][0]["modalities"]
    assert run(*video, "--deadline-ms", 0).code == 2
