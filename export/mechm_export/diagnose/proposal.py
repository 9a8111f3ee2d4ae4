"""The layers that a diagnosis proposes to keep in fp32, as a JSON file: written by `diagnose`, read by `bundle` and
`engines`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mechm_runtime.errors import InputError
from mechm_runtime.system.atomic_write import write_atomically

MAX_BYTES = 4 << 20
"""Largest size of a proposal's file."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Names of a part's nodes that stay in fp32 in a precision. onnx_sha256: hash of the fp32 graph that has them."""

    part: str
    precision: str
    onnx_sha256: str
    kept: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write a JSON file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")


def read_proposal(path: Path) -> Proposal:
    """Read a file that `Proposal.write` wrote.

    Raises: InputError: it is not a proposal.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        found = Proposal(values["part"], values["precision"], values["onnx_sha256"], tuple(values["kept"]))
        if not all(isinstance(one, str) for one in (found.part, found.precision, found.onnx_sha256, *found.kept)):
            raise ValueError("its values are no text")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is no list of layers: {error}", hint="mechm export diagnose --write FILE") from error
    return found


def read_int8_proposals(paths: tuple[Path, ...]) -> list[Proposal]:
    """Read proposals for int8. Raises: InputError: one is not a proposal, or is for another precision."""
    proposals = [read_proposal(path) for path in paths]
    for path, proposal in zip(paths, proposals, strict=True):
        if proposal.precision != "int8":
            raise InputError(
                f"{path} was proposed for {proposal.precision}", hint="mechm export diagnose --precision int8"
            )
    return proposals
