"""A training of the preset `tiny`, as a script that tests run in processes of their own, to kill them or to have two.

python tiny_training.py '{"out": …, "tokenizer": …, "log": …, …}', where more is `kill_at` a step, `seed_by_rank`, and
fields of `LoopConfig`. Every process appends what it did to LOG.RANK: a line of JSON a step, and one a file it wrote.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.model.build import build_network
from mechm.model.config import TINY
from mechm.training import checkpoint, fusion
from mechm.training.distributed import start_processes
from mechm.training.loop import LoopConfig, StepReport
from mechm.training.stages import Stage
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import TextConfig
from mechm_runtime.modalities.text_windows import ConversationTokenizer

CONFIG = fusion.FusionTrainingConfig(
    stages=(Stage("warm-up", ("comments",), 1), Stage("target", ("target", "comments"), 2)),
    max_tokens=150,
    text_lr=1e-3,
    fusion_lr=1e-3,
    ema_decay=0.8,
    evidence=SimulationConfig(conversation_rate=0.3),
)


def train(
    out: Path,
    tokenizer_file: Path,
    loop: LoopConfig,
    on_step: Callable[[StepReport], None] | None = None,
    config: fusion.FusionTrainingConfig = CONFIG,
    n_conversations: int = 9,
    seed: int = 0,
) -> float:
    """Train on a few conversations, with dropout, other names and evidence, so that every kind of chance takes part."""
    some = check_conversations()[:n_conversations]
    tokenizer = ConversationTokenizer(tokenizer_file, TextConfig(TINY.text.max_tokens, 16))
    evidence = SimulatedModalities(TINY, {}, config.evidence)
    # Without causes: the pair head gets no gradient from them.
    corpora = {"target": some, "comments": [replace(one, pairs=frozenset()) for one in some[:4]]}
    return fusion.train_fusion(
        build_network(TINY, None, seed=seed),
        tokenizer,
        corpora,
        some[:3],
        evidence,
        config,
        out,
        {},
        on_step,
        loop=loop,
    )


def main(
    out: str, tokenizer: str, log: str, kill_at: int | None = None, seed_by_rank: bool = False, **loop: Any
) -> None:
    """Train and log; die at a step where one is given."""
    rank = int(os.environ.get("RANK", "0"))
    file = Path(f"{log}.{rank}")

    def note(value: Any) -> None:
        with file.open("a", encoding="utf-8") as lines:
            print(json.dumps(value), file=lines)

    def writing(write: Callable[..., None]) -> Callable[..., None]:
        def logged(*arguments: Any, **options: Any) -> None:
            note("wrote")
            write(*arguments, **options)

        return logged

    checkpoint.save_file = writing(checkpoint.save_file)  # type: ignore[attr-defined]
    fusion.save_trained = writing(fusion.save_trained)  # type: ignore[attr-defined]

    def on_step(report: StepReport) -> None:
        note([report.loss, report.gradient_norm, report.utterances])
        if report.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(Path(out), Path(tokenizer), LoopConfig(**loop), on_step, seed=rank if seed_by_rank else 0)
    start_processes().end_training()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
