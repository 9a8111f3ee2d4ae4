"""Where this library keeps what it fetched or built. It only names the folder: nothing is created or read here."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder of this library, which may not exist yet.

    `MECHM_CACHE` where it is set, else `XDG_CACHE_HOME`/mechm, else ~/.cache/mechm. A relative `XDG_CACHE_HOME` is
    ignored, as the XDG base directory specification asks.
    """
    if own := os.environ.get("MECHM_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "mechm"
