"""Inputs of the fusion network: one array per modality with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.bundle.modality import MODALITY_SPECS
from mechm_runtime.system.arrays import BoolArray, Float32Array, Int64Array
from mechm_runtime.types import Utterance

MASKS = {spec.name: spec.mask for spec in MODALITY_SPECS}


@dataclass(slots=True)
class FusionInputs:
    """Encoder outputs of U utterances. A mask is False where something is absent.

    text float32 (U, text width), text_mask bool (U,); audio float32 (U, audio tokens, audio width), audio_mask (U,);
    scene float32 (U, n_frames, scene width), scene_mask (U, n_frames); face float32 (U, n_frames * max_faces,
    face width), face_mask (U, n_frames * max_faces); speaker_ids int64 (U,).
    """

    text: Float32Array
    text_mask: BoolArray
    audio: Float32Array
    audio_mask: BoolArray
    scene: Float32Array
    scene_mask: BoolArray
    face: Float32Array
    face_mask: BoolArray
    speaker_ids: Int64Array

    @classmethod
    def absent(cls, utterances: Sequence[Utterance], sizes: FusionWindows) -> FusionInputs:
        """Inputs in which every modality is absent; the speakers are known."""
        n, faces = len(utterances), sizes.n_frames * sizes.max_faces
        return cls(
            text=np.zeros((n, sizes.text_width), np.float32),
            text_mask=np.zeros(n, bool),
            audio=np.zeros((n, sizes.audio_tokens, sizes.audio_width), np.float32),
            audio_mask=np.zeros(n, bool),
            scene=np.zeros((n, sizes.n_frames, sizes.scene_width), np.float32),
            scene_mask=np.zeros((n, sizes.n_frames), bool),
            face=np.zeros((n, faces, sizes.face_width), np.float32),
            face_mask=np.zeros((n, faces), bool),
            speaker_ids=np.array(speaker_numbers(utterances), np.int64),
        )

    def has(self, modality: str) -> BoolArray:
        """bool (U,), True where something is known of a modality."""
        mask: BoolArray = getattr(self, MASKS[modality])
        return mask if mask.ndim == 1 else np.asarray(mask.any(-1))

    def has_nonverbal(self) -> BoolArray:
        """bool (U,), True where any modality but text is known."""
        return np.asarray(np.any([self.has(spec.name) for spec in MODALITY_SPECS if spec.track != "words"], axis=0))

    def put_tokens(self, modality: str, index: int, tokens: Float32Array) -> None:
        """Fill the first rows of a modality that has several tokens per utterance.

        index: position of the utterance. tokens: float32 (n, width), n at most the modality's number of tokens.
        """
        getattr(self, modality)[index, : len(tokens)] = tokens
        getattr(self, MASKS[modality])[index, : len(tokens)] = True

    def select(self, rows: slice) -> FusionInputs:
        """Inputs of some of the utterances: views of the same arrays."""
        return FusionInputs(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    def concatenate(self, later: FusionInputs) -> FusionInputs:
        """Inputs of these utterances and then of later ones: new arrays; `speaker_ids` are not renumbered."""
        return FusionInputs(
            **{
                item.name: np.concatenate([getattr(self, item.name), getattr(later, item.name)])
                for item in fields(self)
            }
        )


def speaker_numbers(utterances: Sequence[Utterance]) -> list[int]:
    """One number per speaker, in order of first appearance; each utterance of an unknown speaker has its own."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(u.speaker or f"\0{i}", len(numbers)) for i, u in enumerate(utterances)]
