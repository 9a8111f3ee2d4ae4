"""An utterance that is still being spoken: its voice and frames are encoded in lanes as they come.

A voice is encoded in pieces (`SessionConfig.piece_s`); means and deviations over the pieces are those of the whole,
except for the encoder's context across their borders. Of the frames, those nearest to where the frames of a finished
utterance are taken from are used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from mechm_runtime.analysis.encoders import ModalityEncoders
from mechm_runtime.analysis.state import AnalysisState
from mechm_runtime.errors import InputError
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.modalities.voice import VoicePiece, merge_pieces, unusable_reason
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.system.arrays import Float32Array, UInt8Array
from mechm_runtime.system.thread_pool import ThreadPool
from mechm_runtime.system.time_limit import OutOfTimeError, wait_s

MAX_FRAMES = 64
"""Encoded frames of one utterance that are kept. With more, every second is dropped, and fewer are taken."""

T = TypeVar("T")


class _LaneCall(Generic[T]):
    """A call that was handed to the lanes. In a process that was forked meanwhile it is made again."""

    def __init__(self, lanes: ThreadPool, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._process = os.getpid()
        self._future: Future[T] = lanes.submit(call)
        self._future.add_done_callback(self._drop_call)

    def result(self) -> T:
        """What the call returns.

        Raises: what the call does. OutOfTimeError: the request's time limit passed before; the call goes on, since the
            utterance may be appended again.
        """
        if self._call is not None and self._process != os.getpid():
            return self._call()
        wait([self._future], wait_s())
        if not self._future.done():
            raise OutOfTimeError
        return self._future.result()

    def _drop_call(self, _: Future[T]) -> None:
        """Let go of the call's samples or frames once it is done."""
        self._call = None


@dataclass(frozen=True, slots=True)
class _Frame:
    """at_s: since the utterance began. tokens: modality -> float32 (n, width), being computed."""

    at_s: float
    tokens: Mapping[str, _LaneCall[Float32Array]]


class StreamedUtterance:
    """The voice and frames of one utterance so far."""

    def __init__(self, encoders: ModalityEncoders, lanes: ThreadPool, config: SessionConfig) -> None:
        self._encoders = encoders
        self._lanes = lanes
        self._piece_samples = round(config.piece_s * SAMPLE_RATE)
        self._frame_s = config.frame_s
        self._pieces: list[_LaneCall[VoicePiece]] = []
        self._rest: list[Float32Array] = []
        self._n_rest = 0
        self._n_samples = 0
        self._frames: list[_Frame] = []
        self._next_frame_s = -np.inf

    @property
    def duration_s(self) -> float:
        """Seconds of voice so far."""
        return self._n_samples / SAMPLE_RATE

    def add_audio(self, samples: Float32Array) -> None:
        """Take in the next samples.

        samples: float32 (n,), 16 kHz mono, in [-1, 1].
        Raises: InputError: another shape or dtype, or values that are not finite.
        """
        checked = checked_samples(samples)
        self._n_samples += len(checked)
        if "audio" not in self._encoders.modalities:
            return
        self._rest.append(checked.copy())
        self._n_rest += len(checked)
        # A piece is encoded when another second follows it, so that the last piece is never too short.
        while self._n_rest >= self._piece_samples + SAMPLE_RATE:
            joined = np.concatenate(self._rest)
            piece = joined[: self._piece_samples]
            if not unusable_reason(piece):
                self._pieces.append(self._encode_piece(piece))
            self._rest = [joined[self._piece_samples :]]
            self._n_rest -= self._piece_samples

    def add_frame(self, frame: UInt8Array, at_s: float | None = None) -> None:
        """Take in a frame.

        frame: uint8 (H, W, 3), RGB. at_s: seconds since the utterance began; None for the end of its voice so far.
        Raises: InputError: another shape or dtype; a time before the last frame's.
        """
        frame = checked_frames(frame[None] if frame.ndim == 3 else frame)
        if len(frame) != 1:
            raise InputError(f"{len(frame)} frames at once", hint="append them one by one, each with its time")
        now = self.duration_s if at_s is None else at_s
        if self._frames and now < self._frames[-1].at_s:
            raise InputError(f"a frame at {now:.3f} s after one at {self._frames[-1].at_s:.3f} s")
        if not self._encoders.n_frames or now < self._next_frame_s:
            return
        self._next_frame_s = now + self._frame_s
        own = frame.copy()
        tokens = {
            spec.name: _LaneCall(self._lanes, partial(self._encode_frame, spec.name, own))
            for spec in self._encoders.track_specs
            if spec.track == "video"
        }
        self._frames.append(_Frame(now, tokens))
        if len(self._frames) > MAX_FRAMES:
            self._frames = self._frames[::2]
            self._frame_s *= 2

    def write_to(self, state: AnalysisState, duration_s: float | None) -> None:
        """Fill in what was encoded; waits for what is still being encoded, as long as the request's time limit allows.

        state: of this utterance alone. duration_s: of the utterance; None for the duration of its voice.
        """
        if self._n_samples and "audio" in self._encoders.modalities:
            with state.timed("audio"):
                self._write_voice(state)
        if not self._frames:
            return
        chosen = self._chosen_frames(duration_s or self.duration_s or self._frames[-1].at_s)
        for modality in chosen[0].tokens:
            with state.timed(modality):
                encoded = _in_time([frame.tokens[modality] for frame in chosen])
            if not encoded:
                state.missing[0][modality] = state.limit.reason
                continue
            tokens = np.concatenate(encoded)
            state.inputs.put_tokens(modality, 0, tokens)
            if not len(tokens):
                state.missing[0][modality] = self._encoders.of_frames(modality).absent_reason

    def _write_voice(self, state: AnalysisState) -> None:
        rest = np.concatenate(self._rest) if self._rest else np.zeros(0, np.float32)
        reason = unusable_reason(rest)
        # The list stays as it is: an utterance that cannot be appended now may be appended later.
        pieces = self._pieces if reason else [*self._pieces, self._encode_piece(rest)]
        if not pieces:
            state.missing[0]["audio"] = reason
            return
        encoded = _in_time(pieces)
        if len(encoded) < len(pieces):
            state.missing[0]["audio"] = f"{'a part of its voice: ' if encoded else ''}{state.limit.reason}"
        if encoded:
            state.inputs.audio[0] = merge_pieces(encoded)
            state.inputs.audio_mask[0] = True

    def _encode_piece(self, samples: Float32Array) -> _LaneCall[VoicePiece]:
        return _LaneCall(self._lanes, lambda: self._encoders.voice.encode_piece(samples))

    def _encode_frame(self, modality: str, frame: UInt8Array) -> Float32Array:
        return self._encoders.of_frames(modality).tokens(frame)

    def _chosen_frames(self, duration_s: float) -> list[_Frame]:
        """The frames nearest to the middles of equal parts of the utterance, each once, in order."""
        n = self._encoders.n_frames
        times = np.array([frame.at_s for frame in self._frames])
        nearest = {int(np.abs(times - (k + 0.5) / n * duration_s).argmin()) for k in range(n)}
        return [self._frames[at] for at in sorted(nearest)]


def _in_time(calls: Sequence[_LaneCall[T]]) -> list[T]:
    """The results of the calls that are done before the request's time limit, in order."""
    results = []
    for call in calls:
        with suppress(OutOfTimeError):
            results.append(call.result())
    return results


def checked_samples(samples: Float32Array) -> Float32Array:
    """The samples, if they are valid.

    Raises: InputError: not float32 (n,), or values that are not finite.
    """
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise InputError(
            f"samples of shape {samples.shape} and dtype {samples.dtype}", hint="give float32 (n,), 16 kHz mono"
        )
    if not np.isfinite(samples).all():
        raise InputError("samples that are not finite", hint="give float32 in [-1, 1]")
    return samples


def checked_frames(frames: UInt8Array) -> UInt8Array:
    """The frames, if they are valid.

    Raises: InputError: not uint8 (n, H, W, 3).
    """
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < 1:
        raise InputError(
            f"frames of shape {frames.shape} and dtype {frames.dtype}", hint="give uint8 (n, H, W, 3), RGB"
        )
    return frames
