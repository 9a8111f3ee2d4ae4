"""Makes batches for training the fusion: groups conversations by size, tokenizes, pads and adds targets.

Sizes: B conversations, U utterances, W text windows, T tokens. Batches are bounded by tokens rather than by
conversations, since one long conversation can take as much memory as many short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from mechm.model.inputs import IGNORED, TextBatch
from mechm_runtime.fusion.inputs import speaker_numbers
from mechm_runtime.modalities.text_windows import NO_UTTERANCE, ConversationTokenizer
from mechm_runtime.types import EMOTIONS, LabelledConversation


def make_batch(conversations: Sequence[LabelledConversation], tokenizer: ConversationTokenizer) -> TextBatch:
    """Tokenize and pad conversations."""
    B = len(conversations)
    U = max(len(c.emotions) for c in conversations)
    windows = [tokenizer(c.conversation.utterances) for c in conversations]
    # At least one window, even without words: the text encoder takes no empty batch.
    W, T = max(1, sum(len(w.input_ids) for w in windows)), max(w.input_ids.shape[1] for w in windows)
    input_ids, attention_mask = np.zeros((W, T), np.int64), np.zeros((W, T), np.int64)
    attention_mask[0, 0] = 1
    token_utterance = np.full((W, T), B * U, np.int64)
    masks = {name: np.zeros((B, U), bool) for name in ("text", "utterance")}
    speaker_ids = np.full((B, U), -1, np.int64)
    emotions = np.full((B, U), IGNORED, np.int64)
    causes, cause_mask = np.zeros((B, U, U), np.float32), np.zeros((B, U, U), bool)
    row = 0
    for b, (labelled, window) in enumerate(zip(conversations, windows, strict=True)):
        n_rows, n_tokens = window.input_ids.shape
        rows = slice(row, row + n_rows)
        input_ids[rows, :n_tokens], attention_mask[rows, :n_tokens] = window.input_ids, window.attention_mask
        owned = window.utterance_index != NO_UTTERANCE
        token_utterance[rows, :n_tokens][owned] = b * U + window.utterance_index[owned]
        row += n_rows
        n = len(labelled.emotions)
        masks["text"][b, :n], masks["utterance"][b, :n] = window.has_text, True
        speaker_ids[b, :n] = speaker_numbers(labelled.conversation.utterances)
        emotions[b, :n] = [EMOTIONS.index(emotion) for emotion in labelled.emotions]
        position = {u.id: i for i, u in enumerate(labelled.conversation.utterances)}
        for pair in labelled.pairs:
            causes[b, position[pair.emotion_utterance], position[pair.cause_utterance]] = 1
        # Only emotional utterances have annotated causes; a corpus of single comments has none at all.
        if labelled.pairs:
            cause_mask[b, :n, :n] = (emotions[b, :n] != 0)[:, None]
    return TextBatch(
        *(torch.from_numpy(x) for x in (input_ids, attention_mask, token_utterance)),
        *(torch.from_numpy(x) for x in (masks["text"], masks["utterance"], speaker_ids, emotions, causes, cause_mask)),
    )


def group_by_size(
    conversations: Sequence[LabelledConversation], max_tokens: int, random: np.random.Generator | None = None
) -> Iterator[list[LabelledConversation]]:
    """Group conversations of similar size so that a padded group stays below `max_tokens`.

    A larger conversation is a group of its own. With `random`, neighbours in size and the groups' order are shuffled.
    Sizes are estimated at four characters per WordPiece, without tokenizing.
    """
    sizes = np.array([sum(len(u.text or "") // 4 + 4 for u in c.conversation.utterances) for c in conversations])
    noise = random.uniform(0.8, 1.25, len(sizes)) if random is not None else np.ones(len(sizes))
    groups: list[list[LabelledConversation]] = [[]]
    largest = 0
    for index in np.argsort(sizes * noise, kind="stable"):
        largest = max(largest, int(sizes[index]))
        if groups[-1] and largest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            largest = int(sizes[index])
        groups[-1].append(conversations[index])
    groups = [group for group in groups if group]  # without conversations the first group is empty
    order = random.permutation(len(groups)) if random is not None else range(len(groups))
    for index in order:
        yield groups[index]
