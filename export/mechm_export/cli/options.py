"""Options that the commands of `mechm export` share, and functions that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mechm_export.bundle.write import Step
    from mechm_export.gate.check_set import CheckSet


class BundleFolder(click.Path):
    """The folder of a bundle, or `package:NAME` for a bundle that is installed as a wheel."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the folder. Raises: BundleError: no such package is installed."""
        from mechm_runtime.bundle.installed import SCHEME, installed_bundle

        if str(value).startswith(SCHEME):
            return installed_bundle(str(value).removeprefix(SCHEME))
        return super().convert(value, param, ctx)


conversations_option = click.option(
    "--conversations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Annotated conversations (ECF / SemEval JSON, MECPE text) to compare answers on. Default: a shipped set.",
)
bundle_option = click.option(
    "--bundle",
    "folder",
    type=BundleFolder(),
    metavar="DIR",
    help="The bundle, or package:NAME for an installed one. Default: MECHM_BUNDLE, or the one in the cache folder.",
)
recordings_option = click.option(
    "--recording",
    "recordings",
    type=click.Path(path_type=Path),
    nargs=2,
    multiple=True,
    metavar="MEDIA TRANSCRIPT",
    help="A recording and its transcript, to compare answers from voice and picture on; may be given several times.",
)
_WEIGHTS_OPTIONS = (
    click.option(
        "--trained",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="Weights that `mechm train fusion` wrote. Default: those shipped with the preset.",
    ),
    click.option(
        "--adapter",
        "adapter",
        metavar="DIR",
        help="The Llama's adapter that `mechm train llm` wrote, with the weights of its answers from `mechm train "
        "combination`; `none` for no Llama. Default: the folder `llm` of the trained weights, if there is one.",
    ),
    click.option(
        "--llm-base",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        help="The Llama that the adapter is for. Default: the preset's, see mechm weights.",
    ),
)


def weights_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `trained`, `adapter` and `llm_base`: the weights that a bundle is made from."""
    for option in reversed(_WEIGHTS_OPTIONS):
        command = option(command)
    return command


def require_packages() -> None:
    """Check for the packages of the extra `export` before any of them is imported.

    Raises: MissingExtraError.
    """
    from mechm_runtime.errors import MissingExtraError

    for package in ("torch", "transformers", "onnx", "onnxscript", "safetensors"):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="export")


def bundle_to_change(folder: Path | None) -> Path:
    """The bundle that a command adds something to; None for the default one.

    Raises: InputError: it is installed as a package, whose files belong to pip.
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
    """Read the files of --conversations and --recording; None if neither is given.

    Raises: InputError: a file that cannot be read.
    """
    if conversations is None and not recordings:
        return None
    from mechm_export.gate.check_set import CheckSet, shipped_check_set
    from mechm_runtime.readers import read_labelled, read_transcript

    recorded = tuple(one for media, transcript in recordings for one in read_transcript(transcript, media=media))
    if conversations is None:
        return CheckSet(shipped_check_set().name, shipped_check_set().labelled, recorded)
    return CheckSet(conversations.name, read_labelled(conversations), recorded)


def find_trained(preset: str, given: Path | None) -> Path | None:
    """The folder of trained weights to use: the given one, or the one shipped with the preset; `tiny` has none.

    Raises: WeightsError: none is given, and none is shipped.
    """
    from mechm.model.build import pretrained_folder

    if given is not None or preset == "tiny":
        return given
    return pretrained_folder(preset)


def find_adapter(trained: Path | None, given: str | None) -> Path | None:
    """The folder of the Llama's adapter to use: the given one, or the one in the folder of trained weights, or None.

    given: `none` for no adapter.
    Raises: InputError: the given folder is not an adapter's.
    """
    from mechm.llm.combination import LLAMA_FOLDER, is_adapter
    from mechm_runtime.errors import InputError

    if given == "none":
        return None
    if given is not None:
        if not is_adapter(Path(given)):
            raise InputError(f"{given} is no folder that `mechm train llm` wrote", hint="mechm train llm --help")
        return Path(given)
    beside = None if trained is None else trained / LLAMA_FOLDER
    return beside if beside is not None and is_adapter(beside) else None


@contextmanager
def steps_display() -> Iterator[Step]:
    """Show the running step: a spinner on a terminal, a line per step elsewhere; both on standard error."""
    from mechm.cli.options.progress import steps_progress

    with steps_progress() as on_progress:
        yield lambda what: on_progress(what, 0, 0)
