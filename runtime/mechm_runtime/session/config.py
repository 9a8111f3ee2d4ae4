"""Bounds of a session: how much of a conversation it keeps, and when streamed voice and frames are encoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Bounds of a session's memory and of the cost of an utterance.

    turns: utterances that a later one can still change; older ones are final and dropped.
    text_tokens: tokens of the newest utterances that the text encoder encodes together with each new one. With 80 the
        hundredth utterance takes as long as the fifth (`mechm bench`). With 128, which cost more in long conversations,
        F1 on ECF `dev` is 0.002 higher at once, 0.006 at the end (`benchmarks/streaming.py`, int8, with the Llama).
    llm_tokens: tokens that the Llama's context may grow to, the questions included; then a new context is begun.
    llm_turns: utterances that a new context begins with.
    revised_turns: utterances before the newest that the Llama is asked about again. On ECF `dev` answers are as good
        without (`benchmarks/streaming.py`), and each costs as much as the newest.
    piece_s: seconds of a voice that are encoded at once while it still speaks, from 0.5 to 30.
    frame_s: seconds between frames that are encoded while an utterance is spoken.

    Raises: ValueError: a value out of its range.
    """

    turns: int = 32
    text_tokens: int = 80
    llm_tokens: int = 384
    llm_turns: int = 10
    revised_turns: int = 0
    piece_s: float = 3.0
    frame_s: float = 0.5

    def __post_init__(self) -> None:
        if min(self.turns, self.text_tokens, self.llm_tokens, self.llm_turns) < 1:
            raise ValueError("a bound of a session is not positive")
        if self.llm_turns >= self.turns:
            raise ValueError(f"llm_turns={self.llm_turns} of {self.turns} turns leaves the Llama nothing to grow by")
        if not 0 <= self.revised_turns < self.turns:
            raise ValueError(f"revised_turns={self.revised_turns} does not lie among {self.turns} turns")
        if not 0.5 <= self.piece_s <= 30.0:
            raise ValueError(f"piece_s={self.piece_s} is not between 0.5 and 30 seconds")
        if self.frame_s <= 0:
            raise ValueError(f"frame_s={self.frame_s} is not positive")
