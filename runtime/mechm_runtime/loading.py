"""Which file of a part is loaded, and by which engine; parts that nothing has asked for yet are not loaded."""

from __future__ import annotations

from collections.abc import Mapping

from mechm_runtime.bundle import Bundle, PartFiles
from mechm_runtime.engine import EngineConfig, GraphRunner, load_engine
from mechm_runtime.errors import BundleError, InputError


class PartLoader:
    """Loads parts of a bundle.

    precisions: part -> precision; what the bundle has for the engine for parts that are not named or have None.
    Raises: BundleError: a part or a precision of it that was asked for is not there. InputError: the engine does not
        run it. Both now rather than when the first recording comes.
    """

    def __init__(self, bundle: Bundle, precisions: Mapping[str, str | None], config: EngineConfig) -> None:
        self._bundle = bundle
        self._config = config
        self._precisions = {name: precision for name, precision in precisions.items() if precision is not None}
        for name, precision in self._precisions.items():
            self._check(name, precision)

    def __call__(self, part: PartFiles) -> GraphRunner:
        """What runs the part.

        Raises: MissingExtraError, ProviderError, BundleError.
        """
        name = self._config.engine
        if name in ("tensorrt", "tensorrt-rtx"):
            from mechm_runtime.tensorrt.engine import load_part

            return load_part(self._bundle, part.name, name)
        return load_engine(self._bundle.path(part.files[self.precision(part)]), self._config)

    def precision(self, part: PartFiles) -> str:
        """The precision that is loaded where the engine does not bring its own."""
        return self._precisions.get(part.name, part.precision_on(self._config.engine))

    def _check(self, name: str, precision: str) -> None:
        if precision == "int8" and self._config.engine != "onnxruntime":
            raise InputError(
                f"the int8 files are onnxruntime's own, and {self._config.engine} is to run them",
                hint="leave the precision out, or the engine",
            )
        if self._config.engine.startswith("tensorrt"):
            raise InputError(
                f"an engine of {self._config.engine} has the precision it was built in",
                hint="leave the precision out; mechm export engines --precision builds in another",
            )
        files = self._bundle.parts[name].files if name in self._bundle.parts else {}
        if precision not in files:
            raise BundleError(
                f"the bundle has no {precision} file of its {name} part",
                hint=f"it has {', '.join(files) or 'no such part'}",
            )
