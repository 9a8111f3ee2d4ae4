"""Makes the Llama's soft tokens: the fusion reads voices, faces and frames without the text, the projector converts.

The fusion gets no text here, because the Llama reads the text itself, and because the fusion is more confident on texts
that it was trained on than on others: soft tokens with the text in them would mean something else in training than at
inference.
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

    fusion, projector: run the bundle's graphs of these names. sizes: of the fusion's windows.
    """

    def __init__(self, fusion: GraphRunner, projector: GraphRunner, sizes: FusionWindows) -> None:
        self._fusion = fusion
        self._projector = projector
        self._sizes = sizes

    def project(self, inputs: FusionInputs) -> SoftTokens | None:
        """Soft tokens of a conversation's utterances; None where no utterance has voice, face or frames."""
        has_nonverbal = inputs.has_nonverbal()
        if not has_nonverbal.any():
            return None
        without_text = replace(inputs, text_mask=np.zeros_like(inputs.text_mask))
        scores = run_fusion(self._fusion, without_text, self._sizes)
        outputs = self._projector.run({"hidden_states": scores.hidden_states, "emotion_logits": scores.emotion_logits})
        return SoftTokens(outputs["soft_tokens"], has_nonverbal)
