"""How fast, how large and how alike is an exported encoder, against torch eager and torch.compile in one process?

    python benchmarks/encoders.py [--encoder NAME ...] [--bundle DIR] [--optimum .venv-optimum/bin/python] [--quick]

A row is a graph: of onnxruntime in the precisions of `mechm export encoder`; of OpenVINO in bfloat16, with int8 weights
and activations quantized as they come, and with scales from real inputs (static); and, with --optimum, of optimum-cli
in fp32 and int8, made in an environment of its own (`make optimum`), run by the same onnxruntime in this process.

mpnet, whisper-tiny and dinov2-small have real weights (`mechm weights fetch --preset small`); clip-base, siglip-base,
hubert-base, wavlm-base and eva-clip-g random ones at their real shapes, which makes cosines optimistic: only the former
say what a precision costs. Graphs are compared with torch on real inputs where there are any (sentences for mpnet; what
the bundle --bundle makes of the shipped recording for the other two), on random ones else; calibrated on other ones.

A latency is the median of --repeats calls, the engines taking turns; a ratio is torch eager's over the graph's, at the
same input. Where a rival's graph takes one size alone, as optimum's Whisper does 30 s, its input is padded to that.
torch.compile needs a C++ compiler, and compiles for every size anew (--no-compile leaves it out). eva-clip-g has 1 B
parameters and is measured only where it is named: 8 GB of disk, and in fp32 8.5 GB of memory at its peak with
--no-latency. --quick takes those with real weights, batch 1, one thread and 3 repeats.

Limits to expect, AVX512-VNNI: int8 3.5 times torch eager.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import transformers as tf
from optimum_cli import OptimumError, export_rivals

from mechm.quiet import quiet_transformers
from mechm.weights import weights_path
from mechm_export.calibration import recorded_inputs
from mechm_export.data import check_conversations, check_recordings
from mechm_export.encoders.axes import PRECISIONS, parse_axes
from mechm_export.encoders.export import FILES, EncoderReport, export_encoder, real_inputs
from mechm_export.encoders.part import MASK
from mechm_export.encoders.source import EncoderSource, find_source
from mechm_export.gate.comparison import TorchRunner
from mechm_export.part import ExportPart, Feeds
from mechm_export.precision.quantize import quantize_weights
from mechm_export.precision.static_int8 import quantize_static_int8
from mechm_runtime.bundle import Bundle, open_bundle
from mechm_runtime.engine import Engine, EngineConfig, GraphRunner, load_engine
from mechm_runtime.errors import MechmError

EVA: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "initializer_range": 0.02,
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """One encoder to measure.

    part: of the preset `small`, for real weights; model: makes it with random ones. sizes: of its dynamic axes other
    than batch, where it is timed; those behind the first at batch 1 alone.
    """

    part: str = ""
    model: Callable[[], Any] | None = None
    axes: str | None = None
    modality: Any = None
    sizes: tuple[Mapping[str, int], ...] = ({},)


ENCODERS = {
    "mpnet": Encoder("text", sizes=({"tokens": 64},)),
    "whisper-tiny": Encoder("audio", sizes=({"frames": 500}, {"frames": 3000})),
    "dinov2-small": Encoder("scene", axes="batch,height=224"),
    "clip-base": Encoder(
        model=lambda: tf.CLIPVisionModelWithProjection(tf.CLIPVisionConfig(patch_size=16)), modality="vision"
    ),
    "siglip-base": Encoder(model=lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig()), modality="vision"),
    "hubert-base": Encoder(model=lambda: tf.HubertModel(tf.HubertConfig()), sizes=({"samples": 80_000},)),
    "wavlm-base": Encoder(model=lambda: tf.WavLMModel(tf.WavLMConfig()), sizes=({"samples": 80_000},)),
    "eva-clip-g": Encoder(model=lambda: tf.Blip2VisionModel(tf.Blip2VisionConfig(**EVA))),
}

REAL = tuple(name for name, encoder in ENCODERS.items() if encoder.part)
TARGETS = ("onnxruntime", "openvino")
EngineFor = Callable[[int], GraphRunner]
"""Makes what runs a graph, with a number of threads."""


@dataclass(frozen=True, slots=True)
class Row:
    """One graph, at one batch size and number of threads where it is timed.

    export_s: of making it, without comparing. peak_gb: the most memory this process had meanwhile, or the command for
    optimum's; 0 where the system does not tell. cosine: the lowest of an input's vector with torch's. Latencies in ms,
    0 where nothing was timed.
    """

    encoder: str
    weights: str
    target: str
    precision: str
    megabytes: float
    export_s: float
    peak_gb: float
    largest_difference: float
    cosine: float
    size: str = ""
    batch: int = 0
    threads: int = 0
    graph_ms: float = 0.0
    eager_ms: float = 0.0
    compiled_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A graph to measure. fixed: sizes that it takes alone, by axis."""

    row: Row
    engine: EngineFor
    fixed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder in torch and in a folder. calibration, judged: real inputs; random ones are judged where none are."""

    name: str
    source: EncoderSource
    report: EncoderReport
    peaks: Mapping[str, float]
    out: Path
    calibration: Sequence[Feeds]
    judged: Sequence[Feeds]

    @property
    def part(self) -> ExportPart:
        """Names, axes and the module."""
        return self.report.part


def main() -> None:
    """Measure and print a table and one JSON line."""
    given = _arguments()
    bundle = None if given.bundle is None else open_bundle(given.bundle, check_hashes=False)
    rows: list[Row] = []
    notes: list[str] = []
    for name in given.encoder:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: exporting", file=sys.stderr)
            subject = _export(name, Path(folder), given.precision, bundle)
            notes += [f"{name}: {p} was left out: {reason}" for p, reason in subject.report.refused.items()]
            candidates = [*_onnxruntime(subject)]
            if "openvino" in given.target:
                print(f"{name}: for OpenVINO", file=sys.stderr)
                candidates += _openvino(subject, notes)
            if given.optimum is not None:
                print(f"{name}: optimum-cli", file=sys.stderr)
                candidates += _optimum(subject, given.optimum, Path(folder), notes)
            rows += [c.row for c in candidates] if given.no_latency else _timed(subject, candidates, given)
    _print(rows, notes, bundle)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=list(ENCODERS), nargs="+")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "int8"], help="of onnxruntime")
    parser.add_argument("--target", choices=TARGETS, nargs="+", help="default: those that are installed")
    parser.add_argument("--bundle", type=Path, help="of preset small: real inputs for voice and picture, and its F1")
    parser.add_argument("--optimum", type=Path, metavar="PYTHON", help="of an environment with optimum-onnx")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.encoder = given.encoder or (REAL if given.quick else [*list(ENCODERS)[:-1]])
    given.batch = given.batch or ([1] if given.quick else [1, 8])
    given.threads = given.threads or ([1] if given.quick else [1, 2])
    given.repeats = given.repeats or (3 if given.quick else 10)
    given.target = given.target or [name for name in TARGETS if find_spec(name) is not None]
    if given.optimum is not None and not given.optimum.exists():
        parser.error(f"there is no {given.optimum}: make optimum")
    return given


# What is measured


def _export(name: str, folder: Path, precisions: Sequence[Any], bundle: Bundle | None) -> Subject:
    encoder = ENCODERS[name]
    if encoder.model is None:
        model = weights_path(encoder.part, "small")
    else:
        model = folder / name
        torch.manual_seed(0)
        with quiet_transformers():
            encoder.model().save_pretrained(model)
    conversations = [one.conversation for one in check_conversations()]
    out, peak = folder / "out", PeakMemory()
    report = export_encoder(
        str(model),
        out,
        modality=encoder.modality,
        precisions=list(dict.fromkeys(["fp32", *precisions])),
        axes=parse_axes(encoder.axes),
        conversations=conversations,
        on_progress=peak.on_progress,
    )
    source = find_source(str(model), modality=encoder.modality)
    real = real_inputs(source, report.part, conversations) or _recorded(encoder.part, bundle)
    return Subject(name, source, report, peak.gb, out, real[::2], real[1::2])


def _recorded(part: str, bundle: Bundle | None) -> list[Feeds]:
    """What the bundle's voice and picture parts are given of the shipped recording, as an encoder's inputs."""
    if bundle is None or not part:
        return []
    found = recorded_inputs(bundle, check_recordings(), [part])[part]
    if part != "audio":
        return found
    return [{"input_features": f["mel"], MASK: np.ones((1, f["mel"].shape[2]), np.int64)} for f in found]


def _onnxruntime(subject: Subject) -> Iterator[Candidate]:
    for graph in subject.report.graphs:
        path = subject.out / FILES[graph.precision]
        seconds, gb = graph.export_s, subject.peaks.get(graph.precision, 0.0)
        yield _candidate(subject, "onnxruntime", graph.precision, path, seconds, gb, _loader(path, "onnxruntime"))


def _openvino(subject: Subject, notes: list[str]) -> Iterator[Candidate]:
    fp32, part = subject.out / FILES["fp32"], subject.part
    if not fp32.exists() or (fp32.with_name(f"{fp32.name}.data")).exists():
        notes.append(f"{subject.name}: OpenVINO's int8 is made of a graph in one file")
        return
    seconds, gb = next((g.export_s, subject.peaks.get("fp32", 0.0)) for g in subject.report.graphs)
    yield _candidate(subject, "openvino", "bf16", fp32, seconds, gb, lambda threads: OpenVinoBf16(fp32, threads))
    makers: dict[str, Callable[[Path], None]] = {
        "int8": lambda path: quantize_weights(fp32, path, replace(part.int8, tokens=False), subject.calibration)
    }
    if subject.calibration:
        makers["static"] = lambda path: quantize_static_int8(fp32, path, subject.calibration)
    else:
        notes.append(f"{subject.name}: no static int8 without real inputs")
    for precision, make in makers.items():
        path, peak = subject.out / f"openvino.{precision}.onnx", PeakMemory()
        peak.reset()
        start = time.perf_counter()
        make(path)
        made_s = time.perf_counter() - start
        engine = _loader(path, "openvino")
        yield _candidate(subject, "openvino", precision, path, seconds + made_s, max(gb, peak.read()), engine)


def _optimum(subject: Subject, python: Path, folder: Path, notes: list[str]) -> Iterator[Candidate]:
    source, part = subject.source, subject.part
    exported_s = 0.0
    try:
        for graph in export_rivals(python, source.folder, str(source.config["model_type"]), folder / "optimum"):
            exported_s += graph.export_s
            inputs = onnx.load(graph.path, load_external_data=False).graph.input
            dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in inputs}
            named = [(a, n) for t in part.inputs for a, n in zip(t.axes, dims.get(t.name, ()), strict=False)]
            fixed = {axis: size for axis, size in named if isinstance(axis, str) and size}

            def engine(threads: int, path: Path = graph.path) -> GraphRunner:
                return Pooled(Engine(path, EngineConfig(n_threads=threads)), part, source.architecture.modality)

            gb = graph.peak_gb
            try:
                yield _candidate(subject, "optimum", graph.precision, graph.path, exported_s, gb, engine, fixed)
            except MechmError as error:
                notes.append(f"{subject.name}: optimum's {graph.precision} does not run: {error}")
    except OptimumError as error:
        notes.append(f"{subject.name}: optimum-cli: {error}")


def _loader(path: Path, engine: Any) -> EngineFor:
    return lambda threads: load_engine(path, EngineConfig(n_threads=threads, engine=engine))


class OpenVinoBf16:
    """An fp32 graph, computed in bfloat16 where the processor does that."""

    def __init__(self, path: Path, n_threads: int) -> None:
        from openvino import Core

        config = {"INFERENCE_NUM_THREADS": n_threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
        model = Core().read_model(path)
        self.names = [[v.get_any_name() for v in values] for values in (model.inputs, model.outputs)]
        self.request = Core().compile_model(model, "CPU", config | {"ENABLE_CPU_PINNING": False}).create_infer_request()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""
        found = self.request.infer({name: inputs[name] for name in self.names[0]}, share_inputs=True)
        return {name: np.array(found[number]) for number, name in enumerate(self.names[1])}


@dataclass(frozen=True, slots=True)
class Pooled:
    """A graph that gives states, made to give the part's vector: the mean of the states, or the first of an image's."""

    engine: Engine
    part: ExportPart
    modality: str

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""
        answers = self.engine.run(inputs)
        name = self.part.outputs[0].name
        if found := [answers[one] for one in (name, "pooler_output") if one in answers and self.modality == "vision"]:
            return {name: found[0]}
        states = next(values for values in answers.values() if values.ndim == 3)
        if self.modality == "vision":
            return {name: states[:, 0]}
        weight = np.ones(states.shape[:2]) if self.modality == "audio" else inputs[MASK]
        return {name: (states * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)}


def _candidate(
    subject: Subject,
    target: str,
    precision: str,
    path: Path,
    export_s: float,
    peak_gb: float,
    engine: EngineFor,
    fixed: Mapping[str, int] | None = None,
) -> Candidate:
    """Compare a graph with torch on what is judged.

    Raises: MechmError: it does not load.
    """
    runner, part, name = engine(1), subject.part, subject.part.outputs[0].name
    random = np.random.default_rng(0)
    judged = subject.judged or [part.trial_inputs(sizes, random) for sizes in part.trial_sizes]
    largest, cosine = 0.0, 1.0
    for feeds in judged:
        padded = _padded(part, feeds, fixed or {})
        expected, found = (np.asarray(one.run(padded)[name], np.float32) for one in (TorchRunner(part), runner))
        dots = np.einsum("bd,bd->b", expected, found)
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        largest = max(largest, float(np.abs(expected - found).max()))
        cosine = min(cosine, float((dots / lengths).min()))
    n_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    row = Row(
        subject.name,
        "real" if ENCODERS[subject.name].part else "random",
        target,
        precision,
        round(n_bytes / 1e6, 1),
        round(export_s, 1),
        round(peak_gb, 2),
        float(f"{largest:.1e}"),
        round(cosine, 5),
    )
    return Candidate(row, engine, fixed or {})


def _padded(part: ExportPart, feeds: Feeds, fixed: Mapping[str, int]) -> Feeds:
    """Inputs at the sizes that a graph takes alone: zeros behind the end, which count as heard."""
    padded = dict(feeds)
    for tensor in part.inputs:
        array = padded[tensor.name]
        missing = [fixed.get(str(axis), n) - n for axis, n in zip(tensor.axes, array.shape, strict=True)]
        value = 1 if tensor.name == MASK else 0
        padded[tensor.name] = np.pad(array, [(0, max(0, n)) for n in missing], constant_values=value)
    return padded


class PeakMemory:
    """The most memory that this process has had since a reset, where Linux tells."""

    def __init__(self) -> None:
        self.gb: dict[str, float] = {}

    def on_progress(self, doing: str, _done: int, _total: int) -> None:
        """What `export_encoder` reports: a precision's memory is that of making it, without comparing."""
        what, _, precision = doing.partition(" ")
        if what == "exporting":
            self.reset()
        elif what == "comparing":
            self.gb[precision.removesuffix(" with torch")] = self.read()

    def reset(self) -> None:
        """Begin anew."""
        if (file := Path("/proc/self/clear_refs")).exists():
            file.write_text("5")

    def read(self) -> float:
        """GB, 0 where the system does not tell."""
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


# How fast


def _timed(subject: Subject, candidates: Sequence[Candidate], given: argparse.Namespace) -> list[Row]:
    module = subject.part.module
    # As fast as torch is by itself: the export's own attention is written out.
    for inner in module.modules():
        if (config := getattr(inner, "config", None)) is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = "sdpa" if getattr(inner, "_supports_sdpa", True) else "eager"
    compiles = not given.no_compile and (shutil.which("g++") or shutil.which("clang++"))
    rows: list[Row] = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        engines = [candidate.engine(threads) for candidate in candidates]
        for number, sizes in enumerate(ENCODERS[subject.name].sizes):
            for batch in given.batch if number == 0 else [1]:
                size = " ".join(f"{axis}={n}" for axis, n in sizes.items())
                print(f"{subject.name}: timing {size} batch={batch} threads={threads}", file=sys.stderr)
                feeds = subject.part.trial_inputs({"batch": batch, **sizes}, np.random.default_rng(0))
                if MASK in feeds:  # all of the same length, so that nobody gains by leaving padding out
                    feeds[MASK] = np.ones_like(feeds[MASK])
                tensors = [torch.from_numpy(feeds[tensor.name]) for tensor in subject.part.inputs]
                calls: dict[Any, Callable[[], object]] = {"eager": _torch_call(module, tensors)}
                if compiles:
                    torch._dynamo.reset()  # else the second size would get kernels for any size
                    calls["compiled"] = _torch_call(torch.compile(module, dynamic=False), tensors)
                for index, candidate in enumerate(candidates):
                    calls[index] = _graph_call(engines[index], _padded(subject.part, feeds, candidate.fixed))
                ms = _medians(calls, given.repeats)
                for index, candidate in enumerate(candidates):
                    rows.append(
                        replace(
                            candidate.row,
                            size=size,
                            batch=batch,
                            threads=threads,
                            graph_ms=ms[index],
                            eager_ms=ms["eager"],
                            compiled_ms=ms.get("compiled", 0.0),
                        )
                    )
    return rows


def _torch_call(module: Any, tensors: list[torch.Tensor]) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return module(*tensors)

    return call


def _graph_call(engine: GraphRunner, feeds: Feeds) -> Callable[[], object]:
    return lambda: engine.run(feeds)


def _medians(calls: Mapping[Any, Callable[[], object]], repeats: int) -> dict[Any, float]:
    """Median milliseconds a call; the calls take turns, so that what else the machine does meets all of them."""
    taken: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for call in calls.values():
            call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def _print(rows: Sequence[Row], notes: Sequence[str], bundle: Bundle | None) -> None:
    versions = [f"{name} {version(name)}" for name in ("torch", *TARGETS) if find_spec(name) is not None]
    print(f"{platform.processor() or platform.machine()}, {', '.join(versions)}")
    print(
        f"{'encoder':14}{'weights':>8}{'target':>12}{'precision':>10}{'MB':>8}{'export s':>9}{'peak GB':>8}"
        f"{'difference':>11}{'cosine':>9}{'size':>16}{'batch':>6}{'threads':>8}{'ms':>9}{'to eager':>9}"
        f"{'to compiled':>12}"
    )
    for row in rows:
        compiled = f"{row.compiled_ms / row.graph_ms:12.2f}" if row.compiled_ms else f"{'-':>12}"
        timed = f"{row.graph_ms:9.1f}{row.eager_ms / row.graph_ms:9.2f}{compiled}" if row.graph_ms else ""
        print(
            f"{row.encoder:14}{row.weights:>8}{row.target:>12}{row.precision:>10}{row.megabytes:8.1f}"
            f"{row.export_s:9.1f}{row.peak_gb:8.2f}{row.largest_difference:11.1e}{row.cosine:9.5f}{row.size:>16}"
            f"{row.batch:6}{row.threads:8}{timed}"
        )
    for note in notes:
        print(note)
    for check in bundle.manifest["checks"]["task"] if bundle is not None else ():
        if check["weighted_f1"] is not None:
            print(
                f"the bundle, {check['precision']} on {check['split']}: weighted F1 {check['weighted_f1']:.4f}, torch "
                f"{check['torch_weighted_f1']:.4f}, {check['labels_kept']:.2%} of {check['n_utterances']} labels kept"
            )
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
