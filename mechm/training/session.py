"""Frame of every training from files: joins the processes, checks the output folder and ends the processes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mechm.model.build import CARD_FILE
from mechm.training.checkpoint import check_resumable, check_unused, has_checkpoint
from mechm.training.distributed import start_processes
from mechm.training.reporter import TrainingReporter


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Output of a training. card: as written into `out`, with the scores."""

    out: Path
    card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrainingSession:
    """A training in one or more processes.

    reporter: silent in all processes but the main one. finished: the training to resume is complete already.
    """

    accelerator: Accelerator
    reporter: TrainingReporter
    finished: bool

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which alone writes and reports."""
        return bool(self.accelerator.is_main_process)


@contextmanager
def training_session(
    out: Path, *, resume: bool, n_threads: int | None, reporter: TrainingReporter | None
) -> Iterator[TrainingSession]:
    """Join the training's processes and check `out`; at the end, leave the process group.

    n_threads: CPU threads of torch, None for its own choice. reporter: None for silence.
    Raises: WeightsError: `out` holds something and is not to be resumed, or holds nothing to resume.
    """
    accelerator = start_processes()
    own = reporter if reporter is not None and accelerator.is_main_process else TrainingReporter()
    try:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        yield TrainingSession(accelerator, own, finished=not _is_to_be_trained(out, accelerator, own, resume=resume))
    except (KeyboardInterrupt, SystemExit):
        if has_checkpoint(out):
            own.stopped(out)
        raise
    accelerator.end_training()


def _is_to_be_trained(out: Path, accelerator: Accelerator, reporter: TrainingReporter, *, resume: bool) -> bool:
    """Check the output folder before anything is read; False where the training to resume is complete.

    Every process checks before any of them writes.
    """
    finished = resume and (out / CARD_FILE).is_file() and not has_checkpoint(out)
    if finished:
        reporter.already_finished(out)
    elif resume:
        check_resumable(out)
    else:
        check_unused(out)
    accelerator.wait_for_everyone()
    return not finished
