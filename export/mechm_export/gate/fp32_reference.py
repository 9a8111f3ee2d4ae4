"""A bundle's own answers in fp32 on conversations, and the inputs of every part while they are computed.

Lower precisions are compared with these answers and calibrated on these inputs: those that the runtime's pipeline feeds
to each part. They are kept in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from mechm_export.gate.check_set import CheckSet
from mechm_export.gate.comparison import TaskCheck, check_task
from mechm_runtime.bundle.manifest import LLAMA, PROJECTOR, Bundle, PartFiles
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import InputError, VerificationError
from mechm_runtime.llm.rescoring import Llm
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.system.arrays import Array, Arrays

MAX_INPUTS = 100
"""Most inputs that are kept per part."""


@dataclass(slots=True)
class _Recorder:
    """Runs a graph and keeps copies of its first inputs."""

    engine: OnnxRuntimeEngine
    inputs: list[dict[str, Array]] = field(default_factory=list)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        if len(self.inputs) < MAX_INPUTS:
            self.inputs.append({name: np.array(value) for name, value in inputs.items()})
        return self.engine.run(inputs)


class Fp32Reference:
    """Answers of a bundle in fp32 on a check set, and its parts' inputs.

    parts: names of the parts to convert to a lower precision. The Llama is asked only where it or its projector is
    among them.
    Raises: InputError: the bundle has no such part.
    """

    def __init__(self, bundle: Bundle, checks: CheckSet, parts: Collection[str]) -> None:
        if unknown := sorted(set(parts) - set(bundle.parts)):
            raise InputError(f"the bundle has no part {unknown[0]}", hint=f"it has {', '.join(bundle.parts)}")
        self.bundle = bundle
        self.checks = checks
        self._asks_llama = bool({LLAMA, PROJECTOR} & set(parts))
        self._recorders: dict[str, _Recorder] = {}
        pipeline = self._pipeline({})
        self._text = [pipeline.analyze(one.conversation) for one in checks.labelled]
        self._recorded = [pipeline.analyze(conversation) for conversation in checks.recorded]

    def reaches(self, part: str) -> bool:
        """Whether a part is run at all for these conversations."""
        return part in self._recorders and bool(self._recorders[part].inputs)

    def inputs(self, part: str) -> list[dict[str, Array]]:
        """The first MAX_INPUTS inputs of a part.

        Raises: VerificationError: the part is not run for these conversations.
        """
        if not self.reaches(part):
            raise VerificationError(
                f"nothing in the conversations reaches the {part} part",
                hint="add recordings with voice and picture: --recording MEDIA TRANSCRIPT",
            )
        return self._recorders[part].inputs

    def check(self, runners: Mapping[str, GraphRunner], precision: str) -> list[TaskCheck]:
        """Compare answers with replaced parts to those in fp32, on text first and on recordings second.

        runners: part -> the runner that replaces its graph in fp32.
        """
        candidate = self._pipeline(runners)
        conversations = [one.conversation for one in self.checks.labelled]
        name = self.checks.name
        found = []
        if conversations:
            found.append(check_task(name, precision, conversations, self._text, candidate, self.checks.labelled))
        if self.checks.recorded:
            recorded = self.checks.recorded
            found.append(check_task(f"{name}, recordings", precision, recorded, self._recorded, candidate))
        return found

    def _pipeline(self, runners: Mapping[str, GraphRunner]) -> Pipeline:
        def load(part: PartFiles) -> GraphRunner:
            return runners[part.name] if part.name in runners else self._recorder(part)

        llm: Llm = "onnx" if self._asks_llama else "none"
        return Pipeline(self.bundle, load_part=load, modalities=self.bundle.modalities, llm=llm, asked_below=1.0)

    def _recorder(self, part: PartFiles) -> _Recorder:
        if part.name not in self._recorders:
            engine = OnnxRuntimeEngine(self.bundle.path(part.files["fp32"]), EngineConfig())
            self._recorders[part.name] = _Recorder(engine)
        return self._recorders[part.name]
