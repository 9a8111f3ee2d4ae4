"""Built engines in a folder, by key; a file is there whole or not at all, and one that was changed counts as absent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from mechm_runtime.bundle.engine_file import EngineKey
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.system.cache_dir import cache_dir


class EngineStore:
    """Engines that this machine built.

    folder: made when the first one is kept; None for the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_dir() / "engines" if folder is None else folder

    def path(self, key: EngineKey) -> Path:
        """Where the engine of a key lies, or would."""
        return self.folder / f"{key.digest}.engine"

    def find(self, key: EngineKey) -> Path | None:
        """The engine's file, None where there is none that is as it was written."""
        path = self.path(key)
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            whole = facts["sha256"] == file_sha256(path)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return path if whole else None

    def keep(self, key: EngineKey, engine: bytes) -> Path:
        """Write an engine, and beside it what it is."""
        path = self.path(key)
        facts = {"sha256": hashlib.sha256(engine).hexdigest(), "key": asdict(key)}
        write_whole(path, engine)
        write_whole(path.with_suffix(".json"), json.dumps(facts, indent=1).encode())
        return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that others see only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
