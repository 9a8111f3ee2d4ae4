"""Writing a bundle as a model repository of NVIDIA's Triton inference server.

Every part is a model of the onnxruntime backend, and `mechm` (`triton_model.py`, Python backend) chains them into an
analysis. A Triton ensemble cannot do this: tokenizing, pooling over utterances and overlapping windows lie between the
graphs, and an ensemble only passes tensors on. `config.pbtxt` allows batching across requests only for parts whose
first axes are all the batch, and only in fp32: int8 quantizes whole tensors, so an answer would depend on the other
requests in the batch.

The repository was not tried on a server; its configurations are checked against Triton's protobuf schema, and `mechm`
against the runtime.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mechm_export.deployment.split import Deployment, split_bundle
from mechm_runtime.bundle.manifest import Bundle, PartFiles, Tensor
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.staging import check_new, staging_folder
from mechm_runtime.errors import BundleError, InputError
from mechm_runtime.system.atomic_write import put_in_place
from mechm_runtime.system.progress import Progress

TYPES = {
    "bool": "TYPE_BOOL",
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
}
"""numpy dtype -> Triton's data type."""
MODEL = Path(__file__).with_name("triton_model.py")
"""The model that analyses. It is copied, not imported, since the backend's own module exists only on a server."""
BATCH = "batch"
MAX_BATCH = 32
"""Most rows in a batch; the pipeline itself sends eight at most."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def write_repository(
    folder: Path,
    out: Path,
    *,
    precision: str | None = None,
    name: str = "mechm",
    n_instances: int = 2,
    on_progress: Progress | None = None,
) -> Bundle:
    """Write a bundle's model repository.

    precision: of every part; None for each part's default. name: of the model that analyses; the names of the parts
    begin with it. n_instances: conversations that are analysed at once.
    Returns: the bundle in the repository.
    Raises: InputError: the name is not valid, or onnxruntime does not run the precision. BundleError: damaged, or `out`
        exists or cannot be written.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a model", hint="letters, digits, _ . and -: --name")
    out = out.absolute()
    check_new(out)
    with staging_folder(out) as staging:
        version = staging / name / "1"
        version.mkdir(parents=True)
        deployment = Deployment(precision=precision)
        bundle = split_bundle(folder, version / "bundle", deployment, on_progress=on_progress)
        shutil.copyfile(MODEL, version / "model.py")
        (staging / name / "config.pbtxt").write_text(pipeline_config(name, bundle.id, n_instances), encoding="utf-8")
        for part in bundle.parts.values():
            model = staging / f"{name}_{part.name}"
            (model / "1").mkdir(parents=True)
            _link(bundle.path(part.files[part.default]), model / "1" / "model.onnx")
            (model / "config.pbtxt").write_text(part_config(f"{name}_{part.name}", part, bundle.id), encoding="utf-8")
        put_in_place(staging, out)
    return open_bundle(out / name / "1" / "bundle", check_hashes=False)


def part_config(name: str, part: PartFiles, bundle_id: str) -> str:
    """`config.pbtxt` of a part in its default precision."""
    batched = all(tensor.axes[:1] == (BATCH,) for tensor in (*part.inputs, *part.outputs))
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {MAX_BATCH if batched else 0}",
            *(_tensor("input", tensor, batched) for tensor in part.inputs),
            *(_tensor("output", tensor, batched) for tensor in part.outputs),
            *(["dynamic_batching { }"] if batched and part.default == "fp32" else []),
            _parameter("bundle", bundle_id),
            "",
        ]
    )


def pipeline_config(name: str, bundle_id: str, n_instances: int) -> str:
    """`config.pbtxt` of the model that analyses."""
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "python"',
            "max_batch_size: 0",
            'input { name: "conversation" data_type: TYPE_STRING dims: [ 1 ] }',
            'output { name: "analysis" data_type: TYPE_STRING dims: [ 1 ] }',
            f"instance_group {{ count: {n_instances} kind: KIND_CPU }}",
            _parameter("bundle", bundle_id),
            "",
        ]
    )


def _tensor(kind: str, tensor: Tensor, batched: bool) -> str:
    if tensor.dtype not in TYPES or not NAME.fullmatch(tensor.name):
        raise BundleError(f"Triton has no tensor {tensor.name[:80]!r} of {tensor.dtype[:80]}")
    axes: Sequence[int | str] = tensor.axes[1:] if batched else tensor.axes
    # A tensor with the batch axis only has no axis left, and Triton requires one.
    reshape = "" if axes else " reshape { shape: [ ] }"
    dims = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in axes or (1,))
    return f'{kind} {{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype]} dims: [ {dims} ]{reshape} }}'


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, since graphs are large; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
