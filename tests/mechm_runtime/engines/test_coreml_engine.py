"""The engine `coreml`: refused with the reason where there is no macOS, and where Core ML does not run."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner

from mechm.cli import cli
from mechm_runtime.bundle.manifest import PartFiles
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.coreml_engine import CoreMlEngine
from mechm_runtime.engines.load import load_engine
from mechm_runtime.engines.spec import CPU, ENGINES
from mechm_runtime.errors import MissingExtraError, ProviderError

COREML = EngineConfig(n_threads=1, engine="coreml")
PROVIDER = "CoreMLExecutionProvider"


def test_it_runs_fp32_where_nothing_else_is_asked_for() -> None:
    files = {precision: f"text.{precision}.onnx" for precision in ("fp32", "int8", "fp16", "w8")}
    assert ENGINES["coreml"].default_precision(PartFiles("text", (), (), files, "int8")) == "fp32"
    assert set(ENGINES["coreml"].refused) == {"int8", "w8", "bf16"}
    assert COREML.execution_provider == PROVIDER


@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS")
def test_elsewhere_than_on_macos_it_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="Core ML is a part of macOS") as refused:
        load_engine(tmp_path / "a.onnx", COREML)
    assert "--engine" in refused.value.hint


@pytest.mark.skipif(sys.platform == "darwin", reason="this is macOS")
def test_the_command_offers_it_and_refuses_it(tiny_bundle: Path, repository: Path) -> None:
    sample = str(repository / "sample" / "conversation.srt")
    done = CliRunner().invoke(cli, ["analyze", sample, "--bundle", str(tiny_bundle), "--engine", "coreml"])
    assert isinstance(done.exception, ProviderError), done.output


def test_a_core_ml_that_is_absent_or_does_not_load_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(ProviderError, match=f"{PROVIDER} is not in this onnxruntime"):
        CoreMlEngine(tmp_path / "a.onnx", COREML)

    class OnCpu:
        asked: object = None

        def __init__(self, *_: object, providers: object, **__: object) -> None:
            OnCpu.asked = providers

        def get_providers(self) -> list[str]:
            return [CPU]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnCpu)
    with pytest.raises(ProviderError, match=f"{PROVIDER} did not load"):
        CoreMlEngine(tmp_path / "a.onnx", COREML)
    assert OnCpu.asked == [(PROVIDER, {"ModelFormat": "MLProgram"})]


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        CoreMlEngine(tmp_path / "a.onnx", COREML)
    assert "mechm[coreml]" in caught.value.hint
