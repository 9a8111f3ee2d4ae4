"""Pillow, imported when a picture is first worked on: it comes with the extra `media`."""

from __future__ import annotations

import importlib
from types import ModuleType

from mechm_runtime.errors import MissingExtraError


def load_pillow() -> ModuleType:
    """The module `PIL.Image`.

    Raises: MissingExtraError: Pillow is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MissingExtraError("pillow", extra="media") from error
