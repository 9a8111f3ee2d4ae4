"""The results of one run of `mechm bench` as dataclasses and as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mechm.bench.accuracy import Accuracy
from mechm.bench.limits import Limits
from mechm.bench.machine import Machine
from mechm.bench.offline import Offline
from mechm.bench.scaling import Scaling
from mechm.bench.server import Server
from mechm.bench.session import SessionTimes
from mechm.bench.single_stream import SingleStream
from mechm.bench.stages import StageShares
from mechm.bench.start import Start
from mechm_runtime.errors import InputError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that was measured; None or empty where a scenario was not run.

    made: date and time, ISO 8601, UTC. command: the command line of `mechm bench`. n_threads: threads that the systems
    compute with. modalities: those asked for; empty for the bundle's default. notes: measurements left out, with the
    reason.
    """

    made: str
    command: str
    bundle_id: str
    preset: str
    n_threads: int
    machine: Machine
    modalities: tuple[str, ...] = ()
    limits: Limits | None = None
    single_stream: SingleStream | None = None
    stages: tuple[StageShares, ...] = ()
    offline: tuple[Offline, ...] = ()
    server: tuple[Server, ...] = ()
    session: tuple[SessionTimes, ...] = ()
    scaling: tuple[Scaling, ...] = ()
    start: tuple[Start, ...] = ()
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def file_stem(self) -> str:
        """The files' name without its ending: preset, cores and the modalities asked for, such as `small-2-cores`."""
        return "-".join((self.preset, f"{self.machine.cores:g}", "cores", *self.modalities))

    def to_json(self, *, lines: bool = False) -> str:
        """This document as JSON text with the field names of the dataclasses.

        lines: one line per field of this class, so that versions can be compared; else everything on one line.
        """
        if not lines:
            return json.dumps(asdict(self), ensure_ascii=False)
        each = (f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in asdict(self).items())
        return "{\n" + ",\n".join(each) + "\n}"


def results_of(document: Mapping[str, Any]) -> Results:
    """The results that `read_results` has read, as dataclasses again.

    Raises: InputError: a field is missing.
    """
    from dacite import Config, DaciteError, from_dict

    try:
        return from_dict(Results, document, Config(cast=[tuple], check_types=False))
    except DaciteError as error:
        raise InputError(f"incomplete results of mechm bench: {error}") from error


def read_results(folder: Path) -> dict[Path, dict[str, Any]]:
    """Every document of a folder, by its file, the newest first.

    Raises: InputError: a file holds something else, or has another schema version than this library.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path.name} holds no results of mechm bench", hint="mechm bench --out DIR") from error
        if version != SCHEMA_VERSION:
            raise InputError(f"{path.name} has schema {version}, this library reads {SCHEMA_VERSION}")
        found[path] = content
    return dict(sorted(found.items(), key=lambda item: str(item[1]["made"]), reverse=True))
