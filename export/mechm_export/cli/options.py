"""What the commands of `mechm export` share: options, and what is asked of a machine before any of them begins."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechm_export.gate.judge import CheckSet


class BundleFolder(click.Path):
    """A bundle's folder, which may be named `package:NAME` where it is installed as a wheel."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder. Raises: BundleError: no such package is installed."""
        from mechm_runtime.bundle.installed import SCHEME, installed_bundle

        if str(value).startswith(SCHEME):
            return installed_bundle(str(value).removeprefix(SCHEME))
        return super().convert(value, param, ctx)


conversations_option = click.option(
    "--conversations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Annotated conversations (ECF / SemEval JSON, MECPE text) to judge precisions on. Default: a shipped set.",
)
bundle_option = click.option(
    "--bundle",
    "folder",
    type=BundleFolder(),
    metavar="DIR",
    help="The bundle, or package:NAME for an installed one. Default: MECHM_BUNDLE, or what make demo built.",
)
recordings_option = click.option(
    "--recording",
    "recordings",
    type=click.Path(path_type=Path),
    nargs=2,
    multiple=True,
    metavar="MEDIA TRANSCRIPT",
    help="A recording and its transcript to compare voice and picture on; may be given several times.",
)


def require_packages() -> None:
    """Refuse before the first import fails half-way.

    Raises: MissingExtraError.
    """
    from mechm_runtime.errors import MissingExtraError

    for package in ("torch", "transformers", "onnx", "onnxscript", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="export")


def bundle_to_change(folder: Path | None) -> Path:
    """The bundle that something is put into; None for the default one.

    Raises: InputError: it is installed as a package, whose files are pip's.
    """
    from mechm_runtime.bundle.installed import installed_bundles
    from mechm_runtime.bundle.location import default_bundle_path
    from mechm_runtime.errors import InputError

    folder = folder or default_bundle_path()
    if folder.resolve() in {path.resolve() for path in installed_bundles().values()}:
        raise InputError(
            f"the bundle in {folder} is an installed package, which stays as it was built",
            hint=f"cp -r {folder} DIR, and name that: --bundle DIR",
        )
    return folder


def read_check_set(conversations: Path | None, recordings: tuple[tuple[Path, Path], ...]) -> CheckSet | None:
    """What --conversations and --recording name, or None for neither.

    Raises: InputError: a file that cannot be read.
    """
    if conversations is None and not recordings:
        return None
    from mechm_export.gate.judge import CheckSet, shipped_check_set
    from mechm_runtime.readers import read_labelled, read_transcript

    recorded = tuple(one for media, transcript in recordings for one in read_transcript(transcript, media=media))
    if conversations is None:
        return CheckSet(shipped_check_set().name, shipped_check_set().labelled, recorded)
    return CheckSet(conversations.name, read_labelled(conversations), recorded)
