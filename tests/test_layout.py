"""The shape of the distribution: who imports whom, what is public, what a wheel carries, how errors are related."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from mechm_export import check_data
from mechm_runtime import errors

PACKAGES = {"mechm": "mechm", "mechm_export": "export/mechm_export", "mechm_runtime": "runtime/mechm_runtime"}
FOREIGN_TO_RUNTIME = ("torch", "transformers", "peft", "optimum", "vllm", "mechm", "mechm_export")
EXTRAS_OF_RUNTIME = ("onnxruntime", "av", "PIL")

LINT_IMPORTS = "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    search_path = [str((folder / package).parent) for package in PACKAGES.values()]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {search_path!r}; {LINT_IMPORTS}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def source_copy(repository: Path, tmp_path: Path) -> Path:
    for package in PACKAGES.values():
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_point_one_way(repository):
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("runtime/mechm_runtime/types.py", "import torch"),
        ("runtime/mechm_runtime/types.py", "import mechm.cli"),
        ("mechm/cli/__init__.py", "import mechm_export"),
    ],
)
def test_an_import_the_wrong_way_is_noticed(source_copy, module, line):
    with (source_copy / module).open("a") as source:
        source.write(f"\n\ndef _late() -> None:\n    {line}\n")
    done = lint_imports(source_copy)
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout


def test_the_runtime_imports_without_torch_and_extras(fresh_python):
    done = fresh_python("import mechm_runtime", without=FOREIGN_TO_RUNTIME + EXTRAS_OF_RUNTIME)
    assert done.returncode == 0, done.stderr


def test_every_module_of_the_runtime_imports_without_torch(fresh_python):
    code = """
import importlib, pkgutil, mechm_runtime
for module in pkgutil.walk_packages(mechm_runtime.__path__, "mechm_runtime."):
    importlib.import_module(module.name)
"""
    done = fresh_python(code, without=FOREIGN_TO_RUNTIME)
    assert done.returncode == 0, done.stderr


def test_importing_has_no_effects(fresh_python):
    code = """
import logging, os, signal, sys, threading, warnings
import numpy, click, rich, tokenizers

def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    return (dict(os.environ), threading.active_count(), list(logging.root.handlers), logging.root.level,
            list(warnings.filters), handlers, list(sys.path), os.getcwd())

before = state()
import mechm_runtime, mechm, mechm_export
assert state() == before, (before, state())
"""
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_exactly_what_is_visible(name, fresh_python):
    code = f"""
import json, types, {name} as package
hidden = types.ModuleType, type(__import__("__future__").annotations)
visible = [n for n, value in vars(package).items() if not n.startswith("_") and not isinstance(value, hidden)]
public = list(getattr(package, "__all__", []))
print(json.dumps([sorted(visible), public, [n for n in public if not hasattr(package, n)]]))
"""
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
    visible, public, unresolved = json.loads(done.stdout.splitlines()[-1])
    assert unresolved == []
    assert set(visible) <= set(public), "visible and not in __all__"
    assert len(public) == len(set(public))


def test_the_wheel_carries_every_file_of_the_packages(repository, tmp_path):
    (wheel,) = WheelBuilder(str(repository)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        carried = set(archive.namelist())
        (entry_points,) = (name for name in carried if name.endswith("entry_points.txt"))
        assert "mechm = mechm.cli:main" in archive.read(entry_points).decode()
        # What OpenVINO's int8 is calibrated on lies in `sample/`, and in a wheel beside the module that reads it.
        for name in (check_data.RECORDING, check_data.TRANSCRIPT):
            shipped = Path(check_data.__file__).parent.relative_to(repository / "export") / name
            assert archive.read(shipped.as_posix()) == (repository / "sample" / name).read_bytes()
    for name, package in PACKAGES.items():
        folder = repository / package
        expected = {
            f"{name}/{file.relative_to(folder).as_posix()}"
            for file in folder.rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and "pretrained" not in file.parts
        }
        assert f"{name}/py.typed" in expected
        assert expected <= carried, sorted(expected - carried)
    assert {name.partition("/")[0] for name in carried if ".dist-info/" not in name} == set(PACKAGES)


def test_trained_weights_have_a_wheel_of_their_own(repository, tmp_path):
    """A light install does not carry 30 MB that only training and export read."""
    (light,) = WheelBuilder(str(repository)).build(directory=str(tmp_path), versions=["standard"])
    (weights,) = WheelBuilder(str(repository / "pretrained")).build(directory=str(tmp_path), versions=["standard"])
    assert Path(light).stat().st_size < 4_000_000
    with zipfile.ZipFile(light) as archive:
        assert not [name for name in archive.namelist() if "/pretrained/" in name]
    shipped = repository / "mechm" / "pretrained"
    files = {
        f"mechm/pretrained/{path.relative_to(shipped).as_posix()}" for path in shipped.rglob("*") if path.is_file()
    }
    with zipfile.ZipFile(weights) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files
    assert Path(weights).name.split("-")[:2] == ["mechm_pretrained_small", Path(light).name.split("-")[1]]
    for wheel in (light, weights):  # side by side, as pip unpacks them
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / "installed")
    assert (tmp_path / "installed" / "mechm" / "pretrained" / "small" / "model.safetensors").is_file()
    assert (tmp_path / "installed" / "mechm" / "model" / "build.py").is_file()


def test_every_folder_with_modules_is_a_package(repository):
    for name, package in PACKAGES.items():
        folder = repository / package
        assert not (folder.parent / "__init__.py").exists() or name == "mechm"
        for module in folder.rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} lacks __init__.py"


def test_every_module_says_what_it_is_for(repository):
    for package in PACKAGES.values():
        for path in (repository / package).rglob("*.py"):
            assert path.read_text(encoding="utf-8").lstrip().startswith(('"""', 'r"""')), f"{path} has no docstring"


def test_errors_are_the_tree_that_the_module_draws():
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getdoc(errors).splitlines():
        stem = line.lstrip("│├└─ ")
        word = stem.split(" ")[0] if stem else ""
        if not word.endswith("Error"):
            continue
        depth = (len(line) - len(stem)) // 4
        above[depth:] = [word]
        drawn[word] = above[depth - 1] if depth else "Exception"
    real = {
        name: kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception)
    }
    assert drawn == real
    assert all(issubclass(getattr(errors, name), errors.MechmError) for name in real)


def test_input_errors_exit_with_2_and_carry_a_hint():
    assert errors.MediaError("broken", hint="look").hint == "look"
    assert {kind.exit_code for kind in (errors.InputError, errors.MediaError, errors.TranscriptError)} == {2}
    assert errors.MechmError("x").exit_code == 1
    missing = errors.MissingExtraError("av", extra="media")
    assert "mechm[media]" in missing.hint
    assert missing.exit_code == 2
