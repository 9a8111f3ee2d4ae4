"""Make a release: `make release VERSION=0.2.0`.

It refuses where something is not ready, runs the tests, builds wheel and sdist into `dist/`, checks what is inside
them, writes the software bill of materials beside them, and tags the commit. It pushes and uploads nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

PACKAGES = {"mechm": "mechm", "mechm_export": "export/mechm_export", "mechm_runtime": "runtime/mechm_runtime"}
"""Import name -> folder in the repository."""

WEIGHTS, WEIGHTS_PROJECT = "mechm/pretrained", "pretrained"
"""Folder of the trained weights, and of the project that builds their wheel."""

NEVER_SHIPPED = re.compile(r"(^|/)(__pycache__|\.git|\.venv[^/]*|site|dist|\.mypy_cache|docs/vendor)(/|$)|\.pyc$")


def main() -> None:
    """Release the version that is the only argument."""
    repository = Path(__file__).resolve().parent.parent
    version = sys.argv[1] if len(sys.argv) == 2 else ""
    if problems := why_not_ready(repository, version):
        sys.exit("No release:\n" + "\n".join(f"- {problem}" for problem in problems))
    if subprocess.run(["make", "test"], cwd=repository, check=False).returncode != 0:
        sys.exit("No release: make test failed")
    wheel, sdist = build(repository)
    if problems := why_not_shippable(repository, version, wheel, sdist):
        sys.exit("No release:\n" + "\n".join(f"- {problem}" for problem in problems))
    bill = write_bill(repository, wheel)
    subprocess.run(["git", "tag", "-a", f"v{version}", "-m", f"mechm {version}"], cwd=repository, check=True)
    print(f"{wheel.name}, {sdist.name} and {bill.name} are in dist/, and the commit is tagged v{version}.")
    print(f"To publish: git push origin v{version}, then upload dist/* to the package index.")


def why_not_ready(repository: Path, version: str) -> list[str]:
    """Reasons against releasing this tree as `version`; none where it is ready."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"VERSION is {version!r}: make release VERSION=0.2.0"]
    problems = []
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if project["version"] != version:
        problems.append(f"pyproject.toml has version {project['version']}, not {version}")
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.M):
        problems.append(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`")
    if changed := git(repository, "status", "--porcelain").splitlines():
        problems.append(f"the tree has changes that are not committed: {changed[0].strip()}")
    if git(repository, "tag", "--list", f"v{version}"):
        problems.append(f"the tag v{version} exists")
    return problems


def build(repository: Path) -> tuple[Path, Path]:
    """Wheel and sdist in an empty `dist/`, and beside them the wheel with the trained weights."""
    shutil.rmtree(repository / "dist", ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel"]
    subprocess.run(command, cwd=repository, check=True)
    (wheel,) = (repository / "dist").glob("*.whl")
    weights = ["--directory", str(repository / "dist"), "-t", "wheel"]
    subprocess.run([sys.executable, "-m", "hatchling", "build", *weights], cwd=repository / WEIGHTS_PROJECT, check=True)
    (sdist,) = (repository / "dist").glob("*.tar.gz")
    return wheel, sdist


def write_bill(repository: Path, wheel: Path) -> Path:
    """The bill of materials of a wheel (CycloneDX), beside it."""
    name, version = wheel.name.split("-")[:2]
    bill = wheel.parent / f"{name}-{version}.cdx.json"
    subprocess.run([sys.executable, repository / ".ci" / "sbom.py", wheel, bill], cwd=repository, check=True)
    return bill


def why_not_shippable(repository: Path, version: str, wheel: Path, sdist: Path) -> list[str]:
    """Reasons against shipping what was built; none where it is right."""
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
        (metadata_name,) = (name for name in carried if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(metadata_name).decode())
    if (metadata["Name"], metadata["Version"]) != ("mechm", version):
        problems.append(f"the wheel is {metadata['Name']} {metadata['Version']}, not mechm {version}")
    problems += [f"the wheel has no {field}" for field in ("License-Expression", "Project-URL") if not metadata[field]]
    for name, folder in PACKAGES.items():
        tracked = git(repository, "ls-files", folder, f":!{WEIGHTS}").splitlines()
        missing = sorted({f"{name}/{path.removeprefix(folder + '/')}" for path in tracked} - carried)
        problems += [f"the wheel lacks {path}" for path in missing]
    problems += [f"the wheel carries {name}" for name in sorted(carried) if name.startswith(f"{WEIGHTS}/")]
    top = {name.partition("/")[0] for name in carried if ".dist-info/" not in name}
    problems += [f"the wheel carries {name}, which is no package of ours" for name in sorted(top - set(PACKAGES))]
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    problems += [f"the sdist lacks {name}" for name in ("pyproject.toml", "README.md", "LICENSE") if name not in names]
    shipped = sorted(name for name in names | carried if NEVER_SHIPPED.search(name))
    return problems + [f"{name} must not be shipped" for name in shipped[:5]]


def git(repository: Path, *arguments: str) -> str:
    """Output of a git command."""
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
