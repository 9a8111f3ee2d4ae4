"""Two exports of the same weights are the same bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from mechm_export.bundle.write import export_bundle


def test_another_export_gives_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    """In another process, with another number of threads and into another folder: every file, the manifest, the id."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2 if n_threads == 1 else 1)
    try:
        export_bundle("tiny", tmp_path / "another" / "place", trained=None)
    finally:
        torch.set_num_threads(n_threads)
    files = {path.relative_to(tiny_bundle): path for path in tiny_bundle.rglob("*") if path.is_file()}
    again = tmp_path / "another" / "place"
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == set(files)
    differing = [str(name) for name, path in files.items() if path.read_bytes() != (again / name).read_bytes()]
    assert differing == []
