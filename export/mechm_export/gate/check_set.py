"""Conversations on which precisions are compared with torch."""

from __future__ import annotations

from dataclasses import dataclass

from mechm_export.check_data import check_conversations
from mechm_runtime.types import Conversation, LabelledConversation

SHIPPED_SPLIT = "mechm check conversations"


@dataclass(frozen=True, slots=True)
class CheckSet:
    """Conversations on which precisions are compared with torch.

    name: the split, as the manifest carries it. labelled: annotated text. recorded: conversations with media.
    """

    name: str
    labelled: tuple[LabelledConversation, ...]
    recorded: tuple[Conversation, ...] = ()


def shipped_check_set() -> CheckSet:
    """The conversations that come with this package, text only."""
    return CheckSet(SHIPPED_SPLIT, check_conversations())
