"""onnxruntime and its quantization tools, imported with their usage reports switched off."""

from __future__ import annotations

from mechm_runtime.system.telemetry import import_onnxruntime

onnxruntime = import_onnxruntime()

from onnxruntime.quantization import (  # noqa: E402 - the import must come after the reports are switched off
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

__all__ = [
    "CalibrationDataReader",
    "CalibrationMethod",
    "QuantFormat",
    "QuantType",
    "onnxruntime",
    "quantize_dynamic",
    "quantize_static",
]
