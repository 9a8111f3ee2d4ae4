"""An utterance that is still being spoken: its voice and frames are read in lanes as they come.

A voice is read in pieces (`SessionConfig.piece_s`), whose means and deviations over time are then those of the whole
but for what an encoder hears across their borders. Of the frames, those are kept that lie nearest to where the frames
of a finished utterance are taken from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from mechm_runtime.analysis.encoders import Senses
from mechm_runtime.analysis.state import Work
from mechm_runtime.errors import InputError
from mechm_runtime.media.segments import SAMPLE_RATE
from mechm_runtime.modalities.face import NO_FACE
from mechm_runtime.modalities.voice import VoicePiece, merge_pieces, unreadable
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.system.thread_pool import Lanes

MAX_FRAMES = 64
"""Frames of one utterance that are kept, read. With more, every second is dropped, and fewer are taken."""

T = TypeVar("T")


class _Reading(Generic[T]):
    """A call that was handed to the lanes. In a process that was forked meanwhile it is made again."""

    def __init__(self, lanes: Lanes, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._process = os.getpid()
        self._future: Future[T] = lanes.submit(call)
        self._future.add_done_callback(self._forget)

    def result(self) -> T:
        if self._call is None or self._process == os.getpid():
            return self._future.result()
        return self._call()

    def _forget(self, _: Future[T]) -> None:
        """What was to be read need not be kept."""
        self._call = None


@dataclass(frozen=True, slots=True)
class _Frame:
    """at_s: since the utterance began. scene: float32 (1, D). faces: float32 (faces, face width)."""

    at_s: float
    scene: _Reading[npt.NDArray[np.float32]] | None
    faces: _Reading[npt.NDArray[np.float32]] | None


class Listening:
    """What is heard and seen of one utterance while it is spoken."""

    def __init__(self, senses: Senses, lanes: Lanes, config: SessionConfig) -> None:
        self._senses = senses
        self._lanes = lanes
        self._piece = round(config.piece_s * SAMPLE_RATE)
        self._frame_s = config.frame_s
        self._pieces: list[_Reading[VoicePiece]] = []
        self._rest: list[npt.NDArray[np.float32]] = []
        self._n_rest = 0
        self._n_samples = 0
        self._frames: list[_Frame] = []
        self._seen_until = -np.inf

    @property
    def duration_s(self) -> float:
        """Seconds of voice so far."""
        return self._n_samples / SAMPLE_RATE

    def audio(self, samples: npt.NDArray[np.float32]) -> None:
        """Take in the next samples.

        samples: float32 (n,), 16 kHz mono, in [-1, 1].
        Raises: InputError: another shape or dtype, or values that are not finite.
        """
        checked = checked_samples(samples)
        self._n_samples += len(checked)
        if "audio" not in self._senses.modalities:
            return
        self._rest.append(checked.copy())
        self._n_rest += len(checked)
        # A piece is read when there is another second behind it, so that the last one is never a scrap.
        while self._n_rest >= self._piece + SAMPLE_RATE:
            joined = np.concatenate(self._rest)
            piece = joined[: self._piece]
            if not unreadable(piece):
                self._pieces.append(self._reading(piece))
            self._rest = [joined[self._piece :]]
            self._n_rest -= self._piece

    def frame(self, frame: npt.NDArray[np.uint8], at_s: float | None = None) -> None:
        """Take in a frame.

        frame: uint8 (H, W, 3), RGB. at_s: seconds since the utterance began; None for as long as its voice is so far.
        Raises: InputError: another shape or dtype; a time before the last frame's.
        """
        frame = checked_frames(frame[None] if frame.ndim == 3 else frame)
        if len(frame) != 1:
            raise InputError(f"{len(frame)} frames at once", hint="append them one by one, each with its time")
        now = self.duration_s if at_s is None else at_s
        if self._frames and now < self._frames[-1].at_s:
            raise InputError(f"a frame at {now:.3f} s after one at {self._frames[-1].at_s:.3f} s")
        if not self._senses.n_frames or now < self._seen_until:
            return
        self._seen_until = now + self._frame_s
        own = frame.copy()
        modalities = self._senses.modalities
        scene = _Reading(self._lanes, lambda: self._senses.scene.tokens(own)) if "scene" in modalities else None
        faces = _Reading(self._lanes, lambda: self._senses.faces.tokens(own)) if "face" in modalities else None
        self._frames.append(_Frame(now, scene, faces))
        if len(self._frames) > MAX_FRAMES:
            self._frames = self._frames[::2]
            self._frame_s *= 2

    def put_into(self, work: Work, duration_s: float | None) -> None:
        """Fill in what was heard and seen; waits for what is still being read.

        work: of this utterance alone. duration_s: how long the utterance took; None for as long as its voice.
        """
        if self._n_samples and "audio" in self._senses.modalities:
            with work.timed("audio"):
                self._put_voice(work)
        if self._frames:
            chosen = self._chosen(duration_s or self.duration_s or self._frames[-1].at_s)
            with work.timed("scene"):
                scenes = [frame.scene.result() for frame in chosen if frame.scene is not None]
            with work.timed("face"):
                faces = [frame.faces.result() for frame in chosen if frame.faces is not None]
            if scenes:
                work.inputs.scene[0, : len(scenes)] = np.concatenate(scenes)
                work.inputs.scene_mask[0, : len(scenes)] = True
            if faces:
                rows = np.concatenate(faces)
                work.inputs.face[0, : len(rows)] = rows
                work.inputs.face_mask[0, : len(rows)] = True
                if not len(rows):
                    work.missing[0]["face"] = NO_FACE

    def _put_voice(self, work: Work) -> None:
        rest = np.concatenate(self._rest) if self._rest else np.zeros(0, np.float32)
        reason = unreadable(rest)
        # The list stays as it is: where the utterance cannot be appended now, it may be once more.
        pieces = self._pieces if reason else [*self._pieces, self._reading(rest)]
        if not pieces:
            work.missing[0]["audio"] = reason
            return
        work.inputs.audio[0] = merge_pieces([piece.result() for piece in pieces])
        work.inputs.audio_mask[0] = True

    def _reading(self, samples: npt.NDArray[np.float32]) -> _Reading[VoicePiece]:
        return _Reading(self._lanes, lambda: self._senses.voice.piece(samples))

    def _chosen(self, duration_s: float) -> list[_Frame]:
        """The frames nearest to the middles of equal parts of the utterance, each once, in order."""
        n = self._senses.n_frames
        times = np.array([frame.at_s for frame in self._frames])
        nearest = {int(np.abs(times - (k + 0.5) / n * duration_s).argmin()) for k in range(n)}
        return [self._frames[at] for at in sorted(nearest)]


def checked_samples(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Samples as they must be.

    Raises: InputError: not float32 (n,), or values that are not finite.
    """
    if samples.ndim != 1 or samples.dtype != np.float32:
        raise InputError(
            f"samples of shape {samples.shape} and dtype {samples.dtype}", hint="give float32 (n,), 16 kHz mono"
        )
    if not np.isfinite(samples).all():
        raise InputError("samples that are not finite", hint="give float32 in [-1, 1]")
    return samples


def checked_frames(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames as they must be.

    Raises: InputError: not uint8 (n, H, W, 3).
    """
    if frames.ndim != 4 or frames.dtype != np.uint8 or frames.shape[-1] != 3 or min(frames.shape[1:3]) < 1:
        raise InputError(
            f"frames of shape {frames.shape} and dtype {frames.dtype}", hint="give uint8 (n, H, W, 3), RGB"
        )
    return frames
