"""Copies a model that is already a plain transformers folder, and verifies the bytes of its weights."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from mechm.weights.check import Check
from mechm_runtime.errors import VerificationError, WeightsError


def sha256_of(path: Path) -> str:
    """Compute the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(source: Path, target: Path) -> Check:
    """Copy every file of `source` into the empty folder `target`, as hard links where the file system allows.

    Raises: WeightsError: no safetensors file, or a truncated one. VerificationError: a copy differs.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(path for path in source.rglob("*") if path.is_file())
    weights = [path for path in files if path.suffix == ".safetensors"]
    if not weights:
        raise WeightsError(f"no safetensors file among {[path.name for path in files]}")
    for path in files:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copyfile(path, copy)
    for path in weights:
        try:
            with safe_open(path, framework="numpy") as tensors:
                n_tensors = len(list(tensors.keys()))
        except SafetensorError as error:
            raise WeightsError(f"{path.name} is not a whole safetensors file: {error}") from error
        if n_tensors == 0:
            raise WeightsError(f"{path.name} holds no tensors")
        copy = target / path.relative_to(source)
        if not copy.samefile(path) and sha256_of(path) != sha256_of(copy):
            raise VerificationError(f"the copy of {path.name} differs from its source")
    return Check("the source's bytes", 0.0, 0.0)
