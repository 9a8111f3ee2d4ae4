"""`mechm export engines`: really built with TensorRT-RTX, without a GPU; keys, reuse, interruption, and damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from mechm.cli import cli
from mechm_export.deployment.split import Deployment, split_bundle
from mechm_export.gate.check_set import CheckSet, shipped_check_set
from mechm_export.graphs.nodes import set_nodes
from mechm_export.tensorrt import engines as engines_module
from mechm_export.tensorrt.engines import EngineSettings, add_engines, choose_capabilities
from mechm_export.tensorrt.memory import estimate_memory
from mechm_export.tensorrt.shapes import shape_ranges
from mechm_runtime.bundle.engine_file import EngineKey, ShapeRange
from mechm_runtime.bundle.manifest import LLAMA, MANIFEST, PROJECTOR, manifest_id
from mechm_runtime.bundle.open import file_sha256, open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.tensorrt.engine import engine_for, find_engine
from mechm_runtime.engines.tensorrt.engine_store import EngineStore
from mechm_runtime.engines.tensorrt.library import Gpu, Library, load_library, visible_gpu
from mechm_runtime.errors import BundleError, InputError, MissingExtraError, ProviderError, VerificationError
from mechm_runtime.pipeline import Pipeline

pytest.importorskip("tensorrt_rtx", reason="pip install 'mechm[tensorrt-rtx]'")

FP32 = EngineSettings("tensorrt-rtx", "fp32", ("fusion", "expression"), ("86",))


@pytest.fixture(scope="module")
def library() -> Library:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def checks() -> CheckSet:
    shipped = shipped_check_set()
    return CheckSet(shipped.name, shipped.labelled[:2])


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, checks: CheckSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with engines in fp32 of two parts. Treat it as read-only."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engines") / "bundle"))
    assert add_engines(folder, FP32, checks).built == 2
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", "engines", *map(str, arguments)])


def test_engines_are_listed_with_what_they_depend_on(made: Path, library: Library) -> None:
    bundle = open_bundle(made)
    assert [engine.part for engine in bundle.engines] == ["expression", "fusion"]
    for engine in bundle.engines:
        assert engine.source == f"onnx/{engine.part}.fp32.onnx"
        assert engine.key.onnx_sha256 == file_sha256(bundle.path(engine.source))
        assert (engine.key.version, engine.key.compute_capabilities) == (library.version, ("86",))
        assert engine.key.digest in engine.file
        assert bundle.path(engine.file).read_bytes()[:4] == b"vtrt"
    assert not (made.parent / ".bundle.engines").exists()
    assert list(bundle.parts["fusion"].files) == ["fp32", "int8"], "the runtime's graphs are as they were"


def test_what_is_there_already_is_not_built_again(folder: Path, checks: CheckSet) -> None:
    before = open_bundle(folder)
    report = add_engines(folder, FP32, checks)
    assert report.built == 0
    assert open_bundle(folder).id == before.id
    report = add_engines(folder, replace(FP32, parts=("fusion",), compute_capabilities=("89",)), checks)
    assert report.built == 1
    after = {engine.part: engine for engine in open_bundle(folder).engines}
    assert after["fusion"].key.compute_capabilities == ("89",)
    assert after["expression"] == before.engines[0]
    assert sorted(path.name for path in (folder / "engines").iterdir()) == sorted(
        Path(engine.file).name for engine in after.values()
    ), "the engine that was replaced is gone"


def test_another_onnx_is_another_key(folder: Path, made: Path, checks: CheckSet) -> None:
    model = onnx.load(folder / "onnx/expression.fp32.onnx")
    model.producer_name = "somebody else"
    replace_graph(folder, "onnx/expression.fp32.onnx", model)
    with pytest.raises(BundleError, match="was built from another ONNX"):
        open_bundle(folder)
    replace_graph(folder, "onnx/expression.fp32.onnx", model, engines=False)
    report = add_engines(folder, replace(FP32, parts=("expression",)), checks)
    assert report.built == 1
    before, after = open_bundle(made).engines[0], report.engines[0]
    assert replace(before.key, onnx_sha256=file_sha256(folder / after.source)) == after.key != before.key
    assert before.file != after.file


def test_a_changed_engine_is_refused(folder: Path) -> None:
    path = folder / open_bundle(folder).engines[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"engine was changed: its sha256 differs"):
        open_bundle(folder)


@pytest.mark.parametrize("damage", ["field", "part", "file", "shape"])
def test_a_damaged_entry_is_refused(folder: Path, damage: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    engine = manifest["engines"][0]
    if damage == "field":
        del engine["key"]["version"]
    elif damage == "part":
        engine["part"] = "mouth"
    elif damage == "file":
        engine["file"] = "engines/other.engine"
    else:
        engine["key"]["shapes"][0]["smallest"] = ["1"]
    manifest["id"] = manifest_id("tiny", manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"bundle\.json is damaged"):
        open_bundle(folder)


def test_fp16_and_int8_are_judged_and_carry_their_onnx(folder: Path) -> None:
    for precision in ("fp16", "int8"):
        done = run("--bundle", folder, "--precision", precision, "--part", "fusion", "--sm", "86", "--sm", "120")
        assert done.exit_code == 0, done.output
        assert "mechm check conversations, fusion" in done.stdout
        bundle = open_bundle(folder)
        engine = find_engine(bundle, "fusion", "tensorrt-rtx")
        assert (engine.key.precision, engine.key.compute_capabilities) == (precision, ("86", "120"))
        graph = onnx.load(bundle.path(engine.source)).graph
        assert (precision == "int8") == any(node.op_type == "QuantizeLinear" for node in graph.node)
        assert list(bundle.manifest["checks"]["engines"]) == [engine.source]
        (check,) = bundle.manifest["checks"]["engines"][engine.source]
        assert (check["precision"], check["labels_kept"]) == (precision, 1.0)
    names = sorted(path.suffix for path in (folder / "engines").iterdir() if path.name.startswith("fusion"))
    assert names == [".engine", ".onnx"], "what fp16 left is gone"


def replace_graph(folder: Path, name: str, model: onnx.ModelProto, *, engines: bool = True) -> None:
    """Put another graph into a bundle, as somebody who exported it would; `engines` keeps the list of engines."""
    onnx.save_model(model, folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    path = folder / name
    manifest["files"][name] = {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}
    if not engines:
        del manifest["engines"]
    manifest["id"] = manifest_id("tiny", manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def plant_offset(model: onnx.ModelProto, offset: float) -> None:
    """Lift what the fusion reads of the text and lower it again: nothing in fp32, everything in fp16 at 30,000."""
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = "lowered_text" if name == "text" else name
    steps = [
        onnx.helper.make_node("Add", ["text", "offset"], ["lifted_text"], name="lift"),
        onnx.helper.make_node("Sub", ["lifted_text", "offset"], ["lowered_text"], name="lower"),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(offset, np.float32), "offset"))
    set_nodes(model, [*steps, *model.graph.node])


def test_a_part_that_changes_answers_is_left_out_until_the_layers_to_blame_are_kept(folder: Path) -> None:
    model = onnx.load(folder / "onnx/fusion.fp32.onnx")
    plant_offset(model, 30_000.0)
    replace_graph(folder, "onnx/fusion.fp32.onnx", model, engines=False)
    before = (folder / MANIFEST).read_bytes()
    arguments = ["--bundle", folder, "--part", "fusion", "--precision", "fp16", "--sm", "86"]
    refused = run(*arguments)
    assert isinstance(refused.exception, VerificationError), refused.output
    assert "mechm export diagnose" in refused.exception.hint
    assert (folder / MANIFEST).read_bytes() == before
    keep = folder.parent / "keep.json"
    diagnosed = CliRunner().invoke(cli, ["export", "diagnose", *map(str, arguments[:-2]), "--write", str(keep)])
    assert diagnosed.exit_code == 0, diagnosed.output
    assert json.loads(keep.read_text())["kept"] == ["lift", "lower"]
    assert run(*arguments, "--keep", keep).exit_code == 0
    graph = onnx.load(folder / find_engine(open_bundle(folder), "fusion", "tensorrt-rtx").source).graph
    (lifted,) = (node for node in graph.node if node.name == "lift")
    assert list(lifted.input) == ["text", "offset"], "these are the tensors in fp32"
    assert run(*arguments, "--accept-quality-loss").exit_code == 0


def test_an_interrupted_run_goes_on_where_it_stopped(
    folder: Path, checks: CheckSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / MANIFEST).read_bytes()
    settings = replace(FP32, compute_capabilities=("89",))
    wrong = (ShapeRange("pixel_values", (1, 1, 64, 65), (1, 1, 64, 65), (1, 1, 64, 65)),)

    def shapes(bundle: object, part: str) -> tuple[ShapeRange, ...]:
        return wrong if part == "expression" else shape_ranges(open_bundle(folder, check_hashes=False), part)

    with monkeypatch.context() as patch:
        patch.setattr(engines_module, "shape_ranges", shapes)
        with pytest.raises(ProviderError, match="pixel_values"):
            add_engines(folder, settings, checks)
    assert (folder / MANIFEST).read_bytes() == before
    left = list((folder.parent / ".bundle.engines" / "built").glob("*.engine"))
    assert len(left) == 1
    assert add_engines(folder, settings, checks).built == 1
    assert not (folder.parent / ".bundle.engines").exists()


# What is built for which GPU


def test_compute_capabilities_that_do_not_go_are_refused(library: Library) -> None:
    settings = EngineSettings("tensorrt-rtx", "fp16")
    assert choose_capabilities(library, None, settings) == tuple(
        one for one in library.compute_capabilities if int(one) >= 80
    )
    assert choose_capabilities(library, None, replace(settings, compute_capabilities=("89", "75", "89"))) == (
        "75",
        "89",
    )
    with pytest.raises(InputError, match="cannot build for compute capability 90") as refused:
        choose_capabilities(library, None, replace(settings, compute_capabilities=("90",)))
    assert "--engine tensorrt" in refused.value.hint
    with pytest.raises(InputError, match="multiplies in fp16 alone on compute capability 75"):
        choose_capabilities(library, None, replace(settings, precision="int8", compute_capabilities=("75",)))
    full = Library("tensorrt", None, "10.13.2")
    gpu = Gpu("H100", "90", 80 << 30)
    assert choose_capabilities(full, gpu, settings) == ("90",)
    with pytest.raises(InputError, match="builds for the GPU at hand, 90, not for 86"):
        choose_capabilities(full, gpu, replace(settings, compute_capabilities=("86",)))


def test_what_this_machine_cannot_do_is_refused_before_the_work(folder: Path) -> None:
    for arguments, kind, words in (
        (["--part", "mouth"], InputError, "no part mouth"),
        (["--sm", "90"], InputError, "compute capability 90"),
        (["--part", "audio", "--precision", "int8"], VerificationError, "nothing in the conversations reaches"),
    ):
        refused = run("--bundle", folder, *arguments)
        assert isinstance(refused.exception, kind)
        assert words in str(refused.exception)
    if not find_tensorrt():
        refused = run("--bundle", folder, "--engine", "tensorrt")
        assert isinstance(refused.exception, MissingExtraError)
        assert refused.exception.hint == "pip install 'mechm[tensorrt]'"


def find_tensorrt() -> bool:
    try:
        load_library("tensorrt")
    except MissingExtraError:
        return False
    return True


# Shapes and memory


def test_shapes_hold_what_the_runtime_feeds(made: Path) -> None:
    bundle = open_bundle(made, check_hashes=False)
    for part in bundle.parts.values():
        if part.name in (LLAMA, PROJECTOR):
            continue
        ranges = {one.tensor: one for one in shape_ranges(bundle, part.name)}
        assert set(ranges) == {tensor.name for tensor in part.inputs}
    text = {one.tensor: one for one in shape_ranges(bundle, "text")}["input_ids"]
    assert text.holds((8, bundle.text.max_tokens))
    assert text.holds((1, 1))
    fusion = {one.tensor: one for one in shape_ranges(bundle, "fusion")}["text_mask"]
    assert fusion.holds((8, bundle.fusion.window))
    assert not fusion.holds((1, bundle.fusion.window + 1))


def test_memory_grows_with_the_shapes_and_halves_with_the_weights(made: Path, tmp_path: Path) -> None:
    from mechm_export.precision.lower import lower_graph

    bundle = open_bundle(made, check_hashes=False)
    shapes = shape_ranges(bundle, "fusion")
    path = bundle.path("onnx/fusion.fp32.onnx")
    full = estimate_memory(path, shapes)
    initializers = onnx.load(path).graph.initializer
    assert full.weights == sum(len(i.raw_data) for i in initializers)
    small = [replace(one, largest=one.usual) for one in shapes]
    assert estimate_memory(path, small).activations < full.activations / 4
    lower_graph(path, tmp_path / "half.onnx", "fp16", [])
    half = estimate_memory(tmp_path / "half.onnx", shapes)
    assert half.weights < 0.55 * full.weights
    assert half.activations < full.activations


# At run time


def test_an_engine_of_elsewhere_is_built_again_once(made: Path, library: Library, tmp_path: Path) -> None:
    bundle = open_bundle(made, check_hashes=False)
    engine = find_engine(bundle, "expression", "tensorrt-rtx")
    store = EngineStore(tmp_path / "store")
    assert engine_for(library, bundle, engine, "86", store) == bundle.path(engine.file)
    assert not store.folder.exists()
    older = replace(engine, key=replace(engine.key, version="1.0.0"))
    built = engine_for(library, bundle, older, "86", store)
    assert built.parent == store.folder
    written = built.stat().st_mtime_ns
    assert engine_for(library, bundle, older, "86", store) == built
    assert built.stat().st_mtime_ns == written
    built.write_bytes(b"damaged")
    assert engine_for(library, bundle, older, "86", store).read_bytes()[:4] == b"vtrt"
    other = engine_for(library, bundle, engine, "89", store)
    key: EngineKey = replace(engine.key, compute_capabilities=("89",))
    assert other == store.path(key)
    with pytest.raises(ProviderError, match="and this GPU has 90") as refused:
        engine_for(library, bundle, engine, "90", store)
    assert "tensorrt" in refused.value.hint


def test_the_pipeline_says_why_it_cannot_run_engines(made: Path) -> None:
    bundle = open_bundle(made, check_hashes=False)
    rtx = EngineConfig(engine="tensorrt-rtx")
    with pytest.raises(BundleError, match="no tensorrt engine of its fusion part") as refused:
        Pipeline(bundle, engine=EngineConfig(engine="tensorrt"))
    assert f"mechm export engines --bundle {made} --engine tensorrt --part fusion" in refused.value.hint
    with pytest.raises(InputError, match="has the precision it was built in"):
        Pipeline(bundle, engine=rtx, precisions={"fusion": "fp32"})
    try:
        visible_gpu("tensorrt-rtx")
    except ProviderError:
        with pytest.raises(ProviderError, match="needs an NVIDIA GPU"):
            Pipeline(bundle, engine=rtx)


def test_a_bundle_split_to_int8_has_nothing_to_build_from(tiny_bundle: Path, tmp_path: Path) -> None:
    split_bundle(tiny_bundle, tmp_path / "split", Deployment(precision="int8"))
    done = run("--bundle", tmp_path / "split", "--part", "text")
    assert isinstance(done.exception, BundleError)
    assert "no fp32 file of its text part" in str(done.exception)
    assert "the bundle that it was split from" in done.exception.hint
