"""What MiniGPT-v2 is asked, in the words and tokens that it was trained with; needs no torch.

The conversation's form and how text around a picture becomes tokens are those of Vision-CAIR/MiniGPT-4
(`conversation/conversation.py`, `MiniGPTBase.get_context_emb`): each side of the picture is tokenized by itself, and
the first begins with two `<s>`, the tokenizer's and the template's.
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
"""Where the picture's tokens stand."""

INTRODUCTIONS: Mapping[Variant, str] = {
    "minigpt-v2": "<Img><ImageHere></Img> ",
    "mer-mce": "<Img><ImageHere></Img> ",
    # What it was asked with keeps <FeatureHere> as words: the features' tokens follow the picture's.
    "emotion-llama": "<video><VideoHere></video> <feature><FeatureHere></feature> ",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids: int64 (T,), 0 in the picture's places. image_at: int64 (n_tokens,), those places."""

    ids: npt.NDArray[np.int64]
    image_at: npt.NDArray[np.int64]


class PromptReader:
    """Prompts of one model.

    n_tokens: of a picture.
    """

    def __init__(self, tokenizer_file: Path, variant: Variant, n_tokens: int) -> None:
        """Raises: WeightsError: no tokenizer, or one that reads the template otherwise than Llama-2's of 2023."""
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
        """A question about a picture.

        text: as it is, without a template. task: MER-MCE's form of a question: `[task] text `.
        Raises: InputError: the text holds a picture's place.
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
        """The token ids of a question about nothing to see."""
        ids: list[int] = self._tokenizer.encode(TEMPLATE.format(text)).ids
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """The token ids of an answer as it was trained, its end included."""
        ids: list[int] = self._tokenizer.encode(answer + END, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's words."""
        words: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return words.strip()
