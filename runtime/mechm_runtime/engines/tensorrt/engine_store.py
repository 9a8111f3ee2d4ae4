"""Built engines in a folder, by key; a file is there whole or not at all, and one that was changed counts as absent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from mechm_runtime.bundle.engine_file import EngineKey
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.system.atomic_write import write_atomically
from mechm_runtime.system.cache_dir import cache_dir


class EngineStore:
    """Engines that this machine built.

    folder: made when the first one is kept; None for the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_dir() / "engines" if folder is None else folder

    def path(self, key: EngineKey) -> Path:
        """The path of a key's engine, whether it exists or not."""
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
        """Write an engine, and beside it its key and sha256 as JSON."""
        path = self.path(key)
        facts = {"sha256": hashlib.sha256(engine).hexdigest(), "key": asdict(key)}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, engine)
        write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1))
        return path
