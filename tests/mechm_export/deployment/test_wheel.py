"""A bundle's wheel: pip installs it, the runtime finds it, and equal bundles give equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import PathDistribution, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.utils import parse_wheel_filename
from packaging.version import Version

from mechm.cli import cli
from mechm_export.deployment.wheel import wheel_name, write_wheel
from mechm_runtime.bundle.installed import installed_bundles, only_installed_bundle
from mechm_runtime.bundle.manifest import MANIFEST
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.types import Conversation, Utterance

CONVERSATION = Conversation("c", (Utterance(1, "Ana", "I got the job!"), Utterance(2, "Ben", "Congratulations!")))


@pytest.fixture(scope="module")
def wheel(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tiny_bundle, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_its_name_says_which_bundle_it_is(wheel: Path, tiny_bundle: Path) -> None:
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert name == "mechm-bundle-tiny"
    assert version.public == "1"
    assert f"tiny-{str(version.local)[1:]}" == open_bundle(tiny_bundle).id
    assert [str(tag) for tag in tags] == ["py3-none-any"]


def test_installed_it_is_whole_and_its_metadata_true(site: Path, tiny_bundle: Path) -> None:
    (info,) = site.glob("*.dist-info")
    distribution = PathDistribution(info)
    assert distribution.metadata["Name"] == "mechm-bundle-tiny"
    assert distribution.requires == [f"mechm>={Version(version('mechm')).public}"]
    recorded = {str(file): file for file in distribution.files or ()}
    carried = {f"mechm_bundle_tiny/bundle/{name}" for name in (*open_bundle(tiny_bundle).manifest["files"], MANIFEST)}
    assert carried <= set(recorded)
    for name in carried:
        content = (site / name).read_bytes()
        assert recorded[name].size == len(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert recorded[name].hash is not None
        assert recorded[name].hash.value == digest
        assert content == (tiny_bundle / name.removeprefix("mechm_bundle_tiny/bundle/")).read_bytes()


def test_the_runtime_finds_it_and_answers_as_from_the_folder(
    site: Path, tiny_bundle: Path, fresh_python: Callable[..., Any], tmp_path: Path
) -> None:
    """In a process without the packages that the light install lacks, by name, by MECHM_BUNDLE and by itself."""
    code = f"""
import json, os, sys
sys.path.append({str(site)!r})
from mechm_runtime import Conversation, Pipeline, Utterance
conversation = Conversation("c", (Utterance(1, "Ana", "I got the job!"), Utterance(2, "Ben", "Congratulations!")))
for name in ("package:mechm-bundle-tiny", "package:Mechm_Bundle.tiny", None):
    analysis = Pipeline.from_bundle(name).analyze(conversation)
    print(json.dumps([analysis.bundle_id, [u.probabilities for u in analysis.utterances]]))
os.environ["MECHM_BUNDLE"] = "package:mechm-bundle-tiny"
print(json.dumps([Pipeline.from_bundle().bundle_id]))
assert "mechm_bundle_tiny" not in sys.modules, "its code was run"
from mechm_runtime.doctor import examine_files
print(json.dumps(examine_files()[1].present))
"""
    done = fresh_python(code, without=["torch", "mechm", "mechm_export"], MECHM_BUNDLE="", MECHM_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    *by_name, by_environment, is_present = done.stdout.splitlines()
    analysis = Pipeline.from_bundle(tiny_bundle).analyze(CONVERSATION)
    expected = [analysis.bundle_id, [dict(u.probabilities) for u in analysis.utterances]]
    assert [json.loads(line) for line in by_name] == [expected] * 3
    assert json.loads(by_environment) == [analysis.bundle_id]
    assert json.loads(is_present) is True


def test_commands_take_its_name_and_leave_it_as_it_is(
    site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(site)
    named = ["--bundle", "package:mechm-bundle-tiny"]
    inspected = CliRunner().invoke(cli, ["bundle", "inspect", "package:mechm-bundle-tiny"])
    assert "tiny" in inspected.output
    for arguments in (["llm", *named], ["engines", *named, "--sm", "89"], ["llm"]):
        monkeypatch.setenv("MECHM_BUNDLE", named[1])
        refused = CliRunner().invoke(cli, ["export", *arguments])
        assert isinstance(refused.exception, InputError), refused.output
        assert "is an installed package" in str(refused.exception)
        assert str(site) in refused.exception.hint
    unknown = CliRunner().invoke(cli, ["export", "llm", "--bundle", "package:other"])
    assert isinstance(unknown.exception, BundleError)
    asked = CliRunner().invoke(cli, ["serve", "llm", *named, "--print"])
    assert "has no Llama" in str(asked.exception)


def test_a_package_that_is_not_there_is_named(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only_installed_bundle() is None
    with pytest.raises(BundleError, match="no package mechm-bundle-tiny") as refused:
        open_bundle("package:mechm-bundle-tiny")
    assert "to-wheel" in refused.value.hint
    monkeypatch.syspath_prepend(site)
    assert list(installed_bundles()) == ["mechm-bundle-tiny"]
    with pytest.raises(BundleError, match="no package other") as refused:
        open_bundle("package:other")
    assert refused.value.hint == "there is mechm-bundle-tiny"
    shutil.copytree(site, tmp_path / "second")
    (info,) = (tmp_path / "second").glob("*.dist-info")
    metadata = (info / "METADATA").read_text().replace("Name: mechm-bundle-tiny", "Name: mechm-bundle-mine")
    (info / "METADATA").write_text(metadata)
    info.rename(info.with_name("mechm_bundle_mine-1.dist-info"))
    monkeypatch.syspath_prepend(tmp_path / "second")
    monkeypatch.delenv("MECHM_BUNDLE", raising=False)
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BundleError, match="several bundles are installed: mechm-bundle-mine, mechm-bundle-tiny"):
        open_bundle()


def test_equal_bundles_give_equal_wheels(wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "elsewhere"))
    for path in copy.rglob("*"):
        path.touch()
    again = write_wheel(copy, tmp_path / wheel.name)
    assert again.read_bytes() == wheel.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".whl"] == ["elsewhere"]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None


def test_names_and_places_are_judged_before_anything_is_written(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert wheel_name(bundle, "Emotions.Edge").file.startswith("emotions_edge-1+g")
    for name in ("über", "9lives", "-x", "a b", "x\nRequires-Dist: y"):
        with pytest.raises(InputError):
            write_wheel(tiny_bundle, tmp_path, name=name)
    with pytest.raises(InputError, match="pip installs no wheel called mine"):
        write_wheel(tiny_bundle, tmp_path / "mine.whl")
    taken = tmp_path / wheel_name(bundle).file
    taken.write_text("mine")
    with pytest.raises(BundleError, match="exists"):
        write_wheel(tiny_bundle, tmp_path)
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


def test_a_damaged_bundle_is_not_packed(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    graph = folder / "onnx/text.fp32.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(BundleError, match=r"text\.fp32\.onnx was changed"):
        write_wheel(folder, tmp_path / "wheels")
    assert not list((tmp_path / "wheels").glob("*"))
