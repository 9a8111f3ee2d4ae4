"""torch.compile: the encoders and the fusion compiled, on a voice's own length, without a Llama.

Sizes are dynamic, so that another utterance's length is not compiled again. Compiling happens in the first conversation
and takes a minute; it needs a C++ compiler. There is no Llama in it: compiling its two passes, over a prompt and over a
token, had not ended after eight minutes on two busy cores (torch 2.13).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from mechm.bench.rivals import RivalConfig
from mechm.bench.rivals.by_utterance import ByUtterance, Writer
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.errors import InputError

SIZED = ("scene", "detector", "expression")
"""Parts whose input always has one size here: one frame, one face."""


def make(bundle: Bundle, config: RivalConfig) -> ByUtterance:
    """See `mechm.bench.rivals.make_rival`.

    Raises: InputError: there is no C++ compiler.
    """
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        raise InputError("torch.compile needs a C++ compiler", hint="apt-get install g++, or leave the baseline out")

    def load() -> tuple[Mapping[str, GraphRunner], Writer | None]:
        import torch

        from mechm.bench.rivals.torch_parts import as_runners, load_modules

        torch.set_num_threads(config.n_threads)
        modules = load_modules(bundle, config.trained)
        compiled = {name: torch.compile(module, dynamic=name not in SIZED) for name, module in modules.items()}
        return as_runners(bundle, compiled), None

    return ByUtterance("torch.compile", bundle, load, llama="", pads=False, modalities=config.modalities)
