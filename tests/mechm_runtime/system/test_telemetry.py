"""Usage reports: no library that runs a graph leaves a file below the user's folder, however it was reached."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mechm_runtime.environment.provider_probe import probe_model
from mechm_runtime.system.telemetry import NO_TELEMETRY

REPORTS = """
import os, time
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
time.sleep(0.5)  # the database is written by a thread
"""


@pytest.mark.parametrize(
    "code",
    [
        """
from pathlib import Path
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
OnnxRuntimeEngine(Path(GRAPH), EngineConfig())
""",
        """
from mechm_export.precision import smoothing
smoothing.onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])
""",
        """
from mechm_runtime.environment.onnxruntime import examine_providers
from mechm_runtime.system.telemetry import disable_telemetry
assert examine_providers(timeout_s=120)
disable_telemetry()
""",
        """
from mechm.cli import main
try:
    main(["--version"])
except SystemExit:
    import onnxruntime
    session = onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])
""",
    ],
    ids=["engine", "export", "a probe's process", "command"],
)
def test_nothing_is_written_below_the_users_folder(code: str, tmp_path: Path, fresh_python) -> None:  # type: ignore[no-untyped-def]
    graph, home = tmp_path / "product.onnx", tmp_path / "home"
    graph.write_bytes(probe_model())
    home.mkdir()
    unset = dict.fromkeys(NO_TELEMETRY, "")
    done = fresh_python(
        f"GRAPH = {str(graph)!r}\n{code}{REPORTS}",
        **{**unset, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_nobody_imports_onnxruntime_by_another_way(repository: Path) -> None:
    allowed = {"runtime/mechm_runtime/system/telemetry.py", "export/mechm_export/precision/onnxruntime_tools.py"}
    found = set()
    for folder in ("mechm", "export", "runtime", "benchmarks", "examples"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.split(".")[0] == "onnxruntime" for name in names):
                    found.add(path.relative_to(repository).as_posix())
    assert found == allowed
