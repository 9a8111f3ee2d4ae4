"""Writes the software bill of materials of a wheel: CycloneDX 1.6 in JSON.

It lists what `requirements/runtime.txt` installs beside the wheel: versions, hashes of the files that pip accepts,
licences as the packages declare them, and who requires whom. cyclonedx-py reads the lock file and the environment; its
edges between packages are not used, since they hold the extras that nobody asked for. Equal inputs give equal bytes:
no time, no random number, no path. Extras outside the lock file (training, export) are not listed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from lock import Pin, canonicalize_name, dependency_graph, extras_of, read_pins, requirements_of

ROOT = "mechm"


def main() -> None:
    """Write the bill of the wheel that is the first argument into the file that is the second."""
    wheel, out = Path(sys.argv[1]), Path(sys.argv[2])
    bill = bill_of(Path(__file__).resolve().parent.parent, wheel)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill):
        sys.exit(f"The bill of materials does not fit CycloneDX's schema: {error}")
    out.write_text(bill, encoding="utf-8")


def bill_of(repository: Path, wheel: Path) -> str:
    """The bill as JSON, from an environment that has the lock file's versions.

    Raises: ValueError: an installed version is not the locked one.
    """
    lock = repository / "requirements" / "runtime.txt"
    pins = read_pins(lock)
    bill = cyclonedx("requirements", "--pyproject", repository / "pyproject.toml", lock)
    installed = {canonicalize_name(c["name"]): c for c in cyclonedx("environment", sys.executable)["components"]}
    bill["components"] = [
        component(found, pins[canonicalize_name(found["name"])], installed)
        for found in sorted(bill["components"], key=lambda found: canonicalize_name(found["name"]))
    ]
    about = bill["metadata"]["component"]
    version = about["version"]
    about |= {"bom-ref": ROOT, "purl": f"pkg:pypi/{ROOT}@{version}", "type": "library"}
    about["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    graph = dependency_graph(requirements_of(repository, extras_of(repository, "RUNTIME")), ROOT)
    bill["dependencies"] = [
        {"ref": reference(name, pins), "dependsOn": sorted(reference(other, pins) for other in graph[name])}
        for name in sorted(graph)
    ]
    return json.dumps(bill, indent=2, sort_keys=True) + "\n"


def cyclonedx(*arguments: str | Path) -> dict[str, Any]:
    """Output of cyclonedx-py without what differs from run to run; validating it here as well would take a minute."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        arguments[0],
        "--output-reproducible",
        "--no-validate",
        "--sv",
        "1.6",
        *arguments[1:],
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


def component(found: dict[str, Any], pin: Pin, installed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row of the lock file with the licence of the installed package.

    A package for other systems is not installed: it is optional and has none.
    """
    entry = {key: found[key] for key in ("name", "version", "purl", "type", "externalReferences")}
    entry |= {"bom-ref": f"{pin.name}=={pin.version}", "scope": "required" if pin.applies_here else "optional"}
    if not pin.applies_here:
        return entry
    here = installed.get(pin.name)
    if here is None or here["version"] != pin.version:
        raise ValueError(f"{pin.name} {pin.version} is locked, and {here and here['version']} is installed: make env")
    entry["licenses"] = here.get("licenses") or licence_in_words(pin.name)
    return entry | {key: here[key] for key in ("description",) if key in here}


def licence_in_words(name: str) -> list[dict[str, Any]]:
    """A licence that is declared with a name that is not SPDX's."""
    declared = metadata.metadata(name)["License"]
    return [{"license": {"name": declared, "acknowledgement": "declared"}}] if declared else []


def reference(name: str, pins: dict[str, Pin]) -> str:
    """The bom-ref of a package, or of the wheel itself."""
    return name if name == ROOT else f"{name}=={pins[name].version}"


if __name__ == "__main__":
    main()
