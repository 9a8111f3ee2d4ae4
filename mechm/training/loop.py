"""Training loop shared by all trainings: steps of batches, scoring on `dev` after each epoch, keeping the best weights.

It runs in one process or many, saves its state regularly and resumes from there without losing a step. Batches are
planned from the seed, and a batch's randomness depends only on the seed and the batch's number, so that neither an
interruption nor the number of processes changes the result. Models and losses are defined elsewhere.
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
from mechm.training.interrupt import Interruption, deferred_signals
from mechm.training.run_record import run_record, update_card
from mechm.training.schedule import learning_rate
from mechm.training.stages import Epoch, Group, Stage
from mechm.training.tracking import Curves, TrackingConfig, tracking
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import MechmError

MAX_GRADIENT_NORM = 1.0


class TrainingDivergedError(MechmError):
    """The loss, its gradient or a score is not finite; the last good weights are kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="train again with a lower learning rate")


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Settings of the loop, independent of model, data and loss.

    accumulate: batches per step in each process; their gradients are averaged.
    save_every_s: seconds between checkpoints; one is also written after every epoch.
    resume: continue from the checkpoint in the output folder.
    """

    accumulate: int = 1
    save_every_s: float = 300.0
    resume: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.save_every_s < 0:
            raise ValueError("accumulate must be at least 1, and save_every_s not negative")

    def batches_per_step(self, accelerator: Accelerator) -> int:
        """Return the number of batches whose gradients one step averages, over all processes."""
        return self.accumulate * int(accelerator.num_processes)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report of one step.

    step: counted from 1. loss: mean over its batches. learning_rate: of the optimizer's first parameter group.
    gradient_norm: before clipping. utterances: in the batches of all processes.
    """

    step: int
    n_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    utterances: int


@dataclass(frozen=True, slots=True)
class DevScores:
    """Scores of weights on `dev`, with the decision fitted there; `scored` holds the network's outputs, in order."""

    decision: DecisionConfig
    weighted_f1: float
    emotion_accuracy: float
    scored: Sequence[ScoredConversation] = ()


@dataclass(frozen=True, slots=True)
class EpochReport:
    """Report of one epoch: mean loss of its steps, their seconds, and scores on `dev`, 0 where it was not scored."""

    stage: str
    epoch: int
    loss: float
    seconds: float
    dev_weighted_f1: float = 0.0
    dev_emotion_accuracy: float = 0.0


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[EpochReport], None]
Keep = Callable[[EpochReport, DevScores, dict[str, Any]], None]
"""Writes the current weights; called with the epoch's report, its scores and the record of the run so far."""


@dataclass(frozen=True, slots=True)
class Task:
    """Model, data and loss of a training.

    plan: see `plan_epochs`. warmup: share of the steps in which the learning rate rises to the optimizer's rates.
    loss: of a batch, with gradients; `random` is the batch's own generator, and torch's global one is seeded alike.
    evaluate: scores the weights that would be kept now; None after epochs of a stage that is not scored. It is called
        in every process and returns the same in each. keep: called in the main process only.
    identity: JSON values that identify the training; a checkpoint can only be resumed with equal ones.
    """

    learner: Learner
    plan: Sequence[Epoch]
    seed: int
    warmup: float
    loss: Callable[[Group, np.random.Generator], Tensor]
    evaluate: Callable[[Stage], DevScores | None]
    keep: Keep
    identity: Mapping[str, Any]


def run_training(
    task: Task,
    config: LoopConfig,
    out: Path,
    accelerator: Accelerator,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> float:
    """Train to the end of the plan and return the best weighted F1 on `dev`, -1 where it was never scored.

    The checkpoint stays in `out`, so that work after the training can be repeated; `discard_checkpoint` removes it.
    Several processes share `out`. On SIGINT and SIGTERM the state is saved and the process ends, see
    `deferred_signals`.
    Raises: TrainingDivergedError: a loss or gradient is not finite. InputError: the processes differ in what they
        train. WeightsError: `out` is not empty, or, to resume, holds no checkpoint of this training; or a checkpoint
        cannot be written.
    """
    batches_per_step = config.batches_per_step(accelerator)
    identity = {**task.identity, "batches a step": batches_per_step, "base weights": fingerprint(task.learner.model)}
    check_agreement(accelerator, identity)
    position = Position()
    if config.resume:
        position = load_checkpoint(out, task.learner, identity)
    elif accelerator.is_main_process:
        check_unused(out)
    accelerator.wait_for_everyone()  # no process writes before the folder was found empty
    run = _Run(task, config, out, accelerator, identity, position, on_step)
    with (
        deferred_signals() as interruption,
        tracking(config.tracking, out, task.identity, run.n_steps_done + 1) as curves,
    ):
        for index in range(position.epoch, len(task.plan)):
            run.train_epoch(index, curves, interruption)
            report = run.finish_epoch(index, curves)
            if on_epoch is not None:
                on_epoch(report)
        if accelerator.is_main_process:
            update_card(out, run.record(run.position.seconds))
        accelerator.wait_for_everyone()
        if interruption.requested:
            interruption.leave()
    return run.position.best


class _Run:
    """A training in progress: its position in the plan, its clock and its checkpoints."""

    def __init__(
        self,
        task: Task,
        config: LoopConfig,
        out: Path,
        accelerator: Accelerator,
        identity: Mapping[str, Any],
        position: Position,
        on_step: OnStep | None,
    ) -> None:
        self.position = position
        self._task = task
        self._config = config
        self._out = out
        self._accelerator = accelerator
        self._identity = identity
        self._on_step = on_step
        self._batches_per_step = config.batches_per_step(accelerator)
        n_batches = [len(epoch.groups) for epoch in task.plan]
        self._n_steps_of = [math.ceil(n / self._batches_per_step) for n in n_batches]
        self._first_step = list(itertools.accumulate(self._n_steps_of, initial=0))
        self._first_batch = list(itertools.accumulate(n_batches, initial=0))
        self._peak_rates = [group["lr"] for group in task.learner.optimizer.param_groups]
        self._started = time.monotonic() - position.seconds
        self._saved = time.monotonic()

    @property
    def n_steps_done(self) -> int:
        """Steps done over all epochs."""
        return self._first_step[self.position.epoch] + self.position.step

    def record(self, seconds: float) -> dict[str, Any]:
        """Return the card's record of the run; `seconds` is its training time."""
        return run_record(self._task.learner.model, self._accelerator, self._batches_per_step, seconds)

    def train_epoch(self, index: int, curves: Curves, interruption: Interruption) -> None:
        """Train the remaining steps of an epoch; saves now and then, and where the process was asked to stop.

        Raises: TrainingDivergedError: a loss or gradient is not finite. KeyboardInterrupt, SystemExit: the process was
            asked to stop.
        """
        epoch_started = time.monotonic() - self.position.epoch_seconds
        self._task.learner.model.train()
        for step_of_epoch in range(self.position.step, self._n_steps_of[index]):
            if self._train_step(index, step_of_epoch, epoch_started, curves, stop=interruption.requested):
                self._save()
                self._accelerator.wait_for_everyone()  # the launcher would kill the writer when another process exits
                interruption.leave()
            if time.monotonic() - self._saved >= self._config.save_every_s:
                self._save()

    def _train_step(self, index: int, step_of_epoch: int, epoch_started: float, curves: Curves, *, stop: bool) -> bool:
        """Train one step and report it; returns whether any process was asked to stop."""
        task, step = self._task, self._first_step[index] + step_of_epoch
        share = learning_rate(step, self._first_step[-1], task.warmup)
        for group, peak in zip(task.learner.optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * share
        first = step_of_epoch * self._batches_per_step
        groups = task.plan[index].groups[first : first + self._batches_per_step]
        loss, norm, stop = _step(task, self._accelerator, groups, self._first_batch[index] + first, stop)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(f"at step {step} the loss is {loss} and its gradient's norm {norm}")
        now = time.monotonic()
        self.position = replace(
            self.position,
            epoch=index,
            step=step_of_epoch + 1,
            loss_sum=self.position.loss_sum + loss,
            epoch_seconds=now - epoch_started,
            seconds=now - self._started,
        )
        rate = self._peak_rates[0] * share
        curves.log({"loss": loss, "learning_rate": rate, "gradient_norm": norm}, step + 1)
        if self._on_step is not None:
            n_utterances = sum(len(one.emotions) for group in groups for one in group)
            self._on_step(StepReport(step + 1, self._first_step[-1], loss, rate, norm, n_utterances))
        return stop

    def finish_epoch(self, index: int, curves: Curves) -> EpochReport:
        """Score `dev`, keep the weights where they are the best so far, and move on to the next epoch."""
        self._save()  # an error while scoring or writing does not lose the epoch
        epoch = self._task.plan[index]
        scores = self._task.evaluate(epoch.stage)
        mean_loss = self.position.loss_sum / max(self.position.step, 1)
        report = EpochReport(epoch.stage.name, epoch.number, mean_loss, self.position.epoch_seconds)
        best = self.position.best
        if scores is not None:
            f1, accuracy = scores.weighted_f1, scores.emotion_accuracy
            report = replace(report, dev_weighted_f1=f1, dev_emotion_accuracy=accuracy)
            curves.log({"dev/weighted_f1": f1, "dev/emotion_accuracy": accuracy}, self._first_step[index + 1])
            if f1 > best:
                best = f1
                if self._accelerator.is_main_process:
                    self._task.keep(report, scores, self.record(time.monotonic() - self._started))
        self.position = Position(index + 1, seconds=time.monotonic() - self._started, best=best)
        self._save()
        return report

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            save_checkpoint(self._out, self._task.learner, self.position, self._identity)
        self._saved = time.monotonic()


def batch_random(seed: int, number: int) -> np.random.Generator:
    """Return the generator of a training's `number`th batch, and seed torch's global one (dropout) likewise."""
    sequence = np.random.SeedSequence(seed, spawn_key=(number,))
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def _step(
    task: Task, accelerator: Accelerator, groups: Sequence[Group], first_number: int, stop: bool
) -> tuple[float, float, bool]:
    """Average the gradients of a step's batches over all processes, clip them and update the weights.

    groups: the step's batches, of which this process takes its share; in an epoch's last step it may have none.
    first_number: number of the first of them in the whole training. stop: whether this process was asked to stop.
    Returns: the mean loss, the gradient's norm before clipping, and whether any process was asked to stop. Where one of
        the two numbers is not finite, no weight has changed.
    """
    learner = task.learner
    parameters = list(learner.trained().values())
    learner.optimizer.zero_grad(set_to_none=True)
    # Loss and stop request are exchanged together with the gradients, once per step.
    values = torch.tensor([0.0, float(stop)], device=accelerator.device)
    for place in range(accelerator.process_index, len(groups), accelerator.num_processes):
        random = batch_random(task.seed, first_number + place)
        with accelerator.autocast():
            loss = task.loss(groups[place], random) / len(groups)
        loss.backward()  # type: ignore[no-untyped-call]
        values[0] += loss.detach()
    values = sum_gradients(accelerator, parameters, values)
    # A finite loss can have gradients that are not finite, and one such step would destroy every weight.
    norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    loss_sum, n_stops = values.tolist()
    if math.isfinite(loss_sum) and torch.isfinite(norm):
        learner.optimizer.step()
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
    return loss_sum, norm.item(), n_stops > 0
