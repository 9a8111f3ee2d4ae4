"""Description of a bundle from its manifest alone. It hashes nothing: `mechm bundle verify` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mechm_runtime.bundle.manifest import ACCEPTED, Bundle, Tensor
from mechm_runtime.bundle.signature import read_signature
from mechm_runtime.bundle.terms import terms_of_use


@dataclass(frozen=True, slots=True)
class Precision:
    """One graph of a part.

    largest_difference, cosine: compared with torch on random inputs, None where the manifest lacks them.
    """

    name: str
    file: str
    size_bytes: int
    is_default: bool
    largest_difference: float | None
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Part:
    """A part's graphs, inputs and outputs."""

    name: str
    precisions: tuple[Precision, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Contents of a bundle; the field names are those of `mechm bundle inspect --json`.

    is_signed: whether there is a signature; `mechm bundle verify --key` checks whose it is.
    split_from: id of the bundle from which this one was split, an empty string for an exported one.
    modalities: those that it has parts for. default_modalities: those that are read by default.
    llama: forms of the Llama in the bundle: `onnx` for a graph, `served` for weights that a server loads.
    terms: what the training data allow, an empty string where they restrict nothing (`mechm_runtime.bundle.terms`).
    scores: checks of the answers, as in the manifest. accepted: graphs that were written although they fail the gate.
    """

    id: str
    preset: str
    schema_version: int
    split_from: str
    is_signed: bool
    size_bytes: int
    modalities: tuple[str, ...]
    default_modalities: tuple[str, ...]
    parts: tuple[Part, ...]
    llama: tuple[str, ...]
    scores: tuple[Mapping[str, Any], ...]
    accepted: tuple[Mapping[str, str], ...]
    licences: Mapping[str, str]
    versions: Mapping[str, str]
    card: Mapping[str, Any]
    terms: str

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dicts and lists."""
        return asdict(self)


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Describe an opened bundle.

    Raises: BundleError: the signature's file is not a signature.
    """
    manifest = bundle.manifest
    sizes = {name: int(facts["size_bytes"]) for name, facts in manifest["files"].items()}
    checks = manifest.get("checks", {})
    values = {(check["part"], check["precision"]): check for check in checks.get("values", ())}
    parts = []
    for part in bundle.parts.values():
        precisions = []
        for precision, file in part.files.items():
            check = values.get((part.name, precision), {})
            precisions.append(
                Precision(
                    precision,
                    file,
                    sizes[file],
                    precision == part.default,
                    check.get("largest_difference"),
                    check.get("cosine"),
                )
            )
        parts.append(Part(part.name, tuple(precisions), part.inputs, part.outputs))
    llama = (("onnx",) if bundle.llama is not None else ()) + (("served",) if bundle.served is not None else ())
    return Inspection(
        id=bundle.id,
        preset=bundle.preset,
        schema_version=int(manifest["schema_version"]),
        split_from=str(manifest.get("split_from", "")),
        is_signed=read_signature(bundle) is not None,
        size_bytes=sum(sizes.values()),
        modalities=bundle.modalities,
        default_modalities=bundle.default_modalities,
        parts=tuple(parts),
        llama=llama,
        scores=tuple(checks.get("task", ())),
        accepted=tuple(checks.get(ACCEPTED, ())),
        licences=manifest.get("licences", {}),
        versions=manifest.get("versions", {}),
        card=manifest.get("card", {}),
        terms=terms_of_use(manifest),
    )
