"""Copies a network that is one ONNX file and used unchanged, as `model.onnx`, and verifies its bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

from mechm.weights.check import Check
from mechm.weights.from_folder import sha256_of
from mechm_runtime.errors import VerificationError, WeightsError

MODEL_NAME = "model.onnx"


def convert(source: Path, target: Path) -> Check:
    """Copy the one `*.onnx` file in `source` into the folder `target`.

    Raises: WeightsError: none or several, or not a complete ONNX graph. VerificationError: the copy differs.
    """
    import onnx

    files = sorted(source.glob("*.onnx"))
    if len(files) != 1:
        raise WeightsError(f"one ONNX file is expected, not {[path.name for path in files]}")
    try:
        onnx.checker.check_model(onnx.load(files[0]))
    except Exception as error:  # protobuf's exceptions depend on its implementation
        raise WeightsError(f"{files[0].name} is not a whole ONNX graph: {error}") from error
    shutil.copyfile(files[0], target / MODEL_NAME)
    if sha256_of(files[0]) != sha256_of(target / MODEL_NAME):
        raise VerificationError(f"the copy of {files[0].name} differs from its source")
    return Check("the source's bytes", 0.0, 0.0)
