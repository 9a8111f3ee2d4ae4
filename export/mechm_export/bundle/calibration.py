"""Real inputs for the calibration of lower precisions: from conversations, from recordings, and for the Llama.

Whether a precision is good enough is decided by `gate`, not here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from mechm.llm.packed import TorchLlama
from mechm_export.bundle.manifest import text_preprocessing
from mechm_export.check_data import check_recordings
from mechm_export.gate.check_set import CheckSet
from mechm_export.gate.comparison import one_torch_thread
from mechm_export.gate.fp32_reference import Fp32Reference
from mechm_export.graphs.part import Feeds
from mechm_export.llama.compressed import smooth_channels
from mechm_export.llama.part import LlamaSource, question_inputs
from mechm_export.parts import ModelParts
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.modalities.text_windows import ConversationTokenizer
from mechm_runtime.types import Conversation

MAX_CONVERSATIONS = 100
MAX_LLAMA_CONVERSATIONS = 12
"""Fewer for the Llama, which reads every utterance twice, and all of whose states are measured."""


def text_inputs(model: ModelParts, checks: CheckSet) -> list[Feeds]:
    """Token windows of the first MAX_CONVERSATIONS conversations of the check set."""
    tokenizer = ConversationTokenizer(model.tokenizer, text_preprocessing(model.config))
    windows = [tokenizer(one.conversation.utterances) for one in checks.labelled[:MAX_CONVERSATIONS]]
    return [{"input_ids": w.input_ids, "attention_mask": w.attention_mask} for w in windows if len(w.input_ids)]


def recordings_or_shipped(checks: CheckSet) -> tuple[Conversation, ...]:
    """The check set's recordings, or the shipped one where it has none."""
    return checks.recorded or check_recordings()


def recorded_inputs(
    bundle: Bundle, recordings: Sequence[Conversation], parts: Collection[str]
) -> Mapping[str, list[Feeds]]:
    """The inputs that the runtime feeds to parts when it analyses recordings; empty for a part that is not run.

    bundle: with every part in fp32.
    Returns: part -> its inputs.
    """
    reference = Fp32Reference(bundle, CheckSet("recordings", (), tuple(recordings)), parts)
    return {name: reference.inputs(name) if reference.reaches(name) else [] for name in parts}


def smooth_llama(source: LlamaSource, checks: CheckSet) -> None:
    """Smooth the Llama's channels for 8 bits, in place, on the first conversations of the check set."""
    some = [one.conversation for one in checks.labelled[:MAX_LLAMA_CONVERSATIONS]]
    asked, torch_llama = question_inputs(source, some), TorchLlama(source.scores)
    with one_torch_thread():  # the measured magnitudes go into the weights
        smooth_channels(source.scores.causal, lambda: [torch_llama.run(inputs) for inputs in asked], values=False)
