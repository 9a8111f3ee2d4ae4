"""Measures decoding only the spans of utterances against decoding a whole recording, for audio and frames.

Reads a recording's spans as the pipeline does, and as a plain program with PyAV does: every frame decoded, the needed
ones scaled to the same size, the audio in a second pass resampled to 16 kHz mono. Both take turns with one thread;
processor time of the decoding alone, in this process. The frames are compared and have to be equal.

Limit to expect: in H.264 about half of the frames are referenced by others and have to be decoded; audio has to be
decoded completely. Prints a table and one JSON line.

    python benchmarks/media_decoding.py sample/conversation.mp4 --transcript sample/conversation.srt
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from mechm_runtime import MediaLimits, read_transcript
from mechm_runtime.media.recording import Recording

Frames = list[NDArray[np.uint8]]
Spans = Sequence[tuple[float, float]]


def moments(span: tuple[float, float], n_frames: int) -> list[float]:
    """The middles of equal parts of a span, where the reader takes frames."""
    return [span[0] + (k + 0.5) / n_frames * (span[1] - span[0]) for k in range(n_frames)]


def as_the_pipeline(path: Path, spans: Spans, n_frames: int) -> Frames:
    """Frames of all spans, decoded by the pipeline's reader."""
    frames: Frames = []
    with ExitStack() as stack:
        recording = Recording(str(path), MediaLimits(), stack)
        for span in spans:
            header, arrays = recording.segment(*span, n_frames=n_frames)
            if header["frames"]:
                spec, pieces = arrays[-1]
                frames += [np.frombuffer(piece, np.uint8).reshape(spec.shape[1:]) for piece in pieces]
    return frames


def all_of_it(path: Path, spans: Spans, n_frames: int) -> Frames:
    """Frames of all spans, with every frame and the audio decoded."""
    wanted = sorted(moment for span in spans for moment in moments(span, n_frames))
    frames: Frames = []
    with av.open(str(path)) as container:
        if container.streams.video:
            zero_s = (container.start_time or 0) / av.time_base
            container.streams.video[0].thread_count = 1
            last: av.VideoFrame | None = None
            for frame in container.decode(video=0):
                while wanted and last is not None and frame.time is not None and frame.time - zero_s > wanted[0]:
                    wanted.pop(0)
                    frames.append(scaled(last))
                last = frame
            frames += [scaled(last) for _ in wanted if last is not None]
    with av.open(str(path)) as container:
        if container.streams.audio:
            resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
            for sound in container.decode(audio=0):
                resampler.resample(sound)
    return frames


def scaled(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The frame in RGB, its longer side at most that of the limits."""
    scale = min(1.0, MediaLimits().max_side / max(frame.width, frame.height))
    width, height = round(frame.width * scale), round(frame.height * scale)
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC")
    return np.asarray(pixels, np.uint8)


def cpu_ms(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--transcript", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=3, help="per utterance")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()

    (conversation,) = read_transcript(options.transcript, media=options.recording)
    spans = [(u.start_s, u.end_s) for u in conversation.utterances if u.start_s is not None and u.end_s is not None]
    ours, theirs = (read(options.recording, spans, options.frames) for read in (as_the_pipeline, all_of_it))
    equal = len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    times: dict[str, list[float]] = {"pipeline": [], "all of it": []}
    for _ in range(options.runs):
        times["pipeline"].append(cpu_ms(lambda: as_the_pipeline(options.recording, spans, options.frames)))
        times["all of it"].append(cpu_ms(lambda: all_of_it(options.recording, spans, options.frames)))

    print(f"{options.recording.name}, {len(spans)} utterances, {len(ours)} frames; equal frames: {equal}")
    print(f"av {av.__version__}, Python {platform.python_version()}, one thread, CPU ms of {options.runs} runs")
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        ratio = medians["all of it"] / medians[name]
        print(f"{name:<10}  p50 {medians[name]:7.1f}  slowest {max(values):7.1f}  {ratio:.2f} times as fast")
    print(
        json.dumps({"recording": options.recording.name, "frames_equal": equal, "cpu_ms_p50": medians, "runs": times})
    )


if __name__ == "__main__":
    main()
