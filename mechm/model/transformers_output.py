"""Suppresses transformers' progress bars and messages on the terminal."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars and load reports; problems such as missing or misshapen tensors still raise."""
    logging: Any = importlib.import_module("transformers.utils.logging")  # it has no annotations
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
