"""The original implementation: torch eager in fp32, one utterance at a time, 30 s of padding, a Llama that generates.

MER-MCE and similar systems run like this: encoders of audio and video on one utterance and one frame at a time, the
LoRA unmerged beside the Llama (peft), and 20 tokens generated per utterance.
"""

from __future__ import annotations

from collections.abc import Mapping

from mechm.bench.rivals import RivalConfig
from mechm.bench.rivals.per_utterance import AnswerGenerator, PerUtteranceSystem
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner


def make(bundle: Bundle, config: RivalConfig) -> PerUtteranceSystem:
    """See `mechm.bench.rivals.make_rival`."""

    def load() -> tuple[Mapping[str, GraphRunner], AnswerGenerator | None]:
        import torch

        from mechm.bench.rivals.generators import TransformersGenerator, question_tokenizer, unmerged_llama
        from mechm.bench.rivals.torch_parts import as_runners, load_modules

        torch.set_num_threads(config.n_threads)
        parts = as_runners(bundle, load_modules(bundle, config.trained))
        if not config.generates:
            return parts, None
        llama = unmerged_llama(bundle.preset, config.adapter, torch.float32)
        return parts, TransformersGenerator(llama, question_tokenizer(bundle))

    return PerUtteranceSystem(
        "torch, original manner",
        bundle,
        load,
        llama="Llama" if config.generates else "",
        pads=True,
        modalities=config.modalities,
    )
