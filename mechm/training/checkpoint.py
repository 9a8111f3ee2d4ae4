"""The state of a training on disk: one safetensors file that is replaced as a whole, with its position in the header.

It holds what training changes (weights, their average, the optimizer's moments) and where it was. No random state: the
randomness of a batch follows from the seed and the batch's number. It is no result; those are written by
`mechm.model.build` and `mechm.training.llm_adapter`.
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
"""Leading values of each tensor that tell base weights apart; reading all of a 7B model would take a minute."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What a step changes.

    average: moving average of the model's weights, where one is kept.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training is.

    epoch: index into the plan. step: steps done in that epoch. loss_sum: of those steps. epoch_seconds, seconds: spent
    in the epoch and in all. best: weighted F1 of the weights kept so far, -1 before there are any.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    best: float = -1.0


def check_unused(out: Path) -> None:
    """Raises: WeightsError: there is something in `out`, which a new training would overwrite."""
    # A checkpoint that was never finished is nothing to lose.
    if out.is_file() or (out.is_dir() and (has_checkpoint(out) or any(path.name != FOLDER for path in out.iterdir()))):
        hint = "choose another --out, or remove it first"
        if has_checkpoint(out):
            hint = "go on with --resume, choose another --out, or remove it first"
        raise WeightsError(f"{out} exists", hint=hint)


def has_checkpoint(out: Path) -> bool:
    """Whether a training in `out` can go on."""
    return (out / FOLDER / STATE_FILE).is_file()


def check_resumable(out: Path) -> None:
    """Raises: WeightsError: there is no checkpoint in `out`."""
    if not has_checkpoint(out):
        raise WeightsError(f"there is no training to go on with in {out}", hint="leave --resume out to start one")


def save_checkpoint(out: Path, learner: Learner, position: Position, identity: Mapping[str, Any]) -> None:
    """Write the state beside the old one, then in its place.

    identity: what makes the training this one, see `load_checkpoint`; JSON values.
    Raises: WeightsError: it cannot be written; the old one is still there.
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
    """Put the saved state into `learner`, in place, and return where that was.

    Raises: WeightsError: there is no checkpoint, it cannot be read, or the training it was made by differs from
        `identity`; the message names what differs.
    """
    check_resumable(out)
    try:
        with safe_open(out / FOLDER / STATE_FILE, "pt") as file:
            header = file.metadata()
            if differ := differences(json.loads(header["identity"]), identity, "now"):
                raise WeightsError(
                    f"the training to go on with differs: {'; '.join(differ)}",
                    hint="repeat the command that started it and add --resume, or choose another --out",
                )
            _restore(learner, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
            return Position(**json.loads(header["position"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"the checkpoint in {out} cannot be read: {error}", hint="remove the folder and train anew"
        ) from error


def discard_checkpoint(out: Path) -> None:
    """Remove the state of a training that is finished."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def fingerprint(model: nn.Module) -> str:
    """Tells models apart by names, shapes and leading values of their parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        leading = parameter.detach().flatten()[:FINGERPRINT_VALUES].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + leading.tobytes())
    return digest.hexdigest()[:16]


def corpora_digests(corpora: Mapping[str, Sequence[LabelledConversation]]) -> dict[str, str]:
    """Tells corpora apart by what is learnt from them; where their media lie is no part of it."""
    digests = {}
    for name, conversations in corpora.items():
        digest = hashlib.sha256()
        for one in conversations:
            said = [(u.id, u.speaker, u.text, u.start_s, u.end_s) for u in one.conversation.utterances]
            digest.update(repr((one.conversation.id, said, one.emotions, sorted(map(repr, one.pairs)))).encode())
        digests[name] = f"{len(conversations)} conversations, {digest.hexdigest()[:16]}"
    return digests


def differences(before: Mapping[str, Any], now: Mapping[str, Any], when: str) -> list[str]:
    """What differs between two identities, by dotted name; `when` says of which the second value is."""
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
