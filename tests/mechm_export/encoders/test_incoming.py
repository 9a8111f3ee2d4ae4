"""Graphs that others exported: checked before they are loaded, then converted and compared as our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import helper

from mechm_export.check_data import check_conversations
from mechm_export.encoders.axes import Axes, parse_axes
from mechm_export.encoders.export import convert_graph, export_encoder
from mechm_export.encoders.incoming import check_acyclic, graph_part, read_graph
from mechm_export.encoders.report import FILES
from mechm_runtime.bundle.manifest import Tensor
from mechm_runtime.errors import InputError, WeightsError

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def exported(encoders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as optimum-cli leaves it: graph, config and tokenizer."""
    out = tmp_path_factory.mktemp("incoming") / "bert"
    export_encoder(str(encoders("bert")), out, task="feature-extraction")
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """The same with its weights in a file beside the graph, to damage."""
    folder = tmp_path / "given"
    folder.mkdir()
    model = onnx.load(exported / "model.onnx")
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=512
    )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((exported / name).read_bytes())
    return folder


def relocate(folder: Path, location: str) -> None:
    """Say that the weights lie elsewhere."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, folder / "model.onnx")


def test_a_graph_is_converted_as_our_own(folder: Path, tmp_path: Path) -> None:
    conversations = [one.conversation for one in check_conversations()]
    report = convert_graph(folder, tmp_path / "out", precisions=("fp32", "fp16", "int8"), conversations=conversations)
    assert [graph.precision for graph in report.graphs] == ["fp32", "fp16", "int8"]
    assert report.part.inputs[0] == Tensor("input_ids", "int64", ("batch", "tokens"))
    assert report.part.outputs == (Tensor("last_hidden_state", "float32", ("batch", "tokens", 32)),)
    assert report.graphs[0].check.largest_difference == 0.0
    assert report.graphs[0].check.padding_difference is not None
    assert 0 < report.graphs[1].check.largest_difference < report.graphs[2].check.largest_difference
    for graph in report.graphs:
        onnx.checker.check_model(tmp_path / "out" / FILES[graph.precision])


def test_sizes_to_try(folder: Path) -> None:
    part = graph_part(read_graph(folder), parse_axes("tokens=7"))
    assert part.trial_sizes == ({"batch": 2, "tokens": 7}, {"batch": 1, "tokens": 7}, {"batch": 3, "tokens": 7})
    with pytest.raises(InputError, match="no dynamic axis time"):
        graph_part(read_graph(folder), parse_axes("time=7"))


@pytest.mark.parametrize("location", ["../model.onnx_data", "/etc/passwd", "inner/data", "..", "C:data", ""])
def test_weights_outside_the_folder(location: str, folder: Path) -> None:
    (folder.parent / "model.onnx_data").write_bytes((folder / "model.onnx_data").read_bytes())
    relocate(folder, location)
    with pytest.raises(WeightsError, match="outside its folder"):
        read_graph(folder)


def test_weights_that_are_a_link(folder: Path) -> None:
    (folder / "model.onnx_data").rename(folder.parent / "elsewhere")
    (folder / "model.onnx_data").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(WeightsError, match=r"model\.onnx_data is a link"):
        read_graph(folder)


def test_a_graph_that_is_a_link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "real.bin")
    (folder / "model.onnx").symlink_to(folder / "real.bin")
    with pytest.raises(WeightsError, match=r"model\.onnx is a link"):
        read_graph(folder)


def test_weights_that_are_missing_or_cut_short(folder: Path) -> None:
    data = folder / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="reaches beyond"):
        read_graph(folder)
    data.unlink()
    with pytest.raises(WeightsError, match="missing"):
        read_graph(folder)


def test_a_circle(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    check_acyclic(model.graph)
    last = model.graph.node[-1].output[0]
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    products[0].input[0] = last
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(WeightsError, match="runs in a circle"):
        read_graph(folder)


def test_a_node_that_needs_itself() -> None:
    node = helper.make_node("Add", ["x", "y"], ["y"], name="self")
    with pytest.raises(WeightsError, match=r"circle at self \(Add\)"):
        check_acyclic(helper.make_graph([node], "graph", [], []))


def test_what_is_no_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x09not a graph")
    with pytest.raises(WeightsError, match=r"model\.onnx is no"):
        read_graph(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"no model\.onnx"):
        read_graph(folder)


def test_old_opsets_and_other_types(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.opset_import[0].version = 9
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match=r"no valid graph|has opset 9"):
        read_graph(folder)


def test_a_quantized_graph(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    conversations = [one.conversation for one in check_conversations()]
    convert_graph(exported, out, precisions=("int8",), conversations=conversations)
    with pytest.raises(WeightsError, match="quantized already"):
        read_graph(out)


def test_bf16_of_an_old_opset(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs opset 22, not 18"):
        convert_graph(exported, tmp_path / "out", precisions=("bf16",))


def test_a_graph_without_dynamic_axes_is_tried_once(encoders: Folders, tmp_path: Path) -> None:
    export_encoder(str(encoders("dinov2")), tmp_path / "fixed", axes=parse_axes("batch=1"))
    part = graph_part(read_graph(tmp_path / "fixed"), Axes())
    assert part.trial_sizes == ({},)
    assert part.inputs == (Tensor("pixel_values", "float32", (1, 3, 28, 28)),)
