"""The original manner: torch eager in fp32, each utterance on its own, 30 s of Whisper padding, a Llama that writes.

So MER-MCE and its kind run: encoders of voice and picture one utterance and one frame at a time, the LoRA beside the
Llama (peft), and 20 tokens written to each utterance's question.
"""

from __future__ import annotations

from collections.abc import Mapping

from mechm.bench.rivals import RivalConfig
from mechm.bench.rivals.by_utterance import ByUtterance, Writer
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner


def make(bundle: Bundle, config: RivalConfig) -> ByUtterance:
    """See `mechm.bench.rivals.make_rival`."""

    def load() -> tuple[Mapping[str, GraphRunner], Writer | None]:
        import torch

        from mechm.bench.rivals.torch_parts import as_runners, load_modules
        from mechm.bench.rivals.writers import TransformersWriter, question_tokenizer, unmerged_llama

        torch.set_num_threads(config.n_threads)
        parts = as_runners(bundle, load_modules(bundle, config.trained))
        if not config.writes:
            return parts, None
        llama = unmerged_llama(bundle.preset, config.adapter, torch.float32)
        return parts, TransformersWriter(llama, question_tokenizer(bundle))

    return ByUtterance(
        "torch, original manner",
        bundle,
        load,
        llama="Llama" if config.writes else "",
        pads=True,
        modalities=config.modalities,
    )
