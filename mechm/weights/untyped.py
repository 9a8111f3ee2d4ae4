"""Imports packages with incomplete type annotations as `Any`, so that strict type checking does not fail on them."""

from __future__ import annotations

import importlib
from typing import Any


def import_untyped(name: str) -> Any:
    """Import a module as `Any`."""
    return importlib.import_module(name)
