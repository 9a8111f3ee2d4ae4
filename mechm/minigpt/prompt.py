"""Makes MiniGPT-v2's prompts, in the template and tokens it was trained with. Does not need torch.

Template and tokenization are those of Vision-CAIR/MiniGPT-4 (`conversation/conversation.py`,
`MiniGPTBase.get_context_emb`): the text before and after the picture is tokenized separately, and the first part begins
with two `<s>`, the tokenizer's and the template's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mechm.minigpt.config import Variant
from mechm_runtime.errors import InputError, WeightsError

TEMPLATE = "<s>[INST] {} [/INST]"
END = "</s>"

PLACES: Mapping[Variant, str] = {
    "minigpt-v2": "<ImageHere>",
    "mer-mce": "<ImageHere>",
    "emotion-llama": "<VideoHere>",
}
"""Placeholder of the picture's tokens."""

INTRODUCTIONS: Mapping[Variant, str] = {
    "minigpt-v2": "<Img><ImageHere></Img> ",
    "mer-mce": "<Img><ImageHere></Img> ",
    # <FeatureHere> stays in the text, as in the original; the features' tokens follow the picture's.
    "emotion-llama": "<video><VideoHere></video> <feature><FeatureHere></feature> ",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenized prompt.

    ids: int64 (T,), 0 at the picture's positions. image_at: int64 (n_tokens,), those positions.
    """

    ids: npt.NDArray[np.int64]
    image_at: npt.NDArray[np.int64]


class PromptReader:
    """Makes the prompts of one model.

    n_tokens: tokens per picture.
    """

    def __init__(self, tokenizer_file: Path, variant: Variant, n_tokens: int) -> None:
        """Raises: WeightsError: no tokenizer, or one that splits the template differently from Llama-2's of 2023."""
        self.variant, self.n_tokens = variant, n_tokens
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises bare exceptions
            raise WeightsError(f"{tokenizer_file} is no tokenizer") from error
        tokens = self._tokenizer.encode("<s>[INST]").tokens
        if tokens[:2] != ["<s>", "<s>"] or not tokens[2].startswith("▁"):
            raise WeightsError(
                f"{tokenizer_file} reads the prompt otherwise than MiniGPT-v2's did: <s>[INST] as {tokens}",
                hint="take tokenizer.json from meta-llama/Llama-2-7b-chat-hf as it is on the hub",
            )

    def read(self, text: str, *, task: str | None = None) -> Prompt:
        """Make the prompt for a question about a picture.

        text: without a template. task: for MER-MCE's form of a question: `[task] text `.
        Raises: InputError: the text contains the picture's placeholder.
        """
        place = PLACES[self.variant]
        if place in text:
            raise InputError(f"{place} in the text: the picture's place is in the template")
        instruction = INTRODUCTIONS[self.variant] + (text if task is None else f"[{task}] {text} ")
        before, after = TEMPLATE.format(instruction).split(place)
        first = self._tokenizer.encode(before).ids
        ids = [*first, *[0] * self.n_tokens, *self._tokenizer.encode(after, add_special_tokens=False).ids]
        return Prompt(np.array(ids, np.int64), np.arange(len(first), len(first) + self.n_tokens))

    def without_picture(self, text: str) -> list[int]:
        """Return the token ids of a question without a picture."""
        ids: list[int] = self._tokenizer.encode(TEMPLATE.format(text)).ids
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer with its end token, as in training."""
        ids: list[int] = self._tokenizer.encode(answer + END, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode an answer to text."""
        words: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return words.strip()
