"""Measures the change of answers when audio is encoded in pieces while a person speaks, on real speech.

    python benchmarks/streamed_voice.py --bundle DIR --speech emodb

Every recording of EmoDB goes through a session, whole and in chunks of 100 ms as from a microphone, for several lengths
of the pieces. The shipped weights were trained on these recordings, so only the change between the two matters, not the
accuracy. `ms` is the time left to work when the speaker stops. Limit to expect: a recording shorter than a piece plus
one second is never cut, so nothing changes for it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.progress import track

from mechm.data.corpora.emodb import read_emodb
from mechm_runtime import (
    EMOTIONS,
    EngineConfig,
    MediaReader,
    Pipeline,
    SessionConfig,
    SessionUpdate,
    Utterance,
    open_bundle,
)

CHUNK = 1600
"""Samples per chunk, 100 ms."""
LONG_S = 60.0
"""No recording of EmoDB is longer."""


@dataclass(slots=True)
class Found:
    """Per recording: the label, the probabilities, and the milliseconds left at its end."""

    labels: list[str | None] = field(default_factory=list)
    probabilities: list[list[float]] = field(default_factory=list)
    times_ms: list[float] = field(default_factory=list)

    def add(self, update: SessionUpdate, started: float) -> None:
        """Add one answer."""
        self.times_ms.append(1000 * (time.perf_counter() - started))
        self.labels.append(update.utterance.emotion)
        self.probabilities.append([update.utterance.probabilities[emotion] for emotion in EMOTIONS])


def main() -> None:
    """Stream every recording with each length of piece and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--speech", type=Path, required=True, help="EmoDB's folder")
    parser.add_argument("--pieces", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="only every n-th recording")
    given = parser.parse_args()
    recordings = read_emodb(given.speech)[:: given.every]
    pipeline = Pipeline(
        open_bundle(given.bundle), engine=EngineConfig(n_threads=given.threads), modalities=("audio",), llm="none"
    )
    names = ["whole", *(f"{piece_s:g} s" for piece_s in given.pieces)]
    found = {name: Found() for name in names}
    lengths_s = []
    with MediaReader() as reader:
        for recording in track(recordings, transient=True):
            samples = reader.read_segments(recording.path, [(0.0, LONG_S)], n_frames=0).segments[0].samples
            if samples is None:
                continue
            lengths_s.append(len(samples) / 16_000)
            started = time.perf_counter()
            whole = pipeline.open_session().append(Utterance(1), samples=samples)
            found["whole"].add(whole, started)
            for name, piece_s in zip(names[1:], given.pieces, strict=True):
                stream(pipeline, samples, piece_s, found[name])
    print(
        f"EmoDB, {len(lengths_s)} recordings, {np.median(lengths_s):.1f} s (median), voice alone; "
        f"onnxruntime {version('onnxruntime')}, {given.threads} threads; {pipeline.bundle_id}"
    )
    print(f"{'pieces':10}{'labels kept':>12}{'largest change':>16}{'mean':>8}{'ms p50':>9}{'p99':>8}")
    rows = []
    reference = np.array(found["whole"].probabilities)
    for name, one in found.items():
        change = np.abs(np.array(one.probabilities) - reference).max(-1)
        kept = float(np.mean([label == other for label, other in zip(one.labels, found["whole"].labels, strict=True)]))
        p50, p99 = np.percentile(one.times_ms, [50, 99])
        print(f"{name:10}{kept:12.3f}{change.max():16.3f}{change.mean():8.3f}{p50:9.1f}{p99:8.1f}")
        rows.append(
            {
                "pieces": name,
                "labels_kept": round(kept, 4),
                "largest_change": round(float(change.max()), 4),
                "mean_change": round(float(change.mean()), 4),
                "p50_ms": round(float(p50), 1),
                "p99_ms": round(float(p99), 1),
            }
        )
    print(json.dumps(rows))


def stream(pipeline: Pipeline, samples: npt.NDArray[np.float32], piece_s: float, found: Found) -> None:
    """Stream one recording as from a microphone; finished pieces are encoded before its end, as in real time."""
    session = pipeline.open_session(config=SessionConfig(piece_s=piece_s))
    for start in range(0, len(samples), CHUNK):
        session.append_audio(samples[start : start + CHUNK])
    pipeline.close()  # waits for the pieces that would be finished in real time
    started = time.perf_counter()
    found.add(session.append(Utterance(1)), started)


if __name__ == "__main__":
    main()
