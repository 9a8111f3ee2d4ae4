"""Deployment files: what they say is what `mechm serve llm` would run, read-only, and with a key."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mechm_export.bundle.report import BundleReport
from mechm_export.vllm.deployment_files import write_deployment
from mechm_runtime.bundle.manifest import Bundle, ServedLlama
from mechm_runtime.errors import BundleError
from mechm_runtime.llm.vllm.launch_plan import ServeConfig


@pytest.fixture
def bundle(report: BundleReport, llama_base: Path, tmp_path: Path) -> Bundle:
    """A bundle that says it has a Llama for a server, of which these files look at the config alone."""
    folder = tmp_path / "bundle"
    (folder / "llm" / "served").mkdir(parents=True)
    shutil.copy(llama_base / "config.json", folder / "llm" / "served")
    files = {**report.bundle.manifest["files"], "llm/served/config.json": {}}
    served = ServedLlama("llm/served", "bf16", "none")
    return replace(report.bundle, folder=folder, served=served, manifest={**report.bundle.manifest, "files": files})


def test_compose_and_kubernetes_run_the_same_server_and_want_a_key(bundle: Bundle, tmp_path: Path) -> None:
    files = write_deployment(bundle, ServeConfig(port=9000, concurrency=5), tmp_path / "deploy")
    (compose,) = yaml.safe_load_all(files[0].read_text(encoding="utf-8"))
    deployment, service = yaml.safe_load_all(files[1].read_text(encoding="utf-8"))
    served = compose["services"]["mechm-llama"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert served["command"] == container["args"]
    command = " ".join(served["command"])
    assert "--model /bundle/llm/served" in command
    assert "--max-num-seqs 5" in command
    assert served["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    assert served["volumes"] == ["${MECHM_BUNDLE:?set it to the folder of the bundle}:/bundle:ro"]
    for file in files:
        assert str(bundle.folder) not in file.read_text(encoding="utf-8"), "the files run on other machines"
    assert served["ports"] == ["127.0.0.1:9000:8000"]
    (key,) = [one for one in container["env"] if one["name"] == "VLLM_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["key"] == "VLLM_API_KEY"
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] == "bundle")
    assert service["spec"]["ports"] == [{"port": 9000, "targetPort": 8000}]
    with pytest.raises(BundleError, match="exists"):
        write_deployment(bundle, ServeConfig(), tmp_path / "deploy")


def test_both_files_are_written_or_none(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "deploy"
    out.mkdir()
    (out / "kubernetes.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match=r"kubernetes\.yaml exists"):
        write_deployment(bundle, ServeConfig(), out)
    assert [path.name for path in out.iterdir()] == ["kubernetes.yaml"]
    assert (out / "kubernetes.yaml").read_text(encoding="utf-8") == "mine"
    with pytest.raises(BundleError, match="cannot write into"):
        write_deployment(bundle, ServeConfig(), out / "kubernetes.yaml")


def test_a_bundle_without_a_served_llama_has_no_deployment(report: BundleReport, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no Llama for vLLM"):
        write_deployment(report.bundle, ServeConfig(), tmp_path)
