"""The Llama's prompt: the conversation first, then questions whose next token is the answer.

A question repeats its utterance and stops where one token decides. The emotion is read at the end of `Emotion:`, the
causes at the end of `Cause:`, from a handful of tokens that stand for the answers. Every question sees the conversation
and itself, so that all of them fit into one forward pass and share the conversation's cached prefix with the next
utterance's. Repeating the utterance lets a model that reads from left to right read it a second time knowing what came
after. Training and runtime share this module. It runs no model.

What was heard and seen of an utterance stands behind its words, in the conversation and in the question, as a few soft
tokens: vectors in the place of words' embeddings. Here room is made for them; an utterance of which nothing but words
is known has none, so that its prompt is that of text alone.

A cause is named by its distance: `0` for the utterance itself, `1` to `9` turns back, `a` to `c` turns ahead, which is
99.8 % of the pairs of ECF 1.0 `train`. Distances need no counting of absolute numbers, and are single tokens for
SmolLM2 and Llama-2 alike, which split `12` into two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.errors import BundleError
from mechm_runtime.types import EMOTIONS, Utterance

CAUSE_ANSWERS: tuple[tuple[str, int], ...] = (
    *((str(back), -back) for back in range(10)),
    *(("abc"[ahead - 1], ahead) for ahead in range(1, 4)),
)
"""Answer and the offset of the cause from the emotion's utterance."""

NO_CAUSE = "x"
"""The answer that every cause is weighed against: a cause's odds are its probability over this one's."""

CONVERSATION = -1


@dataclass(frozen=True, slots=True)
class PackedQuestions:
    """Questions on one conversation, packed for one forward pass.

    input_ids, position_ids: int64 (T,). segments: int64 (T,), CONVERSATION or the number of the question a token is of.
    emotion_at, cause_at: int64 (Q,), where the answers of each question are read.
    soft_at: int64 (S,), where soft tokens stand; the ids there mean nothing. soft_of: int64 (S,), which they are:
        utterance * soft_tokens + number.
    """

    input_ids: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]
    segments: npt.NDArray[np.int64]
    emotion_at: npt.NDArray[np.int64]
    cause_at: npt.NDArray[np.int64]
    soft_at: npt.NDArray[np.int64]
    soft_of: npt.NDArray[np.int64]

    def visible(self) -> npt.NDArray[np.bool_]:
        """bool (T, T): whether token i sees token j, which is itself, what came before in its segment, and the
        conversation."""
        causal = np.tril(np.ones((len(self.segments),) * 2, bool))
        own = self.segments[None] == self.segments[:, None]
        return np.asarray(causal & (own | (self.segments[None] == CONVERSATION)))


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Tokens of a line or a question, with room for `n_soft` soft tokens from `soft_at` on."""

    ids: list[int]
    soft_at: int = 0
    n_soft: int = 0


class QuestionTokenizer:
    """Turns utterances and questions into tokens, with the Llama's own tokenizer file (`tokenizer.json`)."""

    def __init__(self, tokenizer_file: Path, config: QuestionConfig | None = None) -> None:
        self.config = config or QuestionConfig()
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file.name} is not a tokenizer file") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Somebody who says "<|im_end|>" must not end the conversation with it.
        self._tokenizer.encode_special_tokens = True
        self.emotion_answers = np.array([self._answer("Emotion:", f" {emotion}") for emotion in EMOTIONS], np.int64)
        words = [answer for answer, _ in CAUSE_ANSWERS] + [NO_CAUSE]
        self.cause_answers = np.array([self._answer("Cause:", word) for word in words], np.int64)
        self.cause_question: list[int] = self._tokenizer.encode("\nCause:", add_special_tokens=False).ids
        for answers in (self.emotion_answers, self.cause_answers):
            if len(set(answers.tolist())) != len(answers):
                raise BundleError("two answers are the same token for this tokenizer")

    def conversation(self, utterances: Sequence[Utterance], evident: Sequence[bool] = ()) -> list[PromptPart]:
        """Each utterance's line. `evident` tells which have soft tokens; () is none."""
        lines = [f"[{number}] {_line(u)}" for number, u in enumerate(utterances, 1)]
        encoded = self._tokenizer.encode_batch([f"{line}\n" for line in lines], add_special_tokens=False)
        room = evident or [False] * len(lines)
        return [self._with_room(*one) for one in zip(encoded, map(len, lines), room, strict=True)]

    def overlong(self, utterances: Sequence[Utterance]) -> dict[int, int]:
        """Positions of utterances of which only the start and the end are read, and how many tokens they have."""
        limit = self.config.max_utterance_tokens
        # A token is a byte at least, so that hardly ever a line is tokenized once more for this.
        long = {i: line for i, line in enumerate(map(_line, utterances)) if len(line.encode()) > limit}
        counts = {i: len(self._tokenizer.encode(line, add_special_tokens=False).ids) for i, line in long.items()}
        return {i: n_tokens for i, n_tokens in counts.items() if n_tokens > limit}

    def windows(self, utterances: Sequence[Utterance], evident: Sequence[bool] = ()) -> list[tuple[int, int, int, int]]:
        """Windows as (first, last, core first, core last), ends exclusive; cores tile the conversation.

        A window with the questions on its core has at most `max_tokens` tokens, or a core of one utterance.
        """
        n, config = len(utterances), self.config
        lines = np.array([0, *(len(line.ids) for line in self.conversation(utterances, evident))]).cumsum()
        # A question repeats the line: with other words around it, that are at most these many tokens more.
        asked = lines + _QUESTION_TOKENS * np.arange(n + 1)
        spans = []
        start = 0
        while start < n:
            first = max(0, start - config.context_before)
            stop, last = start, start
            while stop < n:
                wider = min(n, stop + 1 + config.context_after)
                if stop > start and lines[wider] - lines[first] + asked[stop + 1] - asked[start] > config.max_tokens:
                    break
                stop, last = stop + 1, wider
            spans.append((first, last, start, stop))
            start = stop
        return spans

    def question(self, utterances: Sequence[Utterance], position: int, *, evident: bool = False) -> PromptPart:
        """The question on an utterance, up to where its emotion is answered; `cause_question` goes on from there."""
        asked = f"Question: [{position + 1}] {_line(utterances[position])}"
        encoded = self._tokenizer.encode(f"{asked}\nEmotion:", add_special_tokens=False)
        return self._with_room(encoded, len(asked), evident)

    def pack(
        self, utterances: Sequence[Utterance], asked: Sequence[int], evident: Sequence[bool] = ()
    ) -> PackedQuestions:
        """The conversation and the questions on the utterances at the positions `asked`, which may be none.

        evident: which utterances have soft tokens; () is none.
        """
        tokens: list[int] = []
        soft_at: list[int] = []
        soft_of: list[int] = []

        def add(part: PromptPart, utterance: int) -> None:
            if part.n_soft:
                soft_at.extend(range(len(tokens) + part.soft_at, len(tokens) + part.soft_at + part.n_soft))
                soft_of.extend(range(utterance * part.n_soft, (utterance + 1) * part.n_soft))
            tokens.extend(part.ids)

        for utterance, line in enumerate(self.conversation(utterances, evident)):
            add(line, utterance)
        prefix = len(tokens)
        positions, segments = list(range(prefix)), [CONVERSATION] * prefix
        emotion_at, cause_at = [], []
        for number, position in enumerate(asked):
            start = len(tokens)
            add(self.question(utterances, position, evident=bool(evident) and evident[position]), position)
            emotion_at.append(len(tokens) - 1)
            tokens += self.cause_question
            cause_at.append(len(tokens) - 1)
            positions += range(prefix, prefix + len(tokens) - start)
            segments += [number] * (len(tokens) - start)
        packed = (tokens, positions, segments, emotion_at, cause_at, soft_at, soft_of)
        return PackedQuestions(*(np.array(x, np.int64) for x in packed))

    def _with_room(self, encoded: Encoding, n_characters: int, evident: bool) -> PromptPart:
        """An encoding, shortened, with room for soft tokens behind its first `n_characters`."""
        ids = self._shortened(encoded.ids)
        if not evident or not self.config.soft_tokens:
            return PromptPart(ids)
        n_behind = sum(start >= n_characters for start, _ in encoded.offsets)
        at = len(ids) - n_behind
        return PromptPart([*ids[:at], *([_ROOM] * self.config.soft_tokens), *ids[at:]], at, self.config.soft_tokens)

    def _shortened(self, ids: list[int]) -> list[int]:
        excess = len(ids) - self.config.max_utterance_tokens
        half = self.config.max_utterance_tokens // 2
        return ids if excess <= 0 else [*ids[:half], *ids[half + excess :]]

    def _after(self, prompt: str, answer: str) -> list[int]:
        return list(self._tokenizer.encode(f"{prompt}{answer}", add_special_tokens=False).ids)

    def _answer(self, prompt: str, answer: str) -> int:
        """The single token that follows the prompt's own tokens.

        Raises: BundleError: the answer is not one token of its own there.
        """
        before, both = self._after(prompt, ""), self._after(prompt, answer)
        if both[:-1] != before:
            raise BundleError(f"{answer!r} is not one token after {prompt!r} for this tokenizer")
        return both[-1]


_ROOM = 0
"""Any token's id, where a soft token will stand."""

_QUESTION_TOKENS = 24
"""Room for the words around an utterance in a question: 9 tokens more than its line has, for each of ECF `dev` in
SmolLM2's tokenizer; others may split them further."""


def cause_offsets() -> npt.NDArray[np.int64]:
    """int64 (answers,): the offset that each cause answer but the last, `NO_CAUSE`, stands for."""
    return np.array([offset for _, offset in CAUSE_ANSWERS], np.int64)


def pair_logits(
    cause_log_probabilities: npt.NDArray[np.float32],
    first_cause: npt.NDArray[np.int64] | None = None,
    width: int | None = None,
) -> npt.NDArray[np.float32]:
    """Log-odds of every cause, -inf where no answer stands for the distance.

    cause_log_probabilities: float32 (U, answers), of every utterance of a conversation in order, `NO_CAUSE` last.
    first_cause: int64 (U,), the position that column 0 of each row stands for; None for 0 everywhere.
    width: columns; None for U.
    Returns: float32 (U, width); [i, j] is utterance first_cause[i] + j as a cause of i's emotion.
    """
    n = len(cause_log_probabilities)
    columns = n if width is None else width
    logits = np.full((n, columns), -np.inf, np.float32)
    odds = cause_log_probabilities[:, :-1] - cause_log_probabilities[:, -1:]
    for answer, offset in enumerate(cause_offsets()):
        rows = np.arange(max(0, -offset), min(n, n - offset))
        at = rows + offset - (0 if first_cause is None else first_cause[rows])
        inside = (at >= 0) & (at < columns)
        logits[rows[inside], at[inside]] = odds[rows[inside], answer]
    return logits


def _line(utterance: Utterance) -> str:
    text = " ".join((utterance.text or "").split()) or "(nothing said)"
    return f"{utterance.speaker}: {text}" if utterance.speaker else text
