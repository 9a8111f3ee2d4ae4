"""The shapes that the runtime feeds to each part, which an engine's optimisation profile has to cover."""

from __future__ import annotations

from mechm_runtime.bundle.config import SIDE_MULTIPLE
from mechm_runtime.bundle.engine_file import ShapeRange
from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR, Bundle
from mechm_runtime.errors import InputError
from mechm_runtime.fusion.run import WINDOWS_PER_RUN
from mechm_runtime.modalities.text import TEXT_WINDOWS_PER_RUN
from mechm_runtime.modalities.voice import MAX_MEL_FRAMES, MIN_SAMPLES

Range = tuple[int, int, int]
"""Smallest, usual and largest size of an axis."""

USUAL_TOKENS = 128
USUAL_UTTERANCES = 12
"""Utterances of a conversation: 10 on average in ECF, about 130 tokens of the sentence encoder."""
USUAL_SECONDS = 3
MAX_SECONDS = 30
MAX_UTTERANCES = 1024
"""Utterances of one conversation, for the part that reads all of them at once."""
MIN_QUESTION_TOKENS = 8
"""Fewest tokens of a question for the Llama."""


def shape_ranges(bundle: Bundle, part: str) -> tuple[ShapeRange, ...]:
    """Shape ranges of all inputs of a part, from the bundle's own constants.

    Raises: InputError: an input has an axis that is unknown to the runtime.
    """
    axes = _axes(bundle, part)
    ranges = []
    for tensor in bundle.parts[part].inputs:
        if unknown := [axis for axis in tensor.axes if isinstance(axis, str) and axis not in axes]:
            raise InputError(f"no sizes are known for the axis {unknown[0]} of {part}'s input {tensor.name}")
        sizes = [axes[axis] if isinstance(axis, str) else (axis, axis, axis) for axis in tensor.axes]
        smallest, usual, largest = (tuple(size[position] for size in sizes) for position in range(3))
        ranges.append(ShapeRange(tensor.name, smallest, usual, largest))
    return tuple(ranges)


def _axes(bundle: Bundle, part: str) -> dict[str, Range]:
    sizes = bundle.fusion
    if part == "text":
        return {"batch": (1, 1, TEXT_WINDOWS_PER_RUN), "tokens": _range(1, USUAL_TOKENS, bundle.text.max_tokens)}
    if part == "audio":
        rate, hop = bundle.log_mel.sample_rate, bundle.log_mel.hop_length
        return {
            "batch": (1, 1, 1),
            "frames": _range(1, USUAL_SECONDS * rate // hop, MAX_MEL_FRAMES),
            "samples": (MIN_SAMPLES, USUAL_SECONDS * rate, MAX_SECONDS * rate),
        }
    if part == "scene":
        return {"batch": (1, sizes.n_frames, sizes.n_frames)}
    if part == "detector":
        side = -(-bundle.faces.detection_side // SIDE_MULTIPLE) * SIDE_MULTIPLE
        usual = _range(SIDE_MULTIPLE, side * 9 // 16 // SIDE_MULTIPLE * SIDE_MULTIPLE, side)
        return {"batch": (1, 1, 1), "height": usual, "width": (SIDE_MULTIPLE, side, side)}
    if part == "expression":
        return {"batch": (1, sizes.n_frames, sizes.n_frames * sizes.max_faces)}
    if part == "fusion":
        return {"batch": (1, 1, WINDOWS_PER_RUN), "utterances": _range(1, USUAL_UTTERANCES, sizes.window)}
    if part == PROJECTOR:
        return {"utterances": (1, USUAL_UTTERANCES, MAX_UTTERANCES)}
    if part == LLAMA and bundle.llama is not None:
        config = bundle.llama.questions
        max_soft = max(1, config.soft_tokens * config.max_tokens // MIN_QUESTION_TOKENS)
        return {
            "tokens": _range(2, 4 * USUAL_TOKENS, config.max_tokens),
            "questions": _range(1, 4, config.max_tokens // MIN_QUESTION_TOKENS),
            "soft": _range(0, config.soft_tokens * USUAL_UTTERANCES, min(max_soft, config.max_tokens)),
        }
    return {}


def _range(smallest: int, usual: int, largest: int) -> Range:
    """The range of an axis, with the usual size moved into it."""
    return smallest, max(smallest, min(usual, largest)), largest
