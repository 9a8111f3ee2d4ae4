"""Makes the Llama's prompts: the conversation, followed by questions whose next token is the answer.

A question repeats its utterance. The emotion is scored at the end of `Emotion:`, the causes at the end of `Cause:`,
each from a few tokens that stand for the answers. A question attends to the conversation and to itself, so that all
questions fit into one forward pass, and the conversation's cached prefix serves the next utterance's questions too.
Because the utterance is repeated, a model that reads from left to right reads it once more after all later utterances.
Training and runtime share this module. It runs no model.

Voice, face and frames of an utterance follow its words, in the conversation and in the question, as a few soft tokens:
vectors in place of token embeddings. This module reserves their positions. An utterance without voice, face and frames
has none, so that its prompt is that of text alone.

A cause is named by its distance: `0` for the utterance itself, `1` to `9` turns back, `a` to `c` turns ahead, which
covers 99.8 % of the pairs of ECF 1.0 `train`. Distances need no counting of absolute numbers, and are single tokens for
SmolLM2 and Llama-2 alike, which split `12` into two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from mechm_runtime.bundle.config import QuestionConfig
from mechm_runtime.errors import BundleError
from mechm_runtime.system.arrays import BoolArray, Float32Array, Int64Array
from mechm_runtime.types import EMOTIONS, Utterance

CAUSE_ANSWERS: tuple[tuple[str, int], ...] = (
    *((str(back), -back) for back in range(10)),
    *(("abc"[ahead - 1], ahead) for ahead in range(1, 4)),
)
"""(answer, offset of the cause from the emotion's utterance)."""

NO_CAUSE = "x"
"""The answer for "no cause". The odds of a cause are its probability divided by this answer's."""

CONVERSATION = -1
"""Segment number of the conversation's own tokens."""


@dataclass(frozen=True, slots=True)
class PackedQuestions:
    """Questions on one conversation, packed for one forward pass.

    input_ids, position_ids: int64 (T,). segments: int64 (T,), CONVERSATION or the number of the token's question.
    emotion_at, cause_at: int64 (Q,), positions at which the answers of each question are scored.
    soft_at: int64 (S,), positions of the soft tokens; the ids there are placeholders. soft_of: int64 (S,), index of the
        soft token at each of them: utterance * soft_tokens + number.
    """

    input_ids: Int64Array
    position_ids: Int64Array
    segments: Int64Array
    emotion_at: Int64Array
    cause_at: Int64Array
    soft_at: Int64Array
    soft_of: Int64Array

    def attention_mask(self) -> BoolArray:
        """bool (T, T): whether token i attends to token j: to itself, to earlier tokens of its segment, and to the
        conversation."""
        causal = np.tril(np.ones((len(self.segments),) * 2, bool))
        own = self.segments[None] == self.segments[:, None]
        return np.asarray(causal & (own | (self.segments[None] == CONVERSATION)))


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Tokens of a line or a question, with placeholders for `n_soft` soft tokens from position `soft_at` on."""

    ids: list[int]
    soft_at: int = 0
    n_soft: int = 0


class QuestionTokenizer:
    """Turns utterances and questions into tokens with the Llama's own tokenizer.

    tokenizer_file: a `tokenizer.json`. config: sizes; None for the defaults.
    Raises: BundleError: the file is no tokenizer, or an answer is not one token of its own for it.
    """

    def __init__(self, tokenizer_file: Path, config: QuestionConfig | None = None) -> None:
        self.config = config or QuestionConfig()
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file.name} is not a tokenizer file") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A speaker who says "<|im_end|>" must not end the prompt with it.
        self._tokenizer.encode_special_tokens = True
        self.emotion_answers = np.array([self._answer("Emotion:", f" {emotion}") for emotion in EMOTIONS], np.int64)
        words = [answer for answer, _ in CAUSE_ANSWERS] + [NO_CAUSE]
        self.cause_answers = np.array([self._answer("Cause:", word) for word in words], np.int64)
        self.cause_question: list[int] = self._tokenizer.encode("\nCause:", add_special_tokens=False).ids
        for answers in (self.emotion_answers, self.cause_answers):
            if len(set(answers.tolist())) != len(answers):
                raise BundleError("two answers are the same token for this tokenizer")

    def conversation(self, utterances: Sequence[Utterance], has_nonverbal: Sequence[bool] = ()) -> list[PromptPart]:
        """The line of each utterance.

        has_nonverbal: for each utterance whether it has soft tokens; () for none.
        """
        lines = [f"[{number}] {_line(u)}" for number, u in enumerate(utterances, 1)]
        encoded = self._tokenizer.encode_batch([f"{line}\n" for line in lines], add_special_tokens=False)
        soft = has_nonverbal or [False] * len(lines)
        return [self._with_placeholders(*one) for one in zip(encoded, map(len, lines), soft, strict=True)]

    def overlong(self, utterances: Sequence[Utterance]) -> dict[int, int]:
        """Position -> number of tokens, of utterances of which only the start and the end are read."""
        limit = self.config.max_utterance_tokens
        # A token has at least one byte, so that only very long lines are tokenized once more for this.
        long = {i: line for i, line in enumerate(map(_line, utterances)) if len(line.encode()) > limit}
        counts = {i: len(self._tokenizer.encode(line, add_special_tokens=False).ids) for i, line in long.items()}
        return {i: n_tokens for i, n_tokens in counts.items() if n_tokens > limit}

    def windows(
        self, utterances: Sequence[Utterance], has_nonverbal: Sequence[bool] = ()
    ) -> list[tuple[int, int, int, int]]:
        """Split a conversation into windows: (first, last, core first, core last), ends exclusive.

        Every utterance is in exactly one core. A window with the questions on its core has at most `max_tokens` tokens,
        or a core of one utterance.
        """
        n, config = len(utterances), self.config
        lines = np.array([0, *(len(line.ids) for line in self.conversation(utterances, has_nonverbal))]).cumsum()
        # A question repeats the line, with at most `_QUESTION_TOKENS` tokens around it.
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

    def question(self, utterances: Sequence[Utterance], position: int, *, has_nonverbal: bool = False) -> PromptPart:
        """The question on an utterance up to the answer for its emotion; `cause_question` follows in its place."""
        asked = f"Question: [{position + 1}] {_line(utterances[position])}"
        encoded = self._tokenizer.encode(f"{asked}\nEmotion:", add_special_tokens=False)
        return self._with_placeholders(encoded, len(asked), has_nonverbal)

    def pack(
        self, utterances: Sequence[Utterance], asked: Sequence[int], has_nonverbal: Sequence[bool] = ()
    ) -> PackedQuestions:
        """Pack the conversation and the questions on the utterances at the positions `asked`, which may be empty.

        has_nonverbal: for each utterance whether it has soft tokens; () for none.
        """
        tokens: list[int] = []
        soft_at: list[int] = []
        soft_of: list[int] = []

        def add(part: PromptPart, utterance: int) -> None:
            if part.n_soft:
                soft_at.extend(range(len(tokens) + part.soft_at, len(tokens) + part.soft_at + part.n_soft))
                soft_of.extend(range(utterance * part.n_soft, (utterance + 1) * part.n_soft))
            tokens.extend(part.ids)

        for utterance, line in enumerate(self.conversation(utterances, has_nonverbal)):
            add(line, utterance)
        prefix = len(tokens)
        positions, segments = list(range(prefix)), [CONVERSATION] * prefix
        emotion_at, cause_at = [], []
        for number, position in enumerate(asked):
            start = len(tokens)
            add(
                self.question(utterances, position, has_nonverbal=bool(has_nonverbal) and has_nonverbal[position]),
                position,
            )
            emotion_at.append(len(tokens) - 1)
            tokens += self.cause_question
            cause_at.append(len(tokens) - 1)
            positions += range(prefix, prefix + len(tokens) - start)
            segments += [number] * (len(tokens) - start)
        packed = (tokens, positions, segments, emotion_at, cause_at, soft_at, soft_of)
        return PackedQuestions(*(np.array(x, np.int64) for x in packed))

    def _with_placeholders(self, encoded: Encoding, n_characters: int, has_nonverbal: bool) -> PromptPart:
        """The tokens of an encoding, shortened, with placeholders for soft tokens behind its first `n_characters`."""
        ids = self._shortened(encoded.ids)
        if not has_nonverbal or not self.config.soft_tokens:
            return PromptPart(ids)
        n_behind = sum(start >= n_characters for start, _ in encoded.offsets)
        at = len(ids) - n_behind
        return PromptPart(
            [*ids[:at], *([_PLACEHOLDER_ID] * self.config.soft_tokens), *ids[at:]], at, self.config.soft_tokens
        )

    def _shortened(self, ids: list[int]) -> list[int]:
        excess = len(ids) - self.config.max_utterance_tokens
        half = self.config.max_utterance_tokens // 2
        return ids if excess <= 0 else [*ids[:half], *ids[half + excess :]]

    def _ids(self, prompt: str, answer: str) -> list[int]:
        return list(self._tokenizer.encode(f"{prompt}{answer}", add_special_tokens=False).ids)

    def _answer(self, prompt: str, answer: str) -> int:
        """The single token that follows the prompt's own tokens.

        Raises: BundleError: the answer is not one token of its own there.
        """
        before, both = self._ids(prompt, ""), self._ids(prompt, answer)
        if both[:-1] != before:
            raise BundleError(f"{answer!r} is not one token after {prompt!r} for this tokenizer")
        return both[-1]


_PLACEHOLDER_ID = 0
"""Any token's id, in the place of a soft token."""

_QUESTION_TOKENS = 24
"""Upper bound of the tokens that a question has around its utterance: 9 more than its line, for every utterance of ECF
`dev` with SmolLM2's tokenizer; other tokenizers may need more."""


def cause_offsets() -> Int64Array:
    """int64 (answers,): the offset of each cause answer except the last, `NO_CAUSE`."""
    return np.array([offset for _, offset in CAUSE_ANSWERS], np.int64)


def pair_logits(
    cause_log_probabilities: Float32Array,
    first_cause: Int64Array | None = None,
    width: int | None = None,
) -> Float32Array:
    """Log-odds of every cause, -inf where no answer exists for the distance.

    cause_log_probabilities: float32 (U, answers), of every utterance of a conversation in order, `NO_CAUSE` last.
    first_cause: int64 (U,), the position of the utterance in column 0 of each row; None for 0 everywhere.
    width: number of columns; None for U.
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
