"""The options `--axes`, `--opset` and `--precision`: parsed, and refused where they cannot be met."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from mechm_runtime.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

OPSETS = range(18, 24)
"""Opsets that torch's exporter writes: its operators are opset 18's, and torch 2.13 converts up to 23."""
DEFAULT_OPSET = 18
FUSED_OPSET = 23
"""The first with an Attention operator, whose rewritten form onnxruntime's int8 is fast with."""
BF16_OPSET = 22
"""The first whose Conv takes bfloat16."""

BATCH = "batch"
TIME = "time"
TIME_AXES = ("tokens", "samples", "frames")
"""`time` stands for the one of these that an encoder has."""
MAX_AXIS = 1 << 24


@dataclass(frozen=True, slots=True)
class Axes:
    """The dynamic axes, and the sizes of fixed ones.

    dynamic: None for all that an encoder has.
    """

    dynamic: frozenset[str] | None = None
    fixed: Mapping[str, int] = field(default_factory=dict)

    def resolve(self, names: Sequence[str], defaults: Mapping[str, int]) -> dict[str, int | str]:
        """Axis name -> its size, or the name again where it is dynamic.

        names: an encoder's axes that may be dynamic. defaults: axes that are always fixed, with their usual sizes.
        Raises: InputError: an axis that is unknown, cannot be dynamic, or is left open.
        """
        aliases = dict(zip([TIME], [name for name in names if name in TIME_AXES], strict=False))
        dynamic = None if self.dynamic is None else {aliases.get(name, name) for name in self.dynamic}
        fixed = {aliases.get(name, name): size for name, size in self.fixed.items()}
        known = [*names, *defaults]
        for name in sorted((dynamic or set()) | fixed.keys()):
            if name not in known:
                raise InputError(f"this encoder has no axis {name}", hint=f"it has {', '.join(known)}")
        if stuck := sorted((dynamic or set()) & defaults.keys()):
            raise InputError(
                f"{stuck[0]} cannot be dynamic: position embeddings are made for one size",
                hint=f"give {stuck[0]}={defaults[stuck[0]]}",
            )
        if both := sorted((dynamic or set()) & fixed.keys()):
            raise InputError(f"{both[0]} is named twice, as dynamic and as {fixed[both[0]]}")
        sizes: dict[str, int | str] = {}
        for name in names:
            if name in fixed:
                sizes[name] = fixed[name]
            elif dynamic is None or name in dynamic:
                sizes[name] = name
            else:
                raise InputError(f"--axes says nothing of {name}", hint=f"add {name}, or {name}=N for one size")
        return sizes | {name: fixed.get(name, size) for name, size in defaults.items()}


def parse_axes(text: str | None) -> Axes:
    """`batch,time` or `batch=1,height=448` -> axes; None leaves every axis as dynamic as it can be.

    Raises: InputError: not of that form.
    """
    if text is None:
        return Axes()
    dynamic: set[str] = set()
    fixed: dict[str, int] = {}
    for item in text.split(","):
        name, separator, size = item.strip().partition("=")
        if not name.isidentifier() or name in dynamic or name in fixed:
            raise InputError(f"--axes {text}: {item!r} is no axis, or is there twice", hint="--axes batch,time=160")
        if not separator:
            dynamic.add(name)
        elif size.isascii() and size.isdigit() and 1 <= int(size) <= MAX_AXIS:
            fixed[name] = int(size)
        else:
            raise InputError(f"--axes {text}: {size!r} is no size", hint=f"{name}=N with N from 1 to {MAX_AXIS}")
    return Axes(frozenset(dynamic), fixed)


def check_opset(opset: int | None, precisions: Collection[Precision]) -> None:
    """Refuse what cannot be written.

    opset: None for each precision's own. Raises: InputError.
    """
    if opset is None:
        return
    if opset not in OPSETS:
        raise InputError(f"opset {opset} cannot be written", hint=f"--opset {OPSETS[0]} to {OPSETS[-1]}")
    check_bf16(opset, precisions)


def check_bf16(opset: int, precisions: Collection[Precision]) -> None:
    """Raises: InputError: bf16 was asked for, and the opset has no bfloat16 where encoders need it."""
    if "bf16" in precisions and opset < BF16_OPSET:
        raise InputError(
            f"bf16 needs opset {BF16_OPSET}, not {opset}: before it, ONNX's Conv takes no bfloat16",
            hint=f"opset {BF16_OPSET} or later, or --precision fp16",
        )


def opset_for(precision: Precision, opset: int | None) -> int:
    """The opset of a precision's graph: the one that was asked for, else the lowest that serves it."""
    if opset is not None:
        return opset
    return {"int8": FUSED_OPSET, "bf16": BF16_OPSET}.get(precision, DEFAULT_OPSET)
