"""The table of modalities, a row each: everything about a modality that is not computed by its encoder.

Pure data: nothing is loaded or run here. It stands in `bundle` because the manifest and the engines need it and lie
below the encoders, which are in `mechm_runtime.modalities`, a file each. The names and their order are public:
`mechm_runtime.types.MODALITIES`. The arrays that an encoder fills are fields of `mechm_runtime.fusion.inputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mechm_runtime.types import MODALITIES

Track = Literal["words", "audio", "video"]
"""Where a modality comes from: the transcript, or a track of the recording."""
CostUnit = Literal["tokens", "seconds", "frames"]
"""In which the cost of encoding is estimated: tokens of the text encoder, seconds of sound, video frames."""


@dataclass(frozen=True, slots=True)
class Padding:
    """Which axes of a graph's arrays have the length that may differ between callers; the graph masks what is padded.

    inputs: axes of each input that has them, padded with zeros there. outputs: axes of each output, cut off there. The
    length itself is that of the first input's first axis listed.
    """

    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class EncoderPart:
    """One graph of an encoder, and how the engines run it.

    name: of the bundle's part. cached: the unit that an output cache stores, whole runs or single rows (frames).
    is_batched: whether runs of several conversations may be joined. padding: how runs of different lengths are joined;
        None joins equal shapes only.
    is_single_threaded: whether it computes in one thread always.
    """

    name: str
    cached: Literal["runs", "rows"]
    is_batched: bool = True
    padding: Padding | None = None
    is_single_threaded: bool = False


@dataclass(frozen=True, slots=True)
class ModalitySpec:
    """One modality.

    name: in results, and of the fusion's input; `NAME_mask` is the input that masks it, True where it is known.
    track: its source. parts: the graphs that encode it. cost_unit: see `CostUnit`.
    encoder: module and class, as a string because that module lies above this table. The class has `from_bundle` and
        `encode`, see `mechm_runtime.analysis.encoders`.
    drop_order: a deadline leaves out the modality with 1 first, then that with 2; None for one that is always encoded.
    """

    name: str
    track: Track
    parts: tuple[EncoderPart, ...]
    cost_unit: CostUnit
    encoder: str
    drop_order: int | None = None

    @property
    def mask(self) -> str:
        """The name of the fusion's input that masks it."""
        return f"{self.name}_mask"


# The detector and the expression network compute in one thread: a second one takes a core from the encoders beside them
# and brings next to nothing (a frame of the detector 2.4 ms in one and 2.3 in two, `benchmarks/second_thread.py`, Intel
# Xeon, onnxruntime 1.32).
MODALITY_SPECS: tuple[ModalitySpec, ...] = (
    ModalitySpec(
        name="text",
        track="words",
        parts=(
            EncoderPart(
                "text",
                cached="runs",
                padding=Padding({"attention_mask": (1,), "input_ids": (1,)}, {"last_hidden_state": (1,)}),
            ),
        ),
        cost_unit="tokens",
        encoder="mechm_runtime.modalities.text:TextEncoder",
    ),
    ModalitySpec(
        name="audio",
        track="audio",
        parts=(EncoderPart("audio", cached="runs"),),
        cost_unit="seconds",
        encoder="mechm_runtime.modalities.voice:VoiceEncoder",
    ),
    ModalitySpec(
        name="face",
        track="video",
        parts=(
            EncoderPart("detector", cached="rows", is_batched=False, is_single_threaded=True),
            EncoderPart("expression", cached="rows", is_single_threaded=True),
        ),
        cost_unit="frames",
        encoder="mechm_runtime.modalities.face:FaceEncoder",
        drop_order=2,
    ),
    ModalitySpec(
        name="scene",
        track="video",
        parts=(EncoderPart("scene", cached="rows"),),
        cost_unit="frames",
        encoder="mechm_runtime.modalities.scene:SceneEncoder",
        drop_order=1,
    ),
)
"""All modalities in the order of `MODALITIES`."""

if tuple(spec.name for spec in MODALITY_SPECS) != MODALITIES:
    raise RuntimeError(f"the table of modalities has other rows than {', '.join(MODALITIES)}")

DROPPABLE_MODALITIES: tuple[str, ...] = tuple(
    spec.name for spec in sorted(MODALITY_SPECS, key=lambda spec: spec.drop_order or 0) if spec.drop_order
)
"""The modalities that a deadline may leave out, in the order in which it does."""
ENCODER_PARTS: tuple[EncoderPart, ...] = tuple(part for spec in MODALITY_SPECS for part in spec.parts)
"""The parts of all modalities."""
MODALITY_PARTS: Mapping[str, tuple[str, ...]] = {
    spec.name: tuple(part.name for part in spec.parts) for spec in MODALITY_SPECS
}
"""Modality -> names of the parts that encode it."""
