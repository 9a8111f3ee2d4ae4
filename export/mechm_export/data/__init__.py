"""A few annotated conversations that show whether an exported bundle still decides as torch does.

`conversations.json` holds 12 everyday conversations in ECF / SemEval-2024 Task 3 form: family, work, a doctor's call,
customer service, friends, school, neighbours, travel, a night line, a restaurant, siblings, camping. They were written
for this project and annotated after ECF's guidelines (Xia and Wang's emotion-cause pairs, causes as utterances), copy
nothing and are dedicated to the public domain (CC0 1.0).

They serve where no annotated corpus is at hand: precisions of one bundle are compared with torch, and with each other,
label by label and pair by pair. About 130 utterances are far too few to state how accurate a model is; that takes a
corpus and its `test` split.
"""

from __future__ import annotations

from importlib import resources

from mechm_runtime.readers import read_labelled
from mechm_runtime.types import LabelledConversation

__all__ = ["check_conversations"]


def check_conversations() -> tuple[LabelledConversation, ...]:
    """The conversations with their annotation, text only."""
    with resources.as_file(resources.files(__name__) / "conversations.json") as path:
        return read_labelled(path)
