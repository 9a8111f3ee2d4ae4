"""Runs the Llama in torch with soft tokens among its input: generates greedily, or scores given answers."""

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


class TorchGenerator:
    """A `Generator` around a causal language model of transformers."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama.eval()
        # Only the end tokens of the published settings are used: Llama-2's enable sampling, MiniGPT-v2 does not sample.
        ends = llama.generation_config.eos_token_id
        llama.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            min_new_tokens=1,
            eos_token_id=ends,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )

    def generate(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, max_new_tokens: int) -> list[int]:
        """Generate token ids greedily, see `mechm.minigpt.model.Generator`."""
        with torch.inference_mode():
            embedded = self._embed(ids, soft_at, soft_tokens)
            attended = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
            written = self._llama.generate(
                inputs_embeds=embedded, attention_mask=attended, max_new_tokens=max_new_tokens
            )
        answer: list[int] = written[0].tolist()
        return answer

    def score(self, ids: Ids, soft_at: Ids, soft_tokens: Floats, answers: Sequence[Sequence[int]]) -> Floats:
        """Compute the log-probability of each answer, float32 (answers,), see `mechm.minigpt.model.Generator`.

        The prompt is processed once for all answers.
        """
        device = self._llama.device
        longest = max(map(len, answers))
        # Padding on the right has no influence on the tokens before it.
        padded = torch.tensor([[*answer, *[answer[-1]] * (longest - len(answer))] for answer in answers], device=device)
        counted = torch.tensor([[at < len(answer) for at in range(longest)] for answer in answers], device=device)
        with torch.inference_mode():
            read = self._llama(inputs_embeds=self._embed(ids, soft_at, soft_tokens), use_cache=True, logits_to_keep=1)
            cache = read.past_key_values
            cache.batch_repeat_interleave(len(answers))
            first = read.logits.expand(len(answers), -1, -1)
            rest = self._llama(input_ids=padded[:, :-1], past_key_values=cache).logits if longest > 1 else first[:, :0]
            followed = torch.cat([first, rest], 1).float().log_softmax(-1)
            each = followed.gather(-1, padded[..., None])[..., 0]
            scores: Floats = (each * counted).sum(-1).cpu().numpy()
        return scores

    def _embed(self, ids: Ids, soft_at: Ids, soft_tokens: Floats) -> Tensor:
        """Embed tokens and insert the soft ones: (1, T, D), in the Llama's dtype."""
        device = self._llama.device
        embedded: Tensor = self._llama.get_input_embeddings()(torch.from_numpy(ids).to(device))
        embedded[torch.from_numpy(soft_at).to(device)] = torch.from_numpy(soft_tokens).to(embedded)
        return embedded[None]
