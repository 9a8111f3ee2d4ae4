"""The folder in which this library keeps what it fetched or built. Nothing is created or read here."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder of this library, which may not exist yet.

    `MECHM_CACHE` where it is set, else `XDG_CACHE_HOME`/mechm, else the system's place for it: ~/.cache/mechm on Linux,
    ~/Library/Caches/mechm on macOS, %LOCALAPPDATA%/mechm/Cache on Windows. A relative `XDG_CACHE_HOME` is ignored, as
    the XDG base directory specification asks.
    """
    if own := os.environ.get("MECHM_CACHE"):
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "mechm"
    if sys.platform in ("darwin", "win32"):
        # Imported where it decides something: it takes 8 ms of a start (platformdirs 4.14, one core of a slow server).
        from platformdirs import user_cache_path

        return user_cache_path("mechm", appauthor=False)
    return Path.home() / ".cache" / "mechm"
