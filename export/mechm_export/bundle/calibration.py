"""Real inputs for lower precisions: token windows of conversations, what a recording makes of itself, the Llama's
questions. Whether a precision is good enough is not decided here (`gate`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mechm.llm.packed import TorchLlama
from mechm_export.bundle.manifest import text_preprocessing
from mechm_export.check_data import check_recordings
from mechm_export.gate.comparison import one_torch_thread
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.gate.judge import CheckSet
from mechm_export.graphs.part import Feeds
from mechm_export.llama.compressed import even_out
from mechm_export.llama.part import LlamaSource, question_inputs
from mechm_export.parts import ModelParts
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import Conversation

CONVERSATIONS = 100
LLAMA_CONVERSATIONS = 12
"""Fewer, since every utterance of one is read twice, and all states of it are looked at."""


def text_inputs(model: ModelParts, checks: CheckSet) -> list[Feeds]:
    """Token windows of the check set's conversations, the first hundred."""
    tokenizer = ConversationTokenizer(model.tokenizer, text_preprocessing(model.config))
    windows = [tokenizer(one.conversation.utterances) for one in checks.labelled[:CONVERSATIONS]]
    return [{"input_ids": w.input_ids, "attention_mask": w.attention_mask} for w in windows if len(w.input_ids)]


def recordings_of(checks: CheckSet) -> tuple[Conversation, ...]:
    """The check set's recordings; where it has none, the shipped one."""
    return checks.recorded or check_recordings()


def recorded_inputs(
    bundle: Bundle, recordings: Sequence[Conversation], parts: Collection[str]
) -> Mapping[str, list[Feeds]]:
    """What the runtime hands to parts when it analyses recordings, by part; empty for one that nothing reaches.

    bundle: with every part in fp32.
    """
    reference = Fp32Reference(bundle, CheckSet("recordings", (), tuple(recordings)), parts)
    return {name: reference.inputs(name) if reference.reaches(name) else [] for name in parts}


def even_out_llama(source: LlamaSource, checks: CheckSet) -> None:
    """Prepare the Llama's weights for 8 bits, in place, on the first of the check set's conversations."""
    some = [one.conversation for one in checks.labelled[:LLAMA_CONVERSATIONS]]
    asked, torch_llama = question_inputs(source, some), TorchLlama(source.scores)
    with one_torch_thread():  # what is measured here goes into the weights
        even_out(source.scores.causal, lambda: [torch_llama.run(inputs) for inputs in asked], values=False)
