"""Checkpoints of a running training: one safetensors file, replaced atomically, with the position in its header.

A checkpoint holds the trained weights, their average, the optimizer's moments and the position. It needs no random
state, since a batch's randomness follows from the seed and the batch's number. Results of a training are written by
`mechm.model.build` and `mechm.training.llm_adapter` instead.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mechm_runtime.errors import WeightsError
from mechm_runtime.system.atomic_write import replaced_file
from mechm_runtime.types import LabelledConversation

FOLDER, STATE_FILE = ".checkpoint", "state.safetensors"
FINGERPRINT_VALUES = 16
"""Leading values of each tensor that the fingerprint covers; reading all of a 7B model would take a minute."""


@dataclass(frozen=True, slots=True)
class Learner:
    """Everything that a training step changes.

    average: moving average of the model's weights, if one is used.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that require gradients, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


@dataclass(frozen=True, slots=True)
class Position:
    """Progress of a training.

    epoch: index into the plan. step: steps done in that epoch. loss_sum: of those steps. epoch_seconds, seconds: time
    spent in the epoch and in total. best: weighted F1 of the weights kept so far, -1 before there are any.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best: float = -1.0


def check_unused(out: Path) -> None:
    """Raises: WeightsError: `out` is not empty, and a new training would overwrite it."""
    # A folder with nothing but an unfinished checkpoint file counts as empty.
    if out.is_file() or (out.is_dir() and (has_checkpoint(out) or any(path.name != FOLDER for path in out.iterdir()))):
        hint = "choose another --out, or remove it first"
        if has_checkpoint(out):
            hint = "go on with --resume, choose another --out, or remove it first"
        raise WeightsError(f"{out} exists", hint=hint)


def has_checkpoint(out: Path) -> bool:
    """Whether a training in `out` can be resumed."""
    return (out / FOLDER / STATE_FILE).is_file()


def check_resumable(out: Path) -> None:
    """Raises: WeightsError: there is no checkpoint in `out`."""
    if not has_checkpoint(out):
        raise WeightsError(f"there is no training to go on with in {out}", hint="leave --resume out to start one")


def save_checkpoint(out: Path, learner: Learner, position: Position, identity: Mapping[str, Any]) -> None:
    """Write the state and replace the old one atomically.

    identity: JSON values that identify the training, see `load_checkpoint`.
    Raises: WeightsError: it cannot be written; the old one is kept.
    """
    folder = out / FOLDER
    header = {"position": json.dumps(asdict(position)), "identity": json.dumps(identity, sort_keys=True)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(folder / STATE_FILE, is_synced=True) as beside:
            save_file({name: t.detach().cpu().contiguous() for name, t in _tensors(learner)}, beside, metadata=header)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the checkpoint cannot be written: {error}", hint="free disk space, then go on with --resume"
        ) from error


def load_checkpoint(out: Path, learner: Learner, identity: Mapping[str, Any]) -> Position:
    """Load the saved state into `learner`, in place, and return its position.

    Raises: WeightsError: there is no checkpoint, it cannot be read, or it belongs to a training with another
        `identity`; the message names the differences.
    """
    check_resumable(out)
    try:
        with safe_open(out / FOLDER / STATE_FILE, "pt") as file:
            header = file.metadata()
            if differ := differences(json.loads(header["identity"]), identity, "now"):
                raise WeightsError(
                    f"the training to resume differs: {'; '.join(differ)}",
                    hint="repeat the command that started it and add --resume, or choose another --out",
                )
            _restore(learner, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
            return Position(**json.loads(header["position"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"the checkpoint in {out} cannot be read: {error}", hint="remove the folder and start the training again"
        ) from error


def discard_checkpoint(out: Path) -> None:
    """Remove the checkpoint of a finished training."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def fingerprint(model: nn.Module) -> str:
    """Hash names, shapes and leading values of a model's parameters, to tell base weights apart."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        leading = parameter.detach().flatten()[:FINGERPRINT_VALUES].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + leading.tobytes())
    return digest.hexdigest()[:16]


def corpora_digests(corpora: Mapping[str, Sequence[LabelledConversation]]) -> dict[str, str]:
    """Hash the training content of corpora; paths of media are not part of it."""
    digests = {}
    for name, conversations in corpora.items():
        digest = hashlib.sha256()
        for one in conversations:
            content = [(u.id, u.speaker, u.text, u.start_s, u.end_s) for u in one.conversation.utterances]
            digest.update(repr((one.conversation.id, content, one.emotions, sorted(map(repr, one.pairs)))).encode())
        digests[name] = f"{len(conversations)} conversations, {digest.hexdigest()[:16]}"
    return digests


def differences(before: Mapping[str, Any], now: Mapping[str, Any], when: str) -> list[str]:
    """List the differences between two identities, by dotted name; `when` labels the second value."""
    one, other = (dict(_flat(json.loads(json.dumps(identity)))) for identity in (before, now))
    return [
        f"{name} was {one.get(name, 'absent')} and {when} is {other.get(name, 'absent')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


def _tensors(learner: Learner) -> Iterator[tuple[str, Tensor]]:
    trained = learner.trained()
    for name, parameter in trained.items():
        yield f"model.{name}", parameter
    if learner.average is not None:
        for name, parameter in learner.average.module.named_parameters():
            if name in trained:
                yield f"average.{name}", parameter
        yield "n_averaged", learner.average.n_averaged
    for index, values in learner.optimizer.state_dict()["state"].items():
        for key, value in values.items():
            yield f"optimizer.{index}.{key}", value


def _restore(learner: Learner, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in learner.trained().items():
            parameter.copy_(tensors[f"model.{name}"])
        if learner.average is not None:
            averaged = dict(learner.average.module.named_parameters())
            for name in learner.trained():
                averaged[name].copy_(tensors[f"average.{name}"])
            learner.average.n_averaged.copy_(tensors["n_averaged"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _flat(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
