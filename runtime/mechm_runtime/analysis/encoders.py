"""The encoders of a pipeline, one per modality, each loaded when there is something for it to encode.

Built from a bundle and the table of modalities (`bundle.modality`). Decoding is in `decoding`, running encoders over a
conversation in `encode`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Protocol, cast

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.bundle.modality import MODALITY_SPECS, ModalitySpec
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.modalities.text import TextEncoder
from mechm_runtime.modalities.text_windows import TextWindows
from mechm_runtime.modalities.voice import VoiceEncoder
from mechm_runtime.system.arrays import Array, Float32Array, UInt8Array
from mechm_runtime.system.lazy import Lazy
from mechm_runtime.system.progress import StageProgress
from mechm_runtime.system.time_limit import seconds_left, wait_s
from mechm_runtime.types import Utterance

LoadPart = Callable[[str], GraphRunner]
"""Gives the engine of a part by the part's name."""


class TrackEncoder(Protocol):
    """An encoder of samples or frames, made by its class method `from_bundle(bundle, load)`."""

    def encode(self, index: int, signal: Array, inputs: FusionInputs, /) -> str:
        """Encode one utterance into `inputs`; returns why that is impossible as a whole, or an empty string.

        index: position of the utterance. signal: samples, float32 (n,), 16 kHz mono, or frames, uint8 (n, H, W, 3),
        RGB, as the modality's track has it.
        Raises: OutOfTimeError: the request's time limit passed before anything was encoded.
        """


class FrameEncoder(TrackEncoder, Protocol):
    """An encoder of frames, which can also be encoded one by one as they are streamed in."""

    absent_reason: str
    """Reported where frames hold nothing to encode."""

    def tokens(self, frames: UInt8Array, /) -> Float32Array:
        """uint8 (n, H, W, 3), RGB -> float32 (tokens, width)."""


class ModalityEncoders:
    """The encoders of the modalities that a pipeline uses. Thread-safe.

    modalities: those that are used. load: gives the engine of a part of the bundle.
    """

    def __init__(self, bundle: Bundle, modalities: Sequence[str], load: LoadPart) -> None:
        self.modalities = tuple(modalities)
        self.specs = tuple(spec for spec in MODALITY_SPECS if spec.name in self.modalities)
        """Rows of the table of modalities that are used."""
        recorded = [spec for spec in self.specs if spec.track != "words"]
        self.track_specs = tuple(sorted(recorded, key=lambda spec: spec.drop_order or len(MODALITY_SPECS)))
        """Those encoded from a recording; the costliest first, which a deadline leaves out first."""
        self.sizes: FusionWindows = bundle.fusion
        """Shapes of the fusion's inputs."""
        self._text = TextEncoder.from_bundle(bundle, load) if "text" in self.modalities else None
        self._of_tracks = {spec.name: Lazy(partial(_build, spec, bundle, load)) for spec in self.track_specs}

    @property
    def uses_media(self) -> bool:
        """Whether any modality but text is used."""
        return bool(self.track_specs)

    @property
    def n_frames(self) -> int:
        """Frames per utterance that are encoded; 0 where no modality needs any."""
        return self.sizes.n_frames if any(spec.track == "video" for spec in self.specs) else 0

    def of(self, modality: str) -> TrackEncoder:
        """The encoder of a modality that is used and comes from a recording, loaded first where necessary."""
        return self._of_tracks[modality]()

    def is_loaded_in_time(self, modality: str) -> bool:
        """Whether the request's time limit lets its work wait until the encoder of a modality is loaded.

        Loading goes on in a thread of its own where it does not, for later requests.
        """
        encoder, timeout_s = self._of_tracks[modality], wait_s()
        if timeout_s is None or encoder.is_made:
            return True
        if not timeout_s:
            return False
        thread = threading.Thread(target=_load, args=(encoder,), name="mechm-load")
        thread.start()
        thread.join(timeout_s)
        return encoder.is_made or seconds_left() > 0

    def of_frames(self, modality: str) -> FrameEncoder:
        """The encoder of a modality that is used and comes from the video track."""
        return cast("FrameEncoder", self.of(modality))

    @property
    def voice(self) -> VoiceEncoder:
        """The encoder of voices, which can also be encoded piece by piece as they are streamed in."""
        return cast("VoiceEncoder", self.of("audio"))

    def tokenize(self, utterances: Sequence[Utterance]) -> TextWindows | None:
        """Tokens of a conversation for `encode_text`; None where text is not used."""
        return None if self._text is None else self._text.tokenize(utterances)

    def encode_text(
        self,
        utterances: Sequence[Utterance],
        inputs: FusionInputs,
        progress: StageProgress | None = None,
        windows: TextWindows | None = None,
    ) -> dict[int, str]:
        """Encode the words of a conversation into `inputs`; does nothing where text is not used.

        progress: called with the utterances done and their number. windows: their tokens, where they are known.
        Returns: positions of the utterances without words, or of which some were left out -> the reason to report.
        """
        if self._text is None:
            return {}
        left_out = self._text.encode(utterances, inputs, progress, windows)
        return {int(index): "no words known" for index in (~inputs.text_mask).nonzero()[0]} | left_out


def _load(encoder: Lazy[TrackEncoder]) -> None:
    """Load an encoder; an error is raised where it is used, which loads it again."""
    with suppress(Exception):
        encoder()


def _build(spec: ModalitySpec, bundle: Bundle, load: LoadPart) -> TrackEncoder:
    """The encoder that a row of the table names."""
    module, _, name = spec.encoder.partition(":")
    encoder: TrackEncoder = getattr(import_module(module), name).from_bundle(bundle, load)
    return encoder
