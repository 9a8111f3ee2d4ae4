"""Reads one audio track as 16 kHz mono samples by time, inside the decoding process.

Decodes forward once, however many spans are requested, and keeps only samples that a later span may need. Samples are
placed by counting them, and by their time stamps where the two disagree by more than rounding: a real gap stays a gap.
libswresample resamples and mixes down; its output is aligned with its input (measured: clicks stay on their sample
from 8, 22.05, 44.1 and 48 kHz).

Runs inside `worker`; returns bytes, since that process does without numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from mechm_runtime.media.limits import MediaLimits
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.media.source import select_only, start_s, too_long

SAMPLE_BYTES = 4  # of one float32 sample
MAX_DRIFT_S = 0.05
"""Largest difference between counted samples and time stamps that counts as rounding. Time stamps in milliseconds
(Matroska, FLV) are off by less; beyond it lips and voice are visibly out of step."""

SEEK_AHEAD_S = 30.0
"""Shorter stretches are decoded, not skipped by a seek: that is exact, and audio decodes several hundred times faster
than it plays."""

PRE_ROLL_S = 1.0
"""Decoded and discarded after a seek: AAC needs one frame, Opus 80 ms to converge (RFC 7845, section 4.6)."""

EXACT_SEEK = frozenset(("flac", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "w64", "wav"))
"""Formats whose time stamps are right after a seek; others are decoded without seeking."""

MAX_DAMAGED_PACKETS = 10_000

MAX_SURROUND_SUM = 16.0
"""More than the factors of any layout of up to 16 channels add up to."""


@dataclass(slots=True)
class _Run:
    """Samples without a gap. `start` counts 16 kHz samples from the recording's start."""

    start: int
    data: bytearray = field(default_factory=bytearray)

    @property
    def stop(self) -> int:
        return self.start + len(self.data) // SAMPLE_BYTES


class AudioTrack:
    """Reads spans of one audio track. The starts of the spans must not decrease.

    damaged: packets that did not decode.
    """

    def __init__(self, container: InputContainer, stream: AudioStream, limits: MediaLimits) -> None:
        self.damaged = 0
        self.container = container
        self.stream = stream
        self._limits = limits
        self._zero_s = start_s(container)
        select_only(container, stream)
        self._time_base = Fraction(stream.time_base or 1)
        self._frames: Iterator[AudioFrame] = self._decoded()
        self._runs: list[_Run] = []
        self._resampler: AudioResampler | None = None
        self._setup: tuple[int, str, str] | None = None
        self._run_start_s = 0.0
        self._run_samples = 0  # at the track's own rate
        self._ended = False

    @property
    def end_s(self) -> float | None:
        """Seconds at which the last samples end; None while that has not been reached."""
        return self._reached_s if self._ended else None

    @property
    def _reached_s(self) -> float:
        """Seconds up to which the track has been decoded."""
        return self._runs[-1].stop / SAMPLE_RATE if self._runs else 0.0

    def prime(self) -> bool:
        """Decode up to the first samples; False where the track has none."""
        while not self._runs and not self._ended:
            self._decode_next()
        return bool(self._runs)

    def read(self, from_s: float, to_s: float) -> bytes:
        """Bytes of a span's float32 samples, from the first to the last one that exists; gaps are silence."""
        start, stop = round(from_s * SAMPLE_RATE), round(to_s * SAMPLE_RATE)
        self._forget(start)
        if from_s - self._reached_s > SEEK_AHEAD_S and self.container.format.name in EXACT_SEEK and not self._ended:
            self._seek(from_s - PRE_ROLL_S)
        while not self._ended and (not self._runs or self._runs[-1].stop < stop):
            self._decode_next()
            self._forget(start)
        wanted = [run for run in self._runs if run.start < stop and run.stop > start]
        if not wanted:
            return b""
        first = max(start, min(run.start for run in wanted))
        last = min(stop, max(run.stop for run in wanted))
        samples = bytearray(SAMPLE_BYTES * (last - first))
        for run in wanted:
            a, b = max(first, run.start), min(last, run.stop)
            samples[SAMPLE_BYTES * (a - first) : SAMPLE_BYTES * (b - first)] = run.data[
                SAMPLE_BYTES * (a - run.start) : SAMPLE_BYTES * (b - run.start)
            ]
        return bytes(samples)

    def _forget(self, start: int) -> None:
        """Discard samples before `start`, except for the last run, to which samples are still added."""
        if not self._runs:
            return
        self._runs = [*(run for run in self._runs[:-1] if run.stop > start), self._runs[-1]]
        head = self._runs[0]
        # In large steps only: deleting from the front copies all samples that stay.
        n = min(start, head.stop) - head.start
        if n > 10 * SAMPLE_RATE:
            del head.data[: SAMPLE_BYTES * n]
            head.start += n

    def _seek(self, to_s: float) -> None:
        """Continue at a later time; at the start where nothing can be decoded from there (the file is cut off)."""
        for time_s in (to_s, 0.0):
            offset = int((time_s + self._zero_s) / self._time_base)
            try:
                self.container.seek(offset, stream=self.stream)
            except av.FFmpegError:
                return  # go on decoding instead
            self._resampler, self._setup = None, None
            frames = self._decoded()
            first = next(frames, None)
            if first is not None:
                self._frames = chain((first,), frames)
                return
        self._frames = iter(())

    def _decode_next(self) -> None:
        """Decode one more frame, or note that the track has ended."""
        frame = next(self._frames, None)
        if frame is None:
            self._finish_run()
            self._ended = True
            return
        setup = (frame.sample_rate, frame.layout.name, frame.format.name)
        expected_s = self._run_start_s + self._run_samples / frame.sample_rate
        stamped_s = expected_s if frame.time is None else frame.time - self._zero_s
        if stamped_s > self._limits.max_duration_s:
            raise too_long(stamped_s, self._limits)
        if setup != self._setup or abs(stamped_s - expected_s) > MAX_DRIFT_S:
            self._finish_run()
            self._setup = setup
            self._run_start_s, self._run_samples = max(stamped_s, 0.0), 0
            options = {"rematrix_maxval": _largest_sum(frame)}
            self._resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options=options)
            self._runs.append(_Run(round(self._run_start_s * SAMPLE_RATE)))
        self._run_samples += frame.samples
        self._resample(frame)

    def _finish_run(self) -> None:
        """Append the samples that the resampler still holds."""
        self._resample(None)
        self._resampler = None

    def _resample(self, frame: AudioFrame | None) -> None:
        """Append a resampled frame to the last run; None appends the rest of the filter's samples."""
        if self._resampler is not None:
            for resampled in self._resampler.resample(frame):
                self._runs[-1].data += bytes(resampled.planes[0])[: SAMPLE_BYTES * resampled.samples]

    def _decoded(self) -> Iterator[AudioFrame]:
        """The track's frames from the container's position on; packets that do not decode are counted and skipped."""
        try:
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                except MemoryError:
                    raise
                except (av.FFmpegError, ValueError):
                    self.damaged += 1
                    if self.damaged > MAX_DAMAGED_PACKETS:
                        return
                    continue
                for frame in frames:
                    if frame.samples and frame.sample_rate:
                        yield frame
        except MemoryError:
            raise
        except av.FFmpegError:
            self.damaged += 1


def _largest_sum(frame: AudioFrame) -> str:
    """Sum of the factors by which libswresample may mix channels down, as its option `rematrix_maxval` takes it.

    1 averages: without it floats are mixed up to 3 dB louder, and loud channels clip. Surround sound has its dialogue
    in the front centre channel, whose factor is 1 as long as the sum is not limited; averaged, it would lose 11 dB.
    """
    channels = [channel.name for channel in frame.layout.channels]
    return str(MAX_SURROUND_SUM if len(channels) > 2 and "FC" in channels else 1.0)
