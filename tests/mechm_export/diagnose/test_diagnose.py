"""`mechm export diagnose`: planted outlier channels are found, and keeping those layers in fp32 is enough."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mechm.cli import cli
from mechm_export.diagnose.layer_switches import LayerSwitches
from mechm_export.diagnose.run import diagnose_file, diagnose_part, read_fp32_layers
from mechm_export.diagnose.search import compare_outputs
from mechm_export.gate.check_set import CheckSet, shipped_check_set
from mechm_export.precision.lower import LowerPrecision, lower_graph
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import InputError, VerificationError

D = 32
LAYERS = 6
PLANTED = (2, 4)
TWINS = (5, 20)
"""Two channels that are the same everywhere, and cancel in every layer: loud or not, they change no answer in fp32."""

Feeds = dict[str, npt.NDArray[np.float32]]


def network(gain: float) -> onnx.ModelProto:
    """Residual linear layers; into the planted ones the twins go `gain` times louder.

    Their weights are as large as others', so that smoothing cannot hide them: the gain would be in the weights then.
    """
    random = np.random.default_rng(0)
    nodes, constants, states = [], {}, "x"
    for number in range(LAYERS):
        weights = random.normal(size=(D, D)).astype(np.float32) / 12
        weights[TWINS[1]] = -weights[TWINS[0]]
        weights[:, TWINS] = 0  # the residual alone carries the twins on
        constants[f"weights_{number}"] = weights
        source = states
        if number in PLANTED:
            loud = np.ones(D, np.float32)
            loud[list(TWINS)] = gain
            constants[f"loud_{number}"] = loud
            nodes.append(
                helper.make_node("Mul", [states, f"loud_{number}"], [f"raised_{number}"], name=f"gain_{number}")
            )
            source = f"raised_{number}"
        nodes.append(
            helper.make_node("MatMul", [source, f"weights_{number}"], [f"y_{number}"], name=f"linear_{number}")
        )
        nodes.append(helper.make_node("Tanh", [f"y_{number}"], [f"bent_{number}"], name=f"tanh_{number}"))
        output = "logits" if number == LAYERS - 1 else f"states_{number}"
        nodes.append(helper.make_node("Add", [states, f"bent_{number}"], [output], name=f"add_{number}"))
        states = output
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", D])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", D])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def feeds(n: int = 2) -> list[Feeds]:
    random = np.random.default_rng(1)
    found = []
    for _ in range(n):
        x = random.normal(size=(40, D)).astype(np.float32)
        x[:, TWINS[1]] = x[:, TWINS[0]]
        found.append({"x": x})
    return found


def written(gain: float, folder: Path) -> tuple[Path, list[Path]]:
    """The network, and its inputs as files."""
    onnx.save_model(network(gain), folder / "planted.onnx")
    paths = []
    for number, feed in enumerate(feeds()):
        paths.append(folder / f"inputs-{number}.npz")
        np.savez(paths[-1], x=feed["x"])
    return folder / "planted.onnx", paths


def cosine(path: Path, source: Path) -> float:
    exact, lowered = (
        [OnnxRuntimeEngine(file, EngineConfig()).run(feed) for feed in feeds()] for file in (source, path)
    )
    return compare_outputs(exact, lowered).cosine


@pytest.mark.parametrize(
    ("precision", "gain", "blamed"),
    [
        ("int8", 3e4, {f"linear_{n}" for n in PLANTED}),
        ("fp16", 1e6, {f"{kind}_{n}" for n in PLANTED for kind in ("linear", "gain")}),
    ],
)
def test_planted_layers_are_found_and_keeping_them_is_enough(
    precision: LowerPrecision, gain: float, blamed: set[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if precision == "int8":
        request.getfixturevalue("exact_int8")
    source, inputs = written(gain, tmp_path)
    found = diagnose_file(source, precision, inputs, 0.999).diagnosis
    assert found.problem
    assert set(found.kept) == blamed
    assert found.solved
    worst = found.layers[: len(blamed)]
    assert {layer.name for layer in worst} == blamed
    assert worst[-1].difference.relative_error > 10 * found.layers[len(blamed)].difference.relative_error
    loud = {layer.name: layer.outliers for layer in found.layers if layer.outliers is not None}
    assert min(loud[f"linear_{n}"] for n in PLANTED) > 10 * max(loud["linear_0"], loud["linear_1"])
    # The same on the converted file itself. In fp16 onnxruntime's CPU kernels leave out the roundings that overflow.
    lower_graph(source, tmp_path / "kept.onnx", precision, feeds(), found.kept)
    assert cosine(tmp_path / "kept.onnx", source) > 0.999
    if precision == "int8":
        lower_graph(source, tmp_path / "all.onnx", precision, feeds())
        assert cosine(tmp_path / "all.onnx", source) < 0.99


def test_where_nothing_is_planted_nothing_is_kept(tmp_path: Path) -> None:
    source, inputs = written(1.0, tmp_path)
    for precision in ("int8", "fp16", "bf16"):
        found = diagnose_file(source, precision, inputs, 0.999).diagnosis
        assert (found.problem, found.kept, found.solved) == ("", (), True)
        assert found.together.kl is not None
        assert 0 < found.together.kl < 0.01


def test_a_gate_that_nothing_passes_is_said_to_be_one(tmp_path: Path) -> None:
    """Rounding anything changes a bit; the cosine of equal outputs is 1 up to rounding of the cosine itself."""
    source, inputs = written(3e4, tmp_path)
    found = diagnose_file(source, "bf16", inputs, 1.0).diagnosis
    assert found.problem
    assert not found.solved or len(found.kept) > LAYERS


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_switched_graph_rounds_as_the_converted_file_does(
    precision: LowerPrecision, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if precision == "int8":
        request.getfixturevalue("exact_int8")
    source, _ = written(1.0, tmp_path)
    graph = LayerSwitches(source, precision, feeds(), tmp_path)
    exact = [OnnxRuntimeEngine(source, EngineConfig()).run(feed) for feed in feeds()]
    none = compare_outputs(exact, [graph.lower(()).run(feed) for feed in feeds()])
    assert none.relative_error < 1e-6
    lower_graph(source, tmp_path / "file.onnx", precision, feeds())
    file = [OnnxRuntimeEngine(tmp_path / "file.onnx", EngineConfig()).run(feed) for feed in feeds()]
    together = [graph.lower_all_except(()).run(feed) for feed in feeds()]
    apart = compare_outputs(exact, together).relative_error
    assert apart > 1e-5
    assert compare_outputs(file, together).relative_error < apart


def test_outputs_that_are_not_finite_are_infinitely_far() -> None:
    exact = {"y": np.array([1.0, -np.inf], np.float32)}
    assert compare_outputs([exact], [exact]).relative_error == 0
    assert compare_outputs([exact], [{"y": np.array([1.0, 2.0], np.float32)}]).relative_error == np.inf


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    source, inputs = written(3e4, tmp_path)
    arguments = ["export", "diagnose", "--model", source, "--inputs", inputs[0], "--precision", "int8"]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json", str(tmp_path / "all.json")])
    assert done.exit_code == 0, done.output
    assert "passes with 2 of 6 layers in fp32" in done.stdout
    assert "linear_2 *" in done.stdout
    values = json.loads((tmp_path / "all.json").read_text())
    assert values["subject"] == "planted.onnx"
    assert len(values["diagnosis"]["layers"]) == LAYERS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "either --part"),
        (["--precision", "int8", "--model", "MODEL"], "--model takes --inputs"),
        (["--precision", "int8", "--part", "text", "--inputs", "INPUTS"], "--inputs are for --model"),
        (["--precision", "int8", "--part", "text", "--model", "MODEL"], "either --part"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    source, inputs = written(1.0, tmp_path)
    named = {"MODEL": str(source), "INPUTS": str(inputs[0])}
    done = CliRunner().invoke(cli, ["export", "diagnose", *(named.get(one, one) for one in arguments)])
    assert done.exit_code == 2
    assert words in done.output


def test_inputs_that_are_none_are_refused(tmp_path: Path) -> None:
    source, _ = written(1.0, tmp_path)
    np.savez(tmp_path / "other.npz", y=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="has no x"):
        diagnose_file(source, "fp16", [tmp_path / "other.npz"], 0.99)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="no npz file"):
        diagnose_file(source, "fp16", [tmp_path / "objects.npz"], 0.99)
    with pytest.raises(InputError, match="no ONNX file"):
        diagnose_file(tmp_path / "other.npz", "fp16", [], 0.99)


def few_checks() -> CheckSet:
    shipped = shipped_check_set()
    return CheckSet(shipped.name, shipped.labelled[:2])


def test_a_part_is_diagnosed_on_what_the_pipeline_feeds_it(tiny_bundle: Path, tmp_path: Path) -> None:
    found = diagnose_part(tiny_bundle, "fusion", "int8", few_checks())
    names = [layer.name for layer in found.diagnosis.layers]
    assert found.diagnosis.problem == ""
    graph = onnx.load(open_bundle(tiny_bundle).path("onnx/fusion.fp32.onnx")).graph
    readers = {name: node.input[0] for node in graph.node for name in [node.name]}
    assert not {"face", "audio", "scene"} & {readers[name] for name in names}, "words alone leave those at zero"
    found.write_kept(tmp_path / "kept.json")
    assert read_fp32_layers(tiny_bundle, "int8", [tmp_path / "kept.json"]) == {"fusion": ()}
    with pytest.raises(InputError, match="another graph or precision"):
        read_fp32_layers(tiny_bundle, "fp16", [tmp_path / "kept.json"])
    (tmp_path / "kept.json").write_text("[]")
    with pytest.raises(InputError, match="no list of layers"):
        read_fp32_layers(tiny_bundle, "int8", [tmp_path / "kept.json"])
    with pytest.raises(VerificationError, match="nothing in the conversations reaches the audio part"):
        diagnose_part(tiny_bundle, "audio", "int8", few_checks())
    with pytest.raises(InputError, match="no part mouth"):
        diagnose_part(tiny_bundle, "mouth", "int8", few_checks())
