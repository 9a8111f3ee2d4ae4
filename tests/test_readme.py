"""The README's own promises: short, quick to the first command, and a Python example that runs as it stands.

`test_docs.py` tests its blocks and links together with those of `docs/`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MAX_BYTES = 6_000
MAX_WORDS_BEFORE_A_COMMAND = 60


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_soon_shows_a_command(readme: str) -> None:
    assert len(readme.encode()) <= MAX_BYTES
    before, _, block = readme.partition("```bash\n")
    assert len(before.split()) <= MAX_WORDS_BEFORE_A_COMMAND
    assert re.match(r"make demo\b.*\nmake test\b", block)


def test_the_python_example_runs(readme: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    assert len(example.splitlines()) <= 10
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:2]] == ["Ana", "Ben"]


def test_the_report_is_a_small_picture(readme: str, repository: Path) -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", readme)
    assert 0 < (repository / picture).stat().st_size < 150_000


def test_its_table_names_every_command(readme: str) -> None:
    from mechm.cli import COMMANDS

    shown = set(re.findall(r"^\| `mechm ([a-z]+)", readme, re.M))
    assert shown == set(COMMANDS)
