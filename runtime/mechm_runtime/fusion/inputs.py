"""Inputs of the fusion network: one array per modality with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.types import Utterance


@dataclass(slots=True)
class FusionInputs:
    """What is known of each utterance; U utterances. A mask is False where something is absent.

    text float32 (U, text width), text_mask bool (U,); audio float32 (U, audio tokens, audio width), audio_mask (U,);
    scene float32 (U, n_frames, scene width), scene_mask (U, n_frames); face float32 (U, n_frames * max_faces,
    face width), face_mask (U, n_frames * max_faces); speaker_ids int64 (U,).
    """

    text: npt.NDArray[np.float32]
    text_mask: npt.NDArray[np.bool_]
    audio: npt.NDArray[np.float32]
    audio_mask: npt.NDArray[np.bool_]
    scene: npt.NDArray[np.float32]
    scene_mask: npt.NDArray[np.bool_]
    face: npt.NDArray[np.float32]
    face_mask: npt.NDArray[np.bool_]
    speaker_ids: npt.NDArray[np.int64]

    @classmethod
    def absent(cls, utterances: Sequence[Utterance], sizes: FusionWindows) -> FusionInputs:
        """Inputs in which everything is absent but who speaks."""
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

    def evident(self) -> npt.NDArray[np.bool_]:
        """bool (U,): where something but words is known."""
        return np.asarray(self.audio_mask | self.face_mask.any(-1) | self.scene_mask.any(-1))

    def of(self, rows: slice) -> FusionInputs:
        """What is known of some of the utterances: views of the same arrays."""
        return FusionInputs(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    def followed_by(self, later: FusionInputs) -> FusionInputs:
        """What is known of these utterances and then of others: new arrays, `speaker_ids` as they were."""
        return FusionInputs(
            **{
                item.name: np.concatenate([getattr(self, item.name), getattr(later, item.name)])
                for item in fields(self)
            }
        )


def speaker_numbers(utterances: Sequence[Utterance]) -> list[int]:
    """A number a speaker, in order of first appearance; an unknown speaker is nobody else's."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(u.speaker or f"\0{i}", len(numbers)) for i, u in enumerate(utterances)]
