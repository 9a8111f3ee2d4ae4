"""The loop that every training runs: steps of batches, a score on `dev` after an epoch, the best weights kept.

It runs in one process or many, saves its state while it runs and goes on from there without losing a step: batches are
planned from the seed, and what is random in a batch follows from the seed and the batch's number, so that neither a
stop nor the number of processes changes what is learnt. It knows nothing about models or losses.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mechm.training.calibration import ScoredConversation
from mechm.training.checkpoint import (
    Learner,
    Position,
    check_unused,
    fingerprint,
    load_checkpoint,
    save_checkpoint,
)
from mechm.training.distributed import check_agreement, sum_gradients
from mechm.training.interrupt import deferred_signals
from mechm.training.run_record import run_record, update_card
from mechm.training.schedule import learning_rate
from mechm.training.stages import Epoch, Group, Stage
from mechm.training.tracking import TrackingConfig, tracking
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import MechmError

MAX_GRADIENT_NORM = 1.0


class TrainingDivergedError(MechmError):
    """The loss, its gradient or a score is no longer a number; the last good weights are kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="train anew with a lower learning rate")


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """How a training runs, apart from what it learns.

    accumulate: batches a step in each process; their gradients are averaged.
    save_every_s: seconds between checkpoints; there is one after every epoch as well.
    resume: go on from the checkpoint in the output folder.
    """

    accumulate: int = 1
    save_every_s: float = 300.0
    resume: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.save_every_s < 0:
            raise ValueError("accumulate counts batches from 1, save_every_s is no negative time")

    def batches_a_step(self, accelerator: Accelerator) -> int:
        """Batches whose gradients one step averages, over all processes."""
        return self.accumulate * int(accelerator.num_processes)


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step, counted from 1.

    loss: mean of its batches. learning_rate: of the optimizer's first parameter group. gradient_norm: before clipping.
    utterances: in its batches, of all processes.
    """

    step: int
    n_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    utterances: int


@dataclass(frozen=True, slots=True)
class DevScores:
    """What weights reach on `dev` with the decision fitted there; `scored` are their scores of it, in its order."""

    decision: DecisionConfig
    weighted_f1: float
    emotion_accuracy: float
    scored: Sequence[ScoredConversation] = ()


@dataclass(frozen=True, slots=True)
class EpochReport:
    """An epoch: mean loss of its steps, their seconds, and scores on `dev`, which are 0 where it was not scored."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    dev_weighted_f1: float = 0.0
    dev_emotion_accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, on what.

    plan: see `plan_epochs`. warmup: share of the steps in which the learning rate rises to those of the optimizer's
        parameter groups.
    loss: of a batch, with gradients; `random` is the batch's own, and torch's global generator is seeded likewise.
    evaluate: scores of the weights that would be kept now, None after epochs of a stage that is not scored. It runs in
        every process and gives each the same. keep: writes those weights with the record of the run so far, in the
        main process alone.
    identity: JSON values that make this training what it is; one that differs cannot be gone on with.
    """

    learner: Learner
    plan: Sequence[Epoch]
    seed: int
    warmup: float
    loss: Callable[[Group, np.random.Generator], Tensor]
    evaluate: Callable[[Stage], DevScores | None]
    keep: Callable[[EpochReport, DevScores, dict[str, Any]], None]
    identity: Mapping[str, Any]


def run_training(
    task: Task,
    config: LoopConfig,
    out: Path,
    accelerator: Accelerator,
    on_step: Callable[[StepReport], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> float:
    """Train to the end of the plan and return the best weighted F1 on `dev`, -1 where it was never scored.

    The checkpoint stays in `out`, so that what comes after the training can be repeated; `discard_checkpoint` ends it.
    Several processes share `out`. SIGINT and SIGTERM save and leave, see `deferred_signals`.
    Raises: TrainingDivergedError: a loss or gradient is not finite. InputError: the processes differ in what they
        train. WeightsError: `out` is not empty, or, to go on, holds no checkpoint of this training; or a checkpoint
        cannot be written.
    """
    learner, plan = task.learner, task.plan
    batches_a_step = config.batches_a_step(accelerator)
    identity = {**task.identity, "batches a step": batches_a_step, "base weights": fingerprint(learner.model)}
    check_agreement(accelerator, identity)
    position = Position()
    if config.resume:
        position = load_checkpoint(out, learner, identity)
    elif accelerator.is_main_process:
        check_unused(out)
    accelerator.wait_for_everyone()  # no process writes before the folder was found empty

    n_steps_of = [math.ceil(len(epoch.groups) / batches_a_step) for epoch in plan]
    first_step = list(itertools.accumulate(n_steps_of, initial=0))
    first_batch = list(itertools.accumulate((len(epoch.groups) for epoch in plan), initial=0))
    n_steps = first_step[-1]
    peaks = [group["lr"] for group in learner.optimizer.param_groups]
    started = time.monotonic() - position.seconds
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if accelerator.is_main_process:
            save_checkpoint(out, learner, position, identity)
        saved = time.monotonic()

    with (
        deferred_signals() as interruption,
        tracking(config.tracking, out, task.identity, first_step[position.epoch] + position.step + 1) as curves,
    ):
        for index in range(position.epoch, len(plan)):
            epoch = plan[index]
            epoch_started = time.monotonic() - position.epoch_seconds
            learner.model.train()
            for step_of_epoch in range(position.step, n_steps_of[index]):
                step = first_step[index] + step_of_epoch
                share = learning_rate(step, n_steps, task.warmup)
                for group, peak in zip(learner.optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * share
                first = step_of_epoch * batches_a_step
                groups = epoch.groups[first : first + batches_a_step]
                loss, norm, stop = _step(task, accelerator, groups, first_batch[index] + first, interruption.requested)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise TrainingDivergedError(f"at step {step} the loss is {loss} and its gradient's norm {norm}")
                now = time.monotonic()
                position = replace(
                    position,
                    epoch=index,
                    step=step_of_epoch + 1,
                    loss_sum=position.loss_sum + loss,
                    epoch_seconds=now - epoch_started,
                    seconds=now - started,
                )
                curves.log({"loss": loss, "learning_rate": peaks[0] * share, "gradient_norm": norm}, step + 1)
                if on_step is not None:
                    n_utterances = sum(len(one.emotions) for group in groups for one in group)
                    on_step(StepReport(step + 1, n_steps, loss, peaks[0] * share, norm, n_utterances))
                if stop:
                    save()
                    accelerator.wait_for_everyone()  # a process that leaves early takes the one that writes with it
                    interruption.leave()
                if time.monotonic() - saved >= config.save_every_s:
                    save()

            save()  # whatever happens while scoring and writing, the epoch is not learnt again
            scores = task.evaluate(epoch.stage)
            mean_loss = position.loss_sum / max(position.step, 1)
            report = EpochReport(epoch.stage.name, epoch.number, mean_loss, position.epoch_seconds)
            best = position.best
            if scores is not None:
                f1, accuracy = scores.weighted_f1, scores.emotion_accuracy
                report = replace(report, dev_weighted_f1=f1, dev_emotion_accuracy=accuracy)
                curves.log({"dev/weighted_f1": f1, "dev/emotion_accuracy": accuracy}, first_step[index + 1])
                if f1 > best:
                    best = f1
                    if accelerator.is_main_process:
                        seconds = time.monotonic() - started
                        task.keep(report, scores, run_record(learner.model, accelerator, batches_a_step, seconds))
            position = Position(index + 1, seconds=time.monotonic() - started, best=best)
            save()
            if on_epoch is not None:
                on_epoch(report)
        if accelerator.is_main_process:
            update_card(out, run_record(learner.model, accelerator, batches_a_step, position.seconds))
        accelerator.wait_for_everyone()
        if interruption.requested:
            interruption.leave()
    return position.best


def batch_random(seed: int, number: int) -> np.random.Generator:
    """The generator of the `number`th batch of a training; torch's global one, for dropout, is seeded likewise."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number,))
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def _step(
    task: Task, accelerator: Accelerator, groups: Sequence[Group], first_number: int, stop: bool
) -> tuple[float, float, bool]:
    """Average the gradients of a step's batches, over the processes too, clip them and change the weights.

    groups: the step's batches, of which this process takes its share; in an epoch's last step there may be none for it.
    first_number: of the first of them, in the whole training. stop: whether this process was asked to stop.
    Returns: the mean loss, the gradient's norm before clipping, and whether any process was asked to stop. Where one of
        the two numbers is not finite, no weight has changed.
    """
    learner = task.learner
    parameters = list(learner.trained().values())
    learner.optimizer.zero_grad(set_to_none=True)
    # Loss and request travel with the gradients: one exchange a step.
    values = torch.tensor([0.0, float(stop)], device=accelerator.device)
    for place in range(accelerator.process_index, len(groups), accelerator.num_processes):
        random = batch_random(task.seed, first_number + place)
        with accelerator.autocast():
            loss = task.loss(groups[place], random) / len(groups)
        loss.backward()  # type: ignore[no-untyped-call]
        values[0] += loss.detach()
    values = sum_gradients(accelerator, parameters, values)
    # A finite loss can have gradients that are not, and one such step spoils every weight.
    norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    loss_sum, n_stops = values.tolist()
    if math.isfinite(loss_sum) and torch.isfinite(norm):
        learner.optimizer.step()
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
    return loss_sum, norm.item(), n_stops > 0
