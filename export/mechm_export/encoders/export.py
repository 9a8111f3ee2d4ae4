"""Write an encoder's folder: one checked graph per precision, and a report beside them.

Everything is made in a folder beside the target and renamed when it is whole. A precision that fails its check is left
out unless its loss is accepted, which the report then says.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from mechm_export.encoders.architectures import Modality, Task
from mechm_export.encoders.axes import FUSED_OPSET, PRECISIONS, Axes, Precision, check_bf16, check_opset, opset_for
from mechm_export.encoders.check import check_encoder
from mechm_export.encoders.heads import label_metadata, labels_in, read_metadata, write_metadata
from mechm_export.encoders.incoming import graph_part, read_graph
from mechm_export.encoders.lookup import classification_task
from mechm_export.encoders.part import load_part
from mechm_export.encoders.report import FILES, REPORT, EncoderReport, WrittenGraph
from mechm_export.encoders.sentences import LONGEST_TOKENS, sentence_feeds
from mechm_export.encoders.source import CARRIED, EncoderSource, find_source, first_line
from mechm_export.graphs.files import data_file, save_graph
from mechm_export.graphs.part import ExportPart, Feeds
from mechm_export.graphs.trace import GraphKind, export_graph
from mechm_export.precision.dynamic_int8 import quantize_int8
from mechm_export.precision.lower import lower_graph
from mechm_runtime.bundle.open import file_sha256
from mechm_runtime.errors import BundleError, MechmError, VerificationError
from mechm_runtime.system.atomic_write import new_folder
from mechm_runtime.system.progress import Progress, no_progress
from mechm_runtime.types import Conversation


def export_encoder(
    model: str,
    out: Path,
    *,
    task: Task | None = None,
    modality: Modality | None = None,
    revision: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    axes: Axes | None = None,
    opset: int | None = None,
    conversations: Sequence[Conversation] = (),
    accept_quality_loss: bool = False,
    on_progress: Progress | None = None,
) -> EncoderReport:
    """Export an encoder of the Hugging Face layout, see `find_source` for `model`, `task`, `modality` and `revision`.

    axes: which are dynamic; None for all that can be. opset: None for the lowest that serves each precision.
    conversations: what int8 of a text encoder is calibrated and judged on.
    Raises: InputError: axes, opset or task that cannot be. WeightsError: weights that do not load. BundleError: `out`
        exists or cannot be written. VerificationError: a precision differs too much, and no other was asked for.
    """
    check_out(out)
    check_opset(opset, precisions)
    report = on_progress or no_progress
    report("loading weights", 0, len(precisions))
    source = find_source(model, task=task, modality=modality, revision=revision)
    loaded = load_part(source, axes or Axes())
    part, metadata = loaded.part, label_metadata(source.task, loaded.labels)
    n_bytes = sum(p.numel() * p.element_size() for p in part.module.parameters())
    real = real_inputs(source, part, conversations) if "int8" in precisions else []
    with _folder(out, n_bytes * (1 + len(precisions))) as folder:

        def base(path: Path, kind: GraphKind, wanted: int) -> None:
            _export(source, part, path, kind, wanted)
            _name_axes(part, path)

        opsets = {precision: opset_for(precision, opset) for precision in PRECISIONS}
        graphs, refused = _write(part, folder, precisions, opsets, base, real, metadata, accept_quality_loss, report)
        _carry(source.folder, folder)
        keeps = classification_task(source.config, loaded.left_out) if loaded.left_out else ""
        name, task = source.architecture.name, source.task
        keeps = "" if keeps == task else keeps
        done = EncoderReport(source.name, name, task, part, graphs, refused, loaded.labels, loaded.left_out, keeps)
        (folder / REPORT).write_text(done.to_json(), encoding="utf-8")
    return done


def convert_graph(
    folder: Path,
    out: Path,
    *,
    precisions: Sequence[Precision] = ("fp32",),
    axes: Axes | None = None,
    conversations: Sequence[Conversation] = (),
    accept_quality_loss: bool = False,
    on_progress: Progress | None = None,
) -> EncoderReport:
    """Check a graph that others exported and write it, and its lower precisions, as `export_encoder` does.

    axes: sizes to try its dynamic axes at, for graphs that say they take any and do not.
    Raises: as `export_encoder`; WeightsError: also for a graph that is unsafe to load.
    """
    check_out(out)
    report = on_progress or no_progress
    report("reading the graph", 0, len(precisions))
    graph = read_graph(folder)
    check_bf16(graph.opset, precisions)
    part, metadata = graph_part(graph, axes or Axes()), read_metadata(graph.path)
    real: list[Feeds] = []
    if "int8" in precisions and part.int8.smoothing:
        real = sentence_feeds(folder, part, graph.vocab_size, LONGEST_TOKENS, conversations)
    n_bytes = sum(path.stat().st_size for path in graph.files)
    with _folder(out, n_bytes * (1 + len(precisions))) as staging:

        def base(path: Path, _kind: GraphKind, _wanted: int) -> None:
            save_graph(onnx.load(graph.path), path)

        opsets = dict.fromkeys(PRECISIONS, graph.opset)
        graphs, refused = _write(part, staging, precisions, opsets, base, real, metadata, accept_quality_loss, report)
        _carry(folder, staging)
        task, labels = metadata.get("task", "as exported"), labels_in(metadata)
        done = EncoderReport(graph.path.name, "as exported", task, part, graphs, refused, labels)
        (staging / REPORT).write_text(done.to_json(), encoding="utf-8")
    return done


def check_out(out: Path) -> None:
    """Raises: BundleError: it exists."""
    if out.is_symlink() or out.exists():
        raise BundleError(f"{out} exists", hint="choose another --out, or remove it first")


def _write(
    part: ExportPart,
    folder: Path,
    precisions: Sequence[Precision],
    opsets: Mapping[Precision, int],
    base: Callable[[Path, GraphKind, int], None],
    real: Sequence[Feeds],
    metadata: Mapping[str, str],
    accept_quality_loss: bool,
    report: Progress,
) -> tuple[tuple[WrittenGraph, ...], dict[Precision, str]]:
    """Make and check every precision's graph; fp32 is the first, whether it is kept or not.

    base: writes the float32 graph of a kind and opset. real: inputs, half of which int8 is calibrated on.
    metadata: entries of every written graph.
    Raises: VerificationError: fp32 is not good enough, or nothing that was asked for is.
    """
    calibration, judged = real[::2], real[1::2]
    sources: dict[tuple[GraphKind, int], Path] = {}
    graphs: list[WrittenGraph] = []
    refused: dict[Precision, str] = {}
    asked = [precision for precision in PRECISIONS if precision in precisions or precision == "fp32"]
    for number, precision in enumerate(asked):
        path = folder / FILES[precision]
        report(f"exporting {precision}", number, len(asked))
        start = time.perf_counter()
        fused = precision == "int8" and part.n_heads > 0 and opsets[precision] >= FUSED_OPSET
        kind: GraphKind = "fused" if fused else "portable"
        source = sources.setdefault(
            (kind, opsets[precision]), path if precision == "fp32" else folder / f"{kind}{opsets[precision]}.onnx"
        )
        if not source.exists():
            base(source, kind, opsets[precision])
        if precision in ("fp16", "bf16"):
            lower_graph(source, path, precision)
        elif precision == "int8":
            quantize_int8(source, path, part.int8, calibration)
        export_s = time.perf_counter() - start
        report(f"comparing {precision} with torch", number, len(asked))
        check = check_encoder(part, path, precision, judged)
        if check.problem and not accept_quality_loss:
            if precision == "fp32":
                leaks = check.problem.startswith("padded")
                hint = "--axes batch=1,time exports it for one input at a time, without padding" if leaks else ""
                raise VerificationError(f"fp32: {check.problem}", hint=hint)
            refused[precision] = check.problem
            _remove(path)
        elif precision in precisions:
            write_metadata(path, metadata)
            files = {one.name: (one.stat().st_size, file_sha256(one)) for one in _files(path)}
            accepted = bool(check.problem)
            graphs.append(WrittenGraph(precision, opsets[precision], files, export_s, check, accepted))
    kept = {folder / FILES[graph.precision] for graph in graphs}
    for source in sources.values():
        if source not in kept:
            _remove(source)
    if not graphs:
        problems = "; ".join(f"{precision}: {problem}" for precision, problem in refused.items())
        raise VerificationError(problems, hint="--accept-quality-loss writes it all the same")
    return tuple(graphs), refused


def real_inputs(source: EncoderSource, part: ExportPart, conversations: Sequence[Conversation]) -> list[Feeds]:
    """Sentences for a text encoder; what is seen or heard is quantized without calibration."""
    if source.architecture.modality != "text":
        return []
    config = source.config.get("text_config", source.config)
    longest = config.get("max_position_embeddings", LONGEST_TOKENS)
    limits = part.integer_limits or {}
    return sentence_feeds(source.folder, part, int(limits["input_ids"]), longest, conversations)


def _export(source: EncoderSource, part: ExportPart, path: Path, kind: GraphKind, opset: int) -> None:
    """Trace a part. Raises: VerificationError: torch's exporter does not take its architecture."""
    try:
        export_graph(part, path, kind, opset)
    except MechmError:
        raise
    except Exception as error:  # torch.export's errors share no base
        if source.architecture.family != "transformers":
            raise
        raise VerificationError(
            f"{source.name}: torch.onnx.export does not take {source.architecture.loader}: {first_line(error)}",
            hint="--axes batch=1,time=N exports one size, which some architectures need",
        ) from error


def _name_axes(part: ExportPart, path: Path) -> None:
    """Give the outputs' dynamic axes their names, in place of the formulas that the exporter derived."""
    model = onnx.load(path, load_external_data=False)
    described = {tensor.name: tensor.axes for tensor in part.outputs}
    for output in model.graph.output:
        for dim, axis in zip(output.type.tensor_type.shape.dim, described[output.name], strict=True):
            if isinstance(axis, str):
                dim.dim_param = axis
    onnx.save_model(model, path)


def _files(path: Path) -> list[Path]:
    return [one for one in (path, data_file(path)) if one.exists()]


def _remove(path: Path) -> None:
    for file in _files(path):
        file.unlink()


def _carry(source: Path, folder: Path) -> None:
    """Copy what whoever runs the graphs needs beside them."""
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


@contextlib.contextmanager
def _folder(out: Path, n_bytes: int) -> Iterator[Path]:
    """A folder that becomes `out` when the block succeeds, and nothing when it does not.

    n_bytes: what will be written at most. Raises: BundleError: there is no space, or it cannot be written.
    """
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < n_bytes:
            raise BundleError(
                f"the graphs take up to {n_bytes / 1e9:.1f} GB, and {out.parent} has {free / 1e9:.1f} GB free",
                hint="free some space, choose another --out, or ask for fewer precisions",
            )
        with new_folder(out) as folder:
            yield folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(f"{out} cannot be written: {reason}", hint="give another --out") from error
