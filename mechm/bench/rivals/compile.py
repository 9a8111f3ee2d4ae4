"""torch.compile: the encoders and the fusion compiled, audio at its own length, without a Llama.

Sizes are dynamic, so that another length is not compiled again. Compilation happens in the first conversation and takes
a minute; it needs a C++ compiler. There is no Llama: compiling its two passes, over a prompt and over one token, had
not finished after eight minutes on two busy cores (torch 2.13).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from mechm.bench.rivals import RivalConfig
from mechm.bench.rivals.per_utterance import AnswerGenerator, PerUtteranceSystem
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import InputError

FIXED_SIZE_PARTS = ("scene", "detector", "expression")
"""Parts whose input always has the same size here: one frame, one face."""


def make(bundle: Bundle, config: RivalConfig) -> PerUtteranceSystem:
    """See `mechm.bench.rivals.make_rival`.

    Raises: InputError: there is no C++ compiler.
    """
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        raise InputError("torch.compile needs a C++ compiler", hint="apt-get install g++, or leave the baseline out")

    def load() -> tuple[Mapping[str, GraphRunner], AnswerGenerator | None]:
        import torch

        from mechm.bench.rivals.torch_parts import as_runners, load_modules

        torch.set_num_threads(config.n_threads)
        modules = load_modules(bundle, config.trained)
        compiled = {
            name: torch.compile(module, dynamic=name not in FIXED_SIZE_PARTS) for name, module in modules.items()
        }
        return as_runners(bundle, compiled), None

    return PerUtteranceSystem("torch.compile", bundle, load, llama="", pads=False, modalities=config.modalities)
