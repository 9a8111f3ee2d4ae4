"""The Llama in torch, reading soft tokens among words: it writes greedily, or says how likely answers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import GenerationConfig

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class TorchWriter:
    """A causal language model of transformers."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama.eval()
        # Of the published settings only where to end: Llama-2's ask for sampling, which MiniGPT-v2 does not do.
        ends = llama.generation_config.eos_token_id
        llama.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            min_new_tokens=1,
            eos_token_id=ends,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )

    def write(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, max_new_tokens: int) -> list[int]:
        """Token ids that follow, greedily; see `mechm.minigpt.model.Writer`."""
        with torch.inference_mode():
            embedded = self._embed(ids, soft_at, soft_tokens)
            attended = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
            written = self._llama.generate(
                inputs_embeds=embedded, attention_mask=attended, max_new_tokens=max_new_tokens
            )
        answer: list[int] = written[0].tolist()
        return answer

    def score(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, answers: Sequence[Sequence[int]]) -> Floats:
        """Log-probability of each answer, float32 (answers,); see `mechm.minigpt.model.Writer`."""
        scores = []
        with torch.inference_mode():
            for answer in answers:
                whole = np.concatenate([ids, np.array(answer, np.int64)])
                logits = self._llama(inputs_embeds=self._embed(whole, soft_at, soft_tokens), use_cache=False).logits[0]
                followed = logits[len(ids) - 1 : -1].float().log_softmax(-1)
                at = torch.tensor(list(answer), device=followed.device)[:, None]
                scores.append(float(followed.gather(-1, at).sum()))
        return np.array(scores, np.float32)

    def _embed(self, ids: Ids, soft_at: Ids, soft_tokens: Floats) -> Tensor:
        """(1, T, D), in the Llama's dtype."""
        device = self._llama.device
        embedded: Tensor = self._llama.get_input_embeddings()(torch.from_numpy(ids).to(device))
        embedded[torch.from_numpy(soft_at).to(device)] = torch.from_numpy(soft_tokens).to(embedded)
        return embedded[None]
