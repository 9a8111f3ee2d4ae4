"""Hostile input is refused, survived or killed, with one line that says why."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import mechm_runtime.media as media
from mechm_runtime.errors import InputError, MediaError, MissingExtraError
from mechm_runtime.media import MediaLimits, MediaReader, probe, read_segments
from mechm_runtime.media.protocol import ProtocolError, array_spec


@pytest.fixture(scope="module")
def reader() -> Iterator[MediaReader]:
    with MediaReader(MediaLimits(timeout_s=60)) as reader:
        yield reader


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Two seconds of noise."""
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(16_000)
        output.writeframes(np.random.default_rng(0).integers(-9000, 9000, 32_000, dtype=np.int16).tobytes())
    return path


def encode_video(path: Path, *, seconds: int = 8, faststart: bool = False) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as output:
        stream: Any = output.add_stream("libx264", rate=25, options={"g": "25", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        noise = np.random.default_rng(0)
        for _ in range(25 * seconds):
            pixels = noise.integers(0, 255, (120, 160, 3), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return path


def wav_header(n_bytes: int) -> bytes:
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + n_bytes, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", n_bytes
    )


NOT_MEDIA = {
    "empty.wav": (b"", "is empty"),
    "text.mp4": (b"hello world\n" * 500, "is not media"),
    "random.mp4": (np.random.default_rng(5).bytes(20_000), "is not media"),
    "silent.wav": (wav_header(0), "zero length"),
    "list.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://SOUND\n#EXT-X-ENDLIST\n", "is not media"),
    "list.mp4": (b"ffconcat version 1.0\nfile 'SOUND'\n", "is not media"),
    "call.sdp": (b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n", "is not media"),
    "talk.srt": (b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n", "is not media"),
    "broken.jpg": (b"\xff\xd8\xff\xe0" + b"\0" * 500, "cannot be decoded"),
    "page.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "is not media"),
}


@pytest.mark.parametrize("name", NOT_MEDIA)
def test_what_is_not_media_is_refused(tmp_path: Path, reader: MediaReader, sound: Path, name: str) -> None:
    content, message = NOT_MEDIA[name]
    path = tmp_path / name
    path.write_bytes(content.replace(b"SOUND", os.fsencode(sound)))
    with pytest.raises(MediaError, match=message) as caught:
        reader.read_segments(path, [(0.0, 1.0)])
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.hint


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path, reader: MediaReader) -> None:
    fifo = tmp_path / "pipe.wav"
    os.mkfifo(fifo)
    begun_s = time.monotonic()
    for path, message in (
        (fifo, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "nothing.wav", "does not exist"),
        (tmp_path / "nothing" / "at all.wav", "does not exist"),
    ):
        with pytest.raises(MediaError, match=message):
            reader.probe(path)
    assert time.monotonic() - begun_s < 30


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(sound: Path, reader: MediaReader) -> None:
    sound.chmod(0)
    with pytest.raises(MediaError, match="may not be read"):
        reader.probe(sound)


def test_an_mp4_without_its_index_is_named_as_such(tmp_path: Path, reader: MediaReader) -> None:
    whole = encode_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(MediaError, match="its index \\(moov\\) is missing"):
        reader.probe(tmp_path / "cut.mp4")


def test_what_is_left_of_a_cut_off_recording_is_used(tmp_path: Path, reader: MediaReader) -> None:
    whole = encode_video(tmp_path / "whole.mp4", faststart=True).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])

    recording = reader.read_segments(tmp_path / "cut.mp4", [(0.0, 1.0), (6.0, 7.0)])

    assert recording.info.duration_s == pytest.approx(8.0)
    left, lost = recording.segments
    assert left.frames is not None
    assert len(left.frames) == 3
    assert lost.frames is None
    assert lost.missing["video"].startswith("damaged or cut off after ")


def test_sound_that_is_cut_off_is_used_and_says_where_it_ends(tmp_path: Path, reader: MediaReader) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 80 * 16_000)).astype(np.float32)
    path = tmp_path / "whole.m4a"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream: Any = output.add_stream("aac", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (tmp_path / "cut.m4a").write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    early, late = reader.read_segments(tmp_path / "cut.m4a", [(1.0, 2.0), (70.0, 71.0)]).segments
    (alone,) = reader.read_segments(tmp_path / "cut.m4a", [(70.0, 71.0)]).segments

    assert early.samples is not None
    assert len(early.samples) == 16_000
    for segment in (late, alone):
        assert segment.samples is None
        told = re.fullmatch(r"damaged or cut off after (\d+\.\d) s", segment.missing["audio"])
        assert told is not None
        assert 30 < float(told[1]) < 50


def test_damage_in_the_middle_is_passed_over(tmp_path: Path, reader: MediaReader) -> None:
    content = bytearray(encode_video(tmp_path / "whole.mp4", faststart=True).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = np.random.default_rng(1).bytes(20_000)
    (tmp_path / "damaged.mp4").write_bytes(content)
    recording = reader.read_segments(tmp_path / "damaged.mp4", [(0.0, 1.0), (3.5, 4.5), (7.0, 8.0)])
    assert recording.segments[0].frames is not None
    assert recording.segments[2].frames is not None


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_bomb_is_refused_by_its_header(tmp_path: Path, reader: MediaReader) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, zlib.compress(b"\0" * 100_000)))
    with pytest.raises(MediaError, match="60000 x 60000 pixels, above the limit"):
        reader.probe(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not enforce RLIMIT_AS")
def test_memory_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(5_900, 5_900, zlib.compress(bytes(5_900 * (3 * 5_900 + 1)), 1)))
    with pytest.raises(MediaError, match="needs more than 256 MiB of memory"):
        probe(path, MediaLimits(memory_bytes=256 << 20))
    assert probe(path).width == 5_900


def worker_pid(reader: MediaReader) -> int:
    reader.start()
    process = reader._process
    assert process is not None
    return process.pid


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs signals")
def test_a_hung_process_is_killed_in_time_and_replaced(sound: Path) -> None:
    with MediaReader(MediaLimits(timeout_s=0.5)) as reader:
        pid = worker_pid(reader)
        os.kill(pid, signal.SIGSTOP)
        begun_s = time.monotonic()
        with pytest.raises(MediaError, match=r"sound.wav: decoding took longer than 0.5 s") as caught:
            reader.probe(sound)
        assert time.monotonic() - begun_s < 5
        assert "timeout_s" in caught.value.hint
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

        reader.limits = MediaLimits(timeout_s=60)
        assert reader.probe(sound).duration_s == 2.0
        assert worker_pid(reader) != pid


def test_a_process_that_dies_is_an_error_and_replaced(sound: Path, tmp_path: Path) -> None:
    with MediaReader() as reader:
        segments = reader.iter_segments(sound, [(i / 1000, i / 1000 + 1) for i in range(1000)])
        next(segments)
        os.kill(worker_pid_of(reader), signal.SIGKILL)
        with pytest.raises(MediaError, match="the decoding process failed"):
            list(segments)
        assert reader.probe(sound).duration_s == 2.0


def test_an_unfinished_iterator_blocks_neither_its_thread_nor_the_end(sound: Path) -> None:
    with MediaReader() as reader:
        segments = reader.iter_segments(sound, [(0.0, 1.0), (1.0, 2.0)])
        next(segments)
        with pytest.raises(RuntimeError, match="segment iterator"):
            reader.probe(sound)
    with pytest.raises(MediaError, match="closed before it was done"):
        next(segments)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a pipe holds what it holds")
def test_decoding_goes_on_while_its_reader_does_something_else(sound: Path) -> None:
    import fcntl
    import termios

    n_bytes = 2 * 16_000 * 4
    with MediaReader() as reader:
        segments = reader.iter_segments(sound, [(0.0, 2.0)] * 6)
        next(segments)
        assert reader._process is not None
        assert reader._process.stdout is not None
        until_s = time.monotonic() + 10
        waiting = 0
        while waiting < 5 * n_bytes - 8192 and time.monotonic() < until_s:
            (waiting,) = struct.unpack("i", fcntl.ioctl(reader._process.stdout, termios.FIONREAD, b"1234"))
        assert waiting >= 5 * n_bytes - 8192, "all of the rest but what the reader has buffered"
        assert len(list(segments)) == 5


def worker_pid_of(reader: MediaReader) -> int:
    """The running process of a reader that is in the middle of an answer (`start` would wait for it)."""
    assert reader._process is not None
    return reader._process.pid


HOSTILE_REPLIES = {
    "nothing": "b''",
    "no json": "message(b'{{{{')",
    "no object": "message(b'[]')",
    "endless header": "struct.pack('>I', 2**31) + b'x'",
    "unknown kind": 'message(b\'{"kind": "run"}\')',
    "segment not asked for": "info + segment(7, [32000])",
    "huge array": "info + segment(0, [2**40])",
    "negative axis": "info + segment(0, [-1])",
    "wrong dtype": "info + segment(0, [16000], 'object')",
    "cut off": "info + segment(0, [16000]) + bytes(100)",
    "facts of another type": 'message(b\'{"kind": "info", "info": {"duration_s": "long"}}\')',
    "done too early": 'info + message(b\'{"kind": "done", "notes": []}\')',
}


@pytest.mark.parametrize("name", HOSTILE_REPLIES)
def test_a_process_that_was_taken_over_is_not_believed(sound: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    script = f"""
import json, struct, sys
def message(header): return struct.pack('>I', len(header)) + header
def segment(index, shape, dtype='float32'):
    return message(json.dumps(dict(kind='segment', index=index, samples=True, frames=False, missing={{}},
                                   arrays=[dict(dtype=dtype, shape=shape)])).encode())
info = message(b'{{"kind": "info", "info": {{}}}}')
sys.stdout.buffer.write({HOSTILE_REPLIES[name]})
"""
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real([sys.executable, "-c", script], **rest))
    with pytest.raises(MediaError, match="the decoding process failed"):
        read_segments(sound, [(0.0, 1.0)], limits=MediaLimits(timeout_s=30))


def test_array_shapes_are_held_against_the_caps() -> None:
    good = {"dtype": "uint8", "shape": [3, 360, 640, 3]}
    assert array_spec(good, dtype="uint8", max_shape=(3, 640, 640, 3)).n_bytes == 3 * 360 * 640 * 3
    for shape in ([3, 641, 640, 3], [3, 360, 640], [0, 360, 640, 3], [3, 360.0, 640, 3], [True, 360, 640, 3], "3"):
        with pytest.raises(ProtocolError):
            array_spec({"dtype": "uint8", "shape": shape}, dtype="uint8", max_shape=(3, 640, 640, 3))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0.0, 1.0), (5.0, 4.0)], "ends at 4.000 s, before it starts at 5.000 s"),
        ([(-1.0, 1.0)], "not a stretch"),
        ([(0.0, float("nan"))], "not a stretch"),
        ([(0.0, float("inf"))], "not a stretch"),
        ([(0.0, 1e9)], "above the limit"),
        ([(0.0, 1.0)] * 20_001, "20,001 spans"),
    ],
)
def test_spans_that_are_no_time_are_refused(
    sound: Path, reader: MediaReader, spans: list[tuple[float, float]], message: str
) -> None:
    with pytest.raises(MediaError, match=message):
        reader.read_segments(sound, spans)


def test_5000_spans_work(sound: Path, reader: MediaReader) -> None:
    spans = [(i / 5000, i / 5000 + 0.03) for i in range(5000)]
    calls: list[int] = []
    segments = reader.read_segments(sound, spans, progress=lambda done, _: calls.append(done)).segments
    assert calls == list(range(1, 5001))
    assert all(segment.samples is not None and len(segment.samples) == 480 for segment in segments)


@pytest.mark.parametrize("field", [*MediaLimits().to_dict()])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_zero(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        MediaLimits(**{field: value})  # type: ignore[arg-type]


def test_too_little_memory_to_start_is_refused() -> None:
    with pytest.raises(InputError, match="memory_bytes"):
        MediaLimits(memory_bytes=100 << 20)


def test_limits_survive_json() -> None:
    limits = MediaLimits(max_pixels=7, timeout_s=1.5)
    assert MediaLimits.from_dict(limits.to_dict()) == limits


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_knows_no_secrets_and_writes_no_files(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not pass on")
    with MediaReader() as reader:
        pid = worker_pid(reader)
        reader.probe(sound)
        assert b"SECRET_TOKEN" not in Path(f"/proc/{pid}/environ").read_bytes()
        caps = {
            line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        }
        assert caps["Max file size"] == "0"
        assert caps["Max core file size"] == "0"
        assert int(caps["Max address space"]) == reader.limits.memory_bytes


def test_threads_share_a_reader(sound: Path, reader: MediaReader) -> None:
    expected = reader.read_segments(sound, [(0.5, 1.0)]).segments[0].samples
    results: list[Any] = [None] * 8

    def read(index: int) -> None:
        results[index] = reader.read_segments(sound, [(0.5, 1.0)]).segments[0].samples

    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for samples in results:
        np.testing.assert_array_equal(samples, expected)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        MediaReader()
    assert caught.value.hint == "pip install 'mechm[media]'"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_loads_nothing_but_the_decoders(sound: Path) -> None:
    with MediaReader() as reader:
        reader.probe(sound)
        loaded = Path(f"/proc/{worker_pid(reader)}/maps").read_text()
    assert "libavcodec" in loaded
    assert not [name for name in ("numpy", "tokenizers", "onnxruntime", "torch") if f"/{name}" in loaded]


def test_the_public_list_is_what_can_be_had() -> None:
    assert [name for name in media.__all__ if not hasattr(media, name)] == []
