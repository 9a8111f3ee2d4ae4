"""Switches off the usage reports of the libraries that run models and fetch weights.

onnxruntime (since 1.29, on Linux too) keeps a device id and a database of events below the user's cache folder and
sends the events to its vendor. Only the variable stops that, and only if it is set before the import: set later, or
with `onnxruntime.disable_telemetry_events()`, both files are still written (measured with 1.32).

OpenVINO's Python package writes a client id below the user's folder and sends an event to Google Analytics when it is
imported (measured with 2026.4 and openvino-telemetry 2025.2). No variable stops that outside of a CI service; where
`openvino_telemetry` cannot be imported, the package uses its own substitute that does nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

NO_TELEMETRY: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Environment variables of onnxruntime, huggingface_hub and vLLM, and the one that several libraries share."""


def disable_telemetry() -> None:
    """Set the variables for this process and those that it starts."""
    os.environ.update(NO_TELEMETRY)


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its reports switched off; the only way in which the packages import it.

    Raises: ImportError: it is not installed.
    """
    disable_telemetry()
    import onnxruntime

    return onnxruntime


def import_openvino() -> ModuleType:
    """Import openvino with its reports switched off; the only way in which the packages import it.

    In a process that imported `openvino_telemetry` before, nothing can be switched off any more.

    Raises: ImportError: it is not installed.
    """
    if "openvino" in sys.modules or _OPENVINO_REPORTS in sys.modules:
        return import_module("openvino")
    sys.modules[_OPENVINO_REPORTS] = None  # type: ignore[assignment]  # the import system reads None as "not there"
    try:
        return import_module("openvino")
    finally:
        del sys.modules[_OPENVINO_REPORTS]


_OPENVINO_REPORTS = "openvino_telemetry"
