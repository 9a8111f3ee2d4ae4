"""The doctor against the real machine, and against engines that crash, hang, lie or lack libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from click.testing import CliRunner

from mechm.cli.doctor import doctor
from mechm_runtime import doctor as doctors
from mechm_runtime.environment import machine as machines
from mechm_runtime.environment import onnxruntime as providers
from mechm_runtime.environment import packages, provider_probe

# As onnxruntime-gpu 1.31 printed it on a machine without CUDA, the folders shortened.
NO_CUDA = """\
\x1b[1;31m2026-01-01 00:00:12.7 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed to load \
library /lib/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared \
object file: No such file or directory
\x1b[m
[E:onnxruntime:, inference_session.cc:3181 operator()] This session contains graph nodes that are assigned to the \
default CPU EP, but fallback to CPU EP has been explicitly disabled by the user.
Traceback (most recent call last):
  File "probe.py", line 1, in <module>
RuntimeError: it did not load
"""

PRELUDE = """
import os, sys, time
import numpy as np

class SessionOptions:
    def add_session_config_entry(self, key, value):
        self.entries = {**getattr(self, "entries", {}), key: value}

def get_available_providers():
    return ["TestExecutionProvider"]

class InferenceSession:
    first = "TestExecutionProvider"
    def __init__(self, model, options, providers, enable_fallback):
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"
    def get_providers(self):
        return [self.first, "CPUExecutionProvider"]
    def run(self, names, feed):
        from mechm_runtime.environment.provider_probe import weight
        return [feed["x"] @ weight()]
"""

ENGINES = {
    "works": ("", True, "", ""),
    "crash": ("InferenceSession.run = lambda *_: os.abort()", False, "crashed the process (SIGABRT)", ""),
    "hang": ("InferenceSession.run = lambda *_: time.sleep(60)", False, "no answer within 3 s", ""),
    "stands in": ("InferenceSession.first = 'CPUExecutionProvider'", False, "set up CPUExecutionProvider instead", ""),
    "wrong": ("InferenceSession.run = lambda *_: [np.zeros((4, 8))]", False, "computes wrong values", ""),
    "nan": ("InferenceSession.run = lambda *_: [np.full((4, 8), np.nan)]", False, "computes wrong values", ""),
    "shape": ("InferenceSession.run = lambda *_: [np.zeros(3)]", False, "computes wrong values", ""),
    "no CUDA": (
        f"InferenceSession.__init__ = lambda *_, **__: sys.exit({NO_CUDA!r})",
        False,
        "missing library: libcublasLt.so.13",
        "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    "silent": ("InferenceSession.__init__ = lambda *_, **__: sys.exit(3)", False, "exit code 3", ""),
}


def fake_distribution(folder: Path, name: str, version: str, metadata: str = "", files: tuple[str, ...] = ()) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_probe_model_is_valid_onnx_and_computes_the_product():
    model = onnx.load_from_string(provider_probe.probe_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    x = provider_probe.probe_input()
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(y, x @ provider_probe.weight())


def test_probe_numbers_are_exact_in_half_precision_and_tell_positions_apart():
    x, weight = provider_probe.probe_input(), provider_probe.weight()
    exact = x @ weight
    np.testing.assert_array_equal(exact, np.round(exact))
    assert (np.abs(x) @ np.abs(weight)).max() < 256
    # A provider that mixes up rows or columns must not get away with it.
    assert len(np.unique(exact, axis=0)) == len(exact)
    assert len(np.unique(exact, axis=1).T) == exact.shape[1]


def test_the_cpu_works_here():
    provider = providers.examine_provider("CPUExecutionProvider")
    assert provider.works, provider.reason
    assert provider.setup_ms is not None
    assert provider.setup_ms > 0


def test_a_provider_that_does_not_exist_is_not_replaced_by_the_cpu():
    provider = providers.examine_provider("NoSuchExecutionProvider")
    assert not provider.works
    assert provider.reason


def test_every_listed_provider_is_tried():
    listed = subprocess.run(
        [sys.executable, "-c", "import onnxruntime; print(*onnxruntime.get_available_providers())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [provider.name for provider in providers.examine_providers()] == listed


@pytest.mark.parametrize("case", ENGINES)
def test_what_an_engine_does_decides_the_verdict(case, tmp_path, monkeypatch):
    behaviour, works, reason, fix = ENGINES[case]
    (tmp_path / "onnxruntime.py").write_text(f"{PRELUDE}\n{behaviour}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    (provider,) = providers.examine_providers(timeout_s=3)
    assert provider.name == "TestExecutionProvider"
    assert provider.works is works, provider
    assert reason in provider.reason
    assert provider.fix == fix


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ('LoadLibrary failed: depends on "cublas64_13.dll" which is missing.', "missing library: cublas64_13.dll"),
        ("dlopen: Library not loaded: @rpath/libz.dylib\n", "missing library: @rpath/libz.dylib"),
        (
            "liba.so.1: cannot open shared object file\nlibb.so: cannot open shared object file\n"
            "liba.so.1: cannot open shared object file",
            "missing libraries: liba.so.1, libb.so",
        ),
        ("Traceback\nRuntimeError: \x1b[31mno device\x1b[0m\n\n", "RuntimeError: no device"),
        ("", "its process ended with exit code 1"),
    ],
)
def test_explanations(printed, reason):
    assert providers.explain(subprocess.CompletedProcess([], 1, "", printed)) == reason


@pytest.mark.parametrize(
    ("library", "fix"),
    [
        ("libcuda.so.1", "driver"),
        ("libcublasLt.so.13", "onnxruntime-gpu[cuda,cudnn]"),
        ("cudnn64_9.dll", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvinfer.so.10", "TensorRT 10"),
    ],
)
def test_a_missing_library_comes_with_what_brings_it(library, fix, monkeypatch):
    printed = f'{library}: cannot open shared object file, depends on "{library}" which is missing'
    monkeypatch.setattr(providers, "_child", lambda *_, **__: subprocess.CompletedProcess([], 1, "", printed))
    provider = providers.examine_provider("CUDAExecutionProvider")
    assert provider.reason == f"missing library: {library}"
    assert fix in provider.fix


def test_two_engines_in_one_environment_are_a_problem_with_a_fix(tmp_path, monkeypatch):
    assert "onnxruntime" in packages.engine_distributions()
    fake_distribution(tmp_path, "onnxruntime-gpu", "1.99", files=("onnxruntime/__init__.py",))
    fake_distribution(tmp_path, "onnxruntime-extensions", "1.0", files=("onnxruntime_extensions/__init__.py",))
    monkeypatch.syspath_prepend(tmp_path)
    engines = packages.engine_distributions()
    assert engines == ("onnxruntime", "onnxruntime-gpu")
    (problem,) = doctors.find_problems(engines, [providers.Provider("CPUExecutionProvider", works=True)])
    assert problem.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert "[gpu]'" in problem.fix


def test_no_working_provider_is_a_problem_that_names_the_reasons():
    broken = providers.Provider("XExecutionProvider", works=False, reason="it crashed")
    (problem,) = doctors.find_problems(["onnxruntime"], [broken])
    assert "XExecutionProvider: it crashed" in problem.text


def test_extras_say_what_is_missing_too_old_and_how_to_have_it(tmp_path, monkeypatch):
    fake_distribution(
        tmp_path,
        "mechm",
        "9.9",
        "Requires-Dist: numpy>=1\n"
        "Provides-Extra: cpu\nProvides-Extra: gpu\nProvides-Extra: media\nProvides-Extra: export\nProvides-Extra: old\n"
        "Requires-Dist: onnxruntime>=1; extra == 'cpu'\n"
        "Requires-Dist: no-such-gpu-package; extra == 'gpu'\n"
        "Requires-Dist: no-such-media-package>=2,<3; extra == 'media'\n"
        "Requires-Dist: mechm[media]; extra == 'export'\n"
        "Requires-Dist: numpy>=99; extra == 'old'\n"
        "Requires-Dist: no-such-windows-package; sys_platform == 'nowhere' and extra == 'old'\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    extras = {extra.name: extra for extra in packages.examine_extras()}
    assert list(extras) == ["", "cpu", "gpu", "media", "export", "old"]
    assert extras[""].installed == {"numpy": np.__version__}
    assert extras["cpu"].missing == ()
    assert extras["cpu"].command == ""
    assert extras["gpu"].command == ""
    assert extras["gpu"].note == (
        "`cpu` is installed in its place; for --engine onnxruntime-gpu: "
        "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )
    assert extras["media"].missing == ("no-such-media-package<3,>=2",)
    assert extras["media"].command == "pip install 'mechm[media]'"
    assert extras["export"].missing == extras["media"].missing
    assert extras["old"].missing == (f"numpy>=99 ({np.__version__} is installed)",)


def test_the_command_installs_from_where_mechm_came_from(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "mechm", "9.9")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.install_target("cpu") == "'mechm[cpu]'"
    origin = tmp_path / "mechm-9.9.dist-info" / "direct_url.json"
    origin.write_text('{"url": "file:///home/a%20b/mechm", "dir_info": {"editable": true}}')
    assert packages.install_target("cpu") == "-e '/home/a b/mechm[cpu]'"
    origin.write_text('{"url": "file:///home/mechm", "dir_info": {}}')
    assert packages.install_target("cpu") == "'/home/mechm[cpu]'"


def test_the_distribution_really_describes_its_extras():
    extras = {extra.name for extra in packages.examine_extras()}
    assert {"", "cpu", "gpu", "media", "train", "export", "dev"} <= extras


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells about itself")
def test_the_machine_agrees_with_an_independent_witness(fresh_python):
    machine = machines.examine_machine()
    done = fresh_python(
        "import json\nfrom numpy._core._multiarray_umath import __cpu_features__ as f\nprint(json.dumps(f))"
    )
    numpy_says = json.loads(done.stdout)
    for ours, theirs in (("AVX2", "AVX2"), ("AVX512", "AVX512F"), ("NEON", "ASIMD")):
        assert (ours in machine.cpu_features) == numpy_says.get(theirs, False)
    assert machine.memory_bytes is not None
    assert machine.memory_bytes > 2**28
    assert 0 < machine.n_usable_cores <= machine.n_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_affinity_lowers_the_usable_cores(fresh_python):
    done = fresh_python(
        "import os\nfrom mechm_runtime.environment.machine import examine_machine\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nprint(examine_machine().n_usable_cores)"
    )
    assert 0 < float(done.stdout) <= 1, done.stderr


def test_decoders_are_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(doctors, "DECODERS", ("h264", "aac", "mp3", "opus", "no_such_codec"))
    assert doctors.examine_decoders() == {"h264": True, "aac": True, "mp3": True, "opus": True, "no_such_codec": False}


def test_decoders_are_unknown_without_the_media_extra(fresh_python):
    done = fresh_python("from mechm_runtime.doctor import *; print(examine_decoders())", without=["av"])
    assert done.stdout.strip() == "{}", done.stderr


def test_files_are_found_or_come_with_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.delenv("MECHM_BUNDLE", raising=False)
    monkeypatch.setenv("MECHM_CACHE", str(tmp_path))
    weights, bundle = doctors.examine_files()
    assert (weights.present, weights.command) == (False, doctors.WEIGHTS_COMMAND)
    assert not bundle.present
    part = tmp_path / "weights" / "small" / "text"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(b"1234")
    assert not doctors.examine_files()[0].present, "a part without its provenance was not finished"
    (part / "provenance.json").write_text("{}")
    weights, bundle = doctors.examine_files()
    assert (weights.present, weights.parts, weights.size_bytes, weights.command) == (True, ("text",), 6, "")
    assert "mechm export bundle" in bundle.command
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    (elsewhere / "bundle.json").write_text("{}")
    monkeypatch.setenv("MECHM_BUNDLE", str(elsewhere))
    _, bundle = doctors.examine_files()
    assert (bundle.present, bundle.size_bytes, bundle.command, bundle.path) == (True, 2, "", str(elsewhere))


def test_the_command_prints_json_in_a_light_install(fresh_python, tmp_path):
    done = fresh_python(
        "from mechm.cli import main; main(['doctor', '--json'])",
        without=["torch", "transformers", "peft", "onnx", "av", "PIL"],
        MECHM_CACHE=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    assert {"name": "CPUExecutionProvider", "works": True}.items() <= found["providers"][-1].items()
    assert found["decoders"] == {}
    assert found["machine"]["python"].startswith("3.")


def test_the_command_ends_with_1_and_the_fix_where_nothing_can_run(monkeypatch):
    monkeypatch.setattr(doctors, "engine_distributions", lambda: ())
    done = CliRunner().invoke(doctor)
    assert done.exit_code == 1
    assert "no inference engine is installed" in done.output
    assert "[cpu]'" in done.output
    assert "can run here" not in done.output


def test_the_tables_show_everything(monkeypatch):
    done = CliRunner().invoke(doctor, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for word in ("Python", "cores", "memory", "CPUExecutionProvider", "onnxruntime ", "h264", "base weights", "bundle"):
        assert word in done.output
    assert done.output.rstrip().endswith("The light runtime can run here.")


@pytest.mark.parametrize(
    ("architecture", "features", "told"),
    [
        ("x86_64", ("AVX2",), True),
        ("x86_64", ("AVX2", "AVX512", "AVX512-VNNI"), False),
        ("x86_64", ("AVX2", "AVX-VNNI"), False),
        ("aarch64", ("NEON",), False),
    ],
)
def test_a_cpu_whose_int8_saturates_is_named(architecture: str, features: tuple[str, ...], told: bool) -> None:
    machine = replace(machines.examine_machine(), architecture=architecture, cpu_features=features)
    notices = doctors.find_notices(machine)
    assert "Nothing is sent from this machine" in notices[0]
    assert any("--precision fp32" in notice for notice in notices) is told
