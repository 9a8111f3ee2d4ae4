"""Encoders and their graphs for `encoders.py`: made by whom, how large, how alike. No benchmark by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import transformers as tf
from optimum_cli import OptimumError, export_rivals

from mechm.model.transformers_output import quiet_transformers
from mechm.weights import weights_path
from mechm_export.bundle.calibration import recorded_inputs
from mechm_export.check_data import check_conversations, check_recordings
from mechm_export.encoders.axes import parse_axes
from mechm_export.encoders.export import export_encoder, real_inputs
from mechm_export.encoders.report import FILES, EncoderReport
from mechm_export.encoders.source import EncoderSource, find_source
from mechm_export.encoders.trials import MASK
from mechm_export.gate.comparison import TorchRunner
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.precision.dynamic_int8 import quantize_weights
from mechm_export.precision.static_int8 import quantize_static_int8
from mechm_runtime import Bundle, EngineConfig, MechmError, VerificationError, read_segments
from mechm_runtime.bundle.config import SceneConfig
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.load import load_engine
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.openvino_engine import shared_core
from mechm_runtime.modalities.frame_pixels import scene_pixels

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

SAME = 0.9
"""A cosine in fp32 below which a graph does not give the vector that is asked for, but states, or another pooling."""

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


def export_subject(name: str, folder: Path, precisions: Sequence[Any], bundle: Bundle | None) -> Subject:
    """Export an encoder in fp32 and other precisions, and gather what it is compared on.

    folder: for all that is written. bundle: of preset small, for real voices and pictures.
    """
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
    real = real_inputs(source, report.part, conversations)
    if not real:
        real = _recorded(encoder.part, bundle) if encoder.part else _of_recordings(report.part)
    return Subject(name, source, report, peak.gb, out, real[::2], real[1::2])


def _of_recordings(part: ExportPart) -> list[Feeds]:
    """Voices, normalized, or a frame of each utterance of the shipped recording."""
    given = part.inputs[0]
    feeds: list[Feeds] = []
    for conversation in check_recordings():
        assert conversation.media is not None  # noqa: S101 (they are recordings)
        spans = [(u.start_s or 0.0, u.end_s or 0.0) for u in conversation.utterances]
        for segment in read_segments(conversation.media, spans, n_frames=1).segments:
            if given.name == "pixel_values" and segment.frames is not None:
                pixels = scene_pixels(segment.frames[0], SceneConfig(image_size=int(given.axes[-1])))
                feeds.append({given.name: pixels[None]})
            elif given.name == "input_values" and segment.samples is not None:
                samples = (segment.samples - segment.samples.mean()) / segment.samples.std()
                feeds.append({given.name: samples[None], MASK: np.ones((1, len(samples)), np.int64)})
    return feeds


def _recorded(part: str, bundle: Bundle | None) -> list[Feeds]:
    """Inputs of the bundle's voice and picture parts from the shipped recording, as an encoder's inputs."""
    if bundle is None:
        return []
    found = recorded_inputs(bundle, check_recordings(), [part])[part]
    if part != "audio":
        return found
    return [{"input_features": f["mel"], MASK: np.ones((1, f["mel"].shape[2]), np.int64)} for f in found]


def onnxruntime_graphs(subject: Subject) -> Iterator[Candidate]:
    """The exported graphs, on onnxruntime."""
    for graph in subject.report.graphs:
        path = subject.out / FILES[graph.precision]
        seconds, gb = graph.export_s, subject.peaks.get(graph.precision, 0.0)
        yield _candidate(subject, "onnxruntime", graph.precision, path, seconds, gb, _loader(path, "onnxruntime"))


def openvino_graphs(subject: Subject, notes: list[str]) -> Iterator[Candidate]:
    """bf16 and int8 on OpenVINO; what cannot be made is said in `notes`."""
    fp32, part = subject.out / FILES["fp32"], subject.part
    if not fp32.exists() or (fp32.with_name(f"{fp32.name}.data")).exists():
        notes.append(f"{subject.name}: OpenVINO's int8 is made of a graph in one file")
        return
    seconds, gb = next((g.export_s, subject.peaks.get("fp32", 0.0)) for g in subject.report.graphs)
    yield _candidate(subject, "openvino", "bf16", fp32, seconds, gb, lambda threads: OpenVinoBf16(fp32, threads))
    makers: dict[str, Callable[[Path], None]] = {
        "int8": lambda path: quantize_weights(fp32, path, replace(part.int8, token_scales=False), subject.calibration)
    }
    if subject.calibration:
        makers["static"] = lambda path: quantize_static_int8(fp32, path, subject.calibration, _waveform_layers(subject))
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


def _waveform_layers(subject: Subject) -> list[str]:
    """The convolutions of an encoder that reads samples: one scale for all of a waveform rounds quiet ones to zero."""
    if subject.part.inputs[0].name != "input_values":
        return []
    graph = onnx.load(subject.out / FILES["fp32"], load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type == "Conv"]


def optimum_graphs(subject: Subject, python: Path, folder: Path, notes: list[str]) -> Iterator[Candidate]:
    """Graphs that optimum-cli of another environment makes of the same weights; `notes` gets those that it cannot."""
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
                return Pooled(
                    OnnxRuntimeEngine(path, EngineConfig(n_threads=threads)), part, source.architecture.modality
                )

            gb = graph.peak_gb
            try:
                yield _candidate(subject, "optimum", graph.precision, graph.path, exported_s, gb, engine, fixed)
            except MechmError as error:
                notes.append(f"{subject.name}: optimum's {graph.precision} cannot be compared: {error}")
                if graph.precision == "fp32":
                    break  # what is made of it answers no better
    except OptimumError as error:
        notes.append(f"{subject.name}: optimum-cli: {error}")


def _loader(path: Path, engine: Any) -> EngineFor:
    return lambda threads: load_engine(path, EngineConfig(n_threads=threads, engine=engine))


class OpenVinoBf16:
    """An fp32 graph, computed in bfloat16 where the processor does that."""

    def __init__(self, path: Path, n_threads: int) -> None:
        core = shared_core()
        config = {"INFERENCE_NUM_THREADS": n_threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
        model = core.read_model(path)
        self.names = [[v.get_any_name() for v in values] for values in (model.inputs, model.outputs)]
        self.request = core.compile_model(model, "CPU", config | {"ENABLE_CPU_PINNING": False}).create_infer_request()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Arrays by input name to arrays by output name."""
        found = self.request.infer({name: inputs[name] for name in self.names[0]}, share_inputs=True)
        return {name: np.array(found[number]) for number, name in enumerate(self.names[1])}


@dataclass(frozen=True, slots=True)
class Pooled:
    """A graph that gives states, made to give the part's vector: the mean of the states, or the first of an image's."""

    engine: OnnxRuntimeEngine
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

    Raises: MechmError: it does not load, or answers something else.
    """
    runner, part, name = engine(1), subject.part, subject.part.outputs[0].name
    random = np.random.default_rng(0)
    judged = subject.judged or [part.trial_inputs(sizes, random) for sizes in part.trial_sizes]
    largest, cosine = 0.0, 1.0
    for feeds in judged:
        asked = padded(part, feeds, fixed or {})
        expected, found = (np.asarray(one.run(asked)[name], np.float32) for one in (TorchRunner(part), runner))
        if expected.shape != found.shape:
            raise VerificationError(f"it answers {found.shape[-1]} values, torch {expected.shape[-1]}")
        dots = np.einsum("bd,bd->b", expected, found)
        lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        largest = max(largest, float(np.abs(expected - found).max()))
        cosine = min(cosine, float((dots / lengths).min()))
    if precision == "fp32" and cosine < SAME:
        raise VerificationError(f"it answers something else than torch does, at a cosine of {cosine:.2f}")
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


def padded(part: ExportPart, feeds: Feeds, fixed: Mapping[str, int]) -> Feeds:
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
        """The progress callback of `export_encoder`: a precision's memory is that of making it, without comparing."""
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
