"""Fixtures of several modules' tests: small clips that are made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Picture = npt.NDArray[np.uint8]
WriteClip = Callable[..., Path]

RATE = 16_000


@pytest.fixture(scope="session")
def write_clip() -> WriteClip:
    """`write_clip(path, pictures, pitch_hz)`: a clip that shows each picture for its part of `seconds`.

    pictures: uint8 (height, width, 3), RGB, all of one even size; none for a clip without a picture. pitch_hz: of the
    tone, None for a clip without sound.
    """
    av = pytest.importorskip("av")

    def write(path: Path, pictures: list[Picture], pitch_hz: float | None, seconds: float = 1.2) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as output:
            audio: Any = None if pitch_hz is None else output.add_stream("aac", rate=RATE, layout="mono")
            if pictures:
                video: Any = output.add_stream("libx264", rate=10)
                video.height, video.width = pictures[0].shape[:2]
                video.pix_fmt = "yuv420p"
                n_frames = round(10 * seconds)
                for index in range(n_frames):
                    picture = pictures[index * len(pictures) // n_frames]
                    output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                output.mux(video.encode(None))
            if audio is not None and pitch_hz is not None:
                t = np.arange(round(RATE * seconds)) / RATE
                tone = (8_000 * np.sin(2 * np.pi * pitch_hz * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype("<i2")
                frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
                frame.sample_rate = RATE
                output.mux(audio.encode(frame))
                output.mux(audio.encode(None))
        return path

    return write
