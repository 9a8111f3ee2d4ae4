"""Training loss of the fusion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mechm.model.fusion import FusionOutput
from mechm.model.inputs import IGNORED, NonverbalInputs, TextBatch
from mechm.model.network import Network
from mechm_runtime.types import EMOTIONS, LabelledConversation


def fusion_loss(
    network: Network,
    batch: TextBatch,
    nonverbal: NonverbalInputs,
    text_dropped: Tensor,
    weights: Tensor,
    label_smoothing: float,
    cause_weight: float,
) -> Tensor:
    """Class-weighted cross-entropy of emotions plus, where causes are annotated, binary cross-entropy of causes.

    text_dropped: bool (B, U), utterances whose text is masked. weights: float32 (7,), see `class_weights`.
    """
    output: FusionOutput = network(batch, nonverbal, text_dropped)
    loss = F.cross_entropy(
        output.emotion_logits.float().flatten(0, 1),
        batch.emotions.flatten(),
        weight=weights,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
    if batch.cause_mask.any():
        causes = batch.cause_mask
        loss = loss + cause_weight * F.binary_cross_entropy_with_logits(
            output.pair_logits.float()[causes], batch.causes[causes]
        )
    return loss


def class_weights(conversations: Sequence[LabelledConversation], power: float) -> Tensor:
    """Compute loss weights of the emotions, float32 (7,): frequency to the power of minus `power`, 1 on average."""
    counts = np.bincount([EMOTIONS.index(e) for c in conversations for e in c.emotions], minlength=len(EMOTIONS))
    weights = np.maximum(counts, 1.0) ** -power
    # Normalised so that the average utterance has weight 1 and the loss keeps its scale.
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
