"""What was heard and seen, told to the Llama: the fusion reads it without the words, the projector makes soft tokens.

The words are withheld because the Llama reads them itself, and because the fusion is surer of texts that it learnt from
than of others: soft tokens that had it from the words would have meant another thing in training.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import run_fusion
from mechm_runtime.llm.scorer import SoftTokens


class Projector:
    """Makes soft tokens of voices, faces and frames.

    fusion, projector: the graphs. sizes: the fusion's.
    """

    def __init__(self, fusion: GraphRunner, projector: GraphRunner, sizes: FusionWindows) -> None:
        self._fusion = fusion
        self._projector = projector
        self._sizes = sizes

    def project(self, inputs: FusionInputs) -> SoftTokens | None:
        """Soft tokens of a conversation's utterances, None where nothing but words is known of any."""
        evident = inputs.has_nonverbal()
        if not evident.any():
            return None
        beside = run_fusion(self._fusion, replace(inputs, text_mask=np.zeros_like(inputs.text_mask)), self._sizes)
        outputs = self._projector.run({"hidden_states": beside.hidden_states, "emotion_logits": beside.emotion_logits})
        return SoftTokens(outputs["soft_tokens"], evident)
