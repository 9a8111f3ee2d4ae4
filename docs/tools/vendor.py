"""Fetch the two scripts that the site needs and no Python package ships, into `docs/vendor`, which git ignores.

Mermaid draws the diagrams; iframe-worker lets the search run where the site is opened from a folder. Each is one file
of a pinned npm package, checked by its sha256. Where npm is missing or does not reach its registry, nothing is fetched
and nothing fails: the site then shows diagrams as their source, and searches only where a server delivers it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "vendor"

SCRIPTS = {
    "mermaid.min.js": (
        "mermaid@11.17.2",
        "package/dist/mermaid.min.js",
        "581ed7d74bd9048d0e3a91363927d72ef22942d7722546b27f7cc29e35390eb8",
    ),
    "iframe-worker.js": (
        "iframe-worker@1.0.4",
        "package/shim/index.js",
        "e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609",
    ),
}
"""File in `docs/vendor` -> npm package with its version, the file inside it, and that file's sha256."""


TIMEOUT_S = 120
WITHOUT = "the site shows diagrams as their source, and searches only where a server delivers it"


def main() -> None:
    """Fetch what is missing or has another hash."""
    wanted = [name for name, (_, _, sha256) in SCRIPTS.items() if sha256_of(VENDOR / name) != sha256]
    npm = shutil.which("npm")
    if wanted and npm is None:
        print(f"npm is not installed: {WITHOUT}.")
        return
    for name in wanted:
        package, member, sha256 = SCRIPTS[name]
        content = fetch(str(npm), package, member)
        if content is None:
            print(f"npm could not fetch {package}: {WITHOUT}.")
            return
        if hashlib.sha256(content).hexdigest() != sha256:
            sys.exit(f"{member} of {package} has another sha256 than docs/tools/vendor.py says")
        VENDOR.mkdir(exist_ok=True)
        (VENDOR / name).write_bytes(content)
        print(f"docs/vendor/{name}: {package}")


def fetch(npm: str, package: str, member: str) -> bytes | None:
    """One file of a package; None where the registry does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [npm, "pack", "--silent", package]
            done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None
        if done.returncode != 0:
            return None
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            source = files.extractfile(member)
            return None if source is None else source.read()


def sha256_of(path: Path) -> str | None:
    """Hexadecimal sha256 of a file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


if __name__ == "__main__":
    main()
