"""Put the Llama into a bundle as a server loads it: merged, in the Hugging Face layout, beside the graph of the edge.

What is asked, the answers' tokens and how the answers are weighed are in the bundle already (`mechm_export.llama`), and
hold for these weights too: they are merged from the adapter that the graph was made from. The old bundle stays valid
until the new manifest is in place.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mechm.llm.combination import ADAPTER_FILE, COMBINATION_FILE
from mechm.llm.merge import DType, MergeReport, Progress, merge_adapter
from mechm.llm.stored_projector import PROJECTOR_FOLDER
from mechm.model.build import DECISION_FILE
from mechm_runtime.bundle import MANIFEST, SERVED, Bundle, ServedLlama, file_sha256, manifest_id, open_bundle
from mechm_runtime.errors import BundleError
from mechm_runtime.types import Conversation

SERVED_FOLDER = f"llm/{SERVED}"

NOT_SERVED = (DECISION_FILE, COMBINATION_FILE, PROJECTOR_FOLDER)
"""What a merged folder has for training and the bundle has elsewhere."""


def add_served_llama(
    folder: Path,
    adapter: Path,
    base: Path,
    *,
    dtype: DType = "bf16",
    conversations: tuple[str, Sequence[Conversation]] | None = None,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> MergeReport:
    """Merge the adapter of a bundle's Llama into its base and put the result into the bundle, whole or not at all.

    adapter, base, conversations, device, on_progress: as in `mechm.llm.merge.merge_adapter`.
    Raises: BundleError: the bundle has no Llama, or another than the adapter's, or cannot be written. WeightsError,
        VerificationError: see `merge_adapter`.
    """
    bundle = open_bundle(folder)
    check_adapter(bundle, adapter)
    with tempfile.TemporaryDirectory(prefix=".served.", dir=folder.parent, ignore_cleanup_errors=True) as beside:
        made = Path(beside) / SERVED
        report = merge_adapter(
            adapter, base, made, dtype=dtype, conversations=conversations, device=device, on_progress=on_progress
        )
        for name in NOT_SERVED:
            path = made / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        try:
            _put_in_place(bundle, made, report)
        except OSError as error:
            raise BundleError(f"cannot write {folder}: {error.strerror or error}", hint="free some space") from error
    return report


def check_adapter(bundle: Bundle, adapter: Path) -> None:
    """Raises: BundleError: the bundle's Llama is not this adapter's."""
    if bundle.llama is None:
        raise BundleError(
            f"{bundle.folder} has no Llama", hint="mechm export bundle --llm DIR --out DIR makes one that has"
        )
    weights = bundle.manifest.get("weights", {})
    if not isinstance(weights, dict) or weights.get("adapter") != file_sha256(adapter / ADAPTER_FILE):
        raise BundleError(
            f"the Llama of {bundle.folder} was made from another adapter than {adapter}",
            hint="name the one it was made from with --adapter, or export the bundle again",
        )


def _put_in_place(bundle: Bundle, made: Path, report: MergeReport) -> None:
    """Move the folder in and replace the manifest; the files of an older one go last."""
    target = bundle.folder.joinpath(*SERVED_FOLDER.split("/"))
    target.parent.mkdir(exist_ok=True)
    old = made.with_name("replaced")
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
        _write_manifest(bundle, target, report)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if old.exists():
            old.rename(target)
        raise


def _write_manifest(bundle: Bundle, target: Path, report: MergeReport) -> None:
    kept = {name: facts for name, facts in bundle.manifest["files"].items() if not name.startswith(f"{SERVED_FOLDER}/")}
    added = {
        f"{SERVED_FOLDER}/{path.relative_to(target).as_posix()}": {
            "sha256": file_sha256(path),
            "size_bytes": path.stat().st_size,
        }
        for path in target.rglob("*")
        if path.is_file()
    }
    manifest: dict[str, Any] = {
        **bundle.manifest,
        "files": dict(sorted({**kept, **added}.items())),
        SERVED: asdict(ServedLlama(SERVED_FOLDER, report.dtype)),
    }
    manifest["id"] = manifest_id(bundle.preset, manifest)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    beside = bundle.folder / f".{MANIFEST}.tmp"
    beside.write_text(text, encoding="utf-8")
    beside.replace(bundle.folder / MANIFEST)
