"""Features on disk: computed once, gone on with after a stop, and one broken recording stops nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm.data.corpora import Problem
from mechm.data.feature_extraction import FeatureExtractor, Features, Span
from mechm.data.feature_store import ARRAYS, SPANS_PER_FILE, read_features
from mechm.model.config import TINY
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.media import MediaLimits, MediaReader
from mechm_runtime.types import Utterance

pytest.importorskip("av")


class Counting:
    """An extractor that decodes nothing: it reads a number out of the file, and counts."""

    def __init__(self, extractor: FeatureExtractor, fingerprint: str = "a") -> None:
        self.sizes = extractor.sizes
        self.fingerprint = fingerprint
        self.read: list[Span] = []

    def read_spans(self, spans: Sequence[Span], reader: MediaReader) -> Iterator[tuple[Span, Features]]:
        for span in spans:
            self.read.append(span)
            text = span.path.read_text()
            if text == "broken":
                raise MediaError(f"{span.path.name}: cut off")
            inputs = FusionInputs.absent((Utterance(1),), self.sizes)
            if text != "nothing":
                inputs.audio[:], inputs.audio_mask[:] = float(text) + (span.start_s or 0), True
            values = {name: np.asarray(getattr(inputs, name)[0]) for name in ARRAYS}
            yield span, Features(**values, missing={} if text != "nothing" else {"audio": "digital silence"})


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> FeatureExtractor:
    return FeatureExtractor.from_preset(TINY)


@pytest.fixture
def counting(extractor: FeatureExtractor) -> Any:
    return Counting(extractor)


def files(folder: Path, *contents: str) -> list[Span]:
    folder.mkdir(exist_ok=True)
    spans = []
    for number, content in enumerate(contents):
        path = folder / f"dia1utt{number}.mp4"
        path.write_text(content)
        spans.append(Span(path))
    return spans


def voices(table: Any, spans: Sequence[Span]) -> list[float]:
    return [float(table.arrays["audio"][table.row_of[span], 0, 0]) for span in spans]


def test_real_clips_are_read_once_and_kept_in_half_precision(
    extractor: FeatureExtractor, write_clip: Any, tmp_path: Path
) -> None:
    pictures = [np.full((64, 96, 3), 90, np.uint8)]
    spans = [Span(write_clip(tmp_path / f"dia1utt{n}.mp4", pictures, 200.0 * n)) for n in (1, 2, 3)]
    (tmp_path / "dia1utt4.mp4").write_bytes(b"half a down")
    spans.append(Span(tmp_path / "dia1utt4.mp4"))
    seen: list[tuple[int, int]] = []
    table = read_features(
        spans, extractor, tmp_path / "f", n_jobs=2, progress=lambda done, total: seen.append((done, total))
    )
    assert set(table.row_of) == set(spans[:3])
    assert [p.name for p in table.problems] == ["dia1utt4.mp4"]
    assert "not media" in table.problems[0].reason
    assert seen[0] == (0, 4)
    assert seen[-1] == (4, 4)
    with MediaReader() as reader:
        for span in spans[:3]:
            ((_, features),) = extractor.read_spans([span], reader)
            for name in ARRAYS:
                kept, exact = table.arrays[name][table.row_of[span]], getattr(features, name)
                assert kept.dtype == (np.float16 if exact.dtype == np.float32 else bool)
                assert np.allclose(kept, exact, rtol=1e-3, atol=1e-4)
    seen.clear()
    again = read_features(spans[:3], extractor, tmp_path / "f", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]  # all were there
    assert all(np.array_equal(again.arrays[name], table.arrays[name]) for name in ARRAYS)
    assert table.voices.shape == (3, 2, 2 * TINY.audio.hidden_size)
    assert table.voices.dtype == np.float32


def test_changed_and_added_recordings_alone_are_read_again(counting: Any, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", "1", "2", "3")
    read_features(spans, counting, tmp_path / "f")
    assert counting.read == spans
    counting.read.clear()
    spans[1].path.write_text("22")
    (tmp_path / "clips" / "new.mp4").write_text("4")
    spans.append(Span(tmp_path / "clips" / "new.mp4"))
    table = read_features(spans, counting, tmp_path / "f")
    assert counting.read == [spans[1], spans[3]]
    assert voices(table, spans) == [1, 22, 3, 4]


def test_stretches_of_one_recording_are_kept_apart(counting: Any, tmp_path: Path) -> None:
    (whole,) = files(tmp_path / "clips", "1")
    spans = [whole, Span(whole.path, 10.0, 11.0), Span(whole.path, 20.0, 21.0), whole]
    for _ in range(2):
        table = read_features(spans, counting, tmp_path / "f")
        assert voices(table, spans) == [1, 11, 21, 1]
    assert len(counting.read) == 3


def test_what_cannot_be_used_is_reported_in_order_and_stops_nothing(counting: Any, tmp_path: Path) -> None:
    contents = ["1"] * 200
    contents[7], contents[90], contents[150] = "broken", "nothing", "broken"
    spans = files(tmp_path / "clips", *contents)
    spans[20].path.unlink()
    table = read_features(spans, counting, tmp_path / "f", n_jobs=3)
    assert table.problems == (
        Problem("dia1utt7.mp4", "cut off"),
        Problem("dia1utt20.mp4", "No such file or directory"),
        Problem("dia1utt90.mp4", "digital silence"),
        Problem("dia1utt150.mp4", "cut off"),
    )
    assert len(table.row_of) == 196
    assert len(list((tmp_path / "f").glob("*.safetensors"))) == -(-196 // SPANS_PER_FILE)


def test_nothing_usable_is_refused_with_the_first_reason(counting: Any, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", "broken", "nothing")
    with pytest.raises(InputError, match=r"none of 2 recordings can be used; dia1utt0\.mp4: cut off") as caught:
        read_features(spans, counting, tmp_path / "f")
    assert "unpacked" in caught.value.hint


def test_a_stop_loses_nothing_that_was_done(counting: Any, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", *map(str, range(30)))

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_features(spans, counting, tmp_path / "f", progress=stop)
    counting.read.clear()
    table = read_features(spans, counting, tmp_path / "f")
    assert len(counting.read) == 10  # which ones depends on the order in which threads end
    assert voices(table, spans) == list(range(30))


KILLED = """
import sys
from pathlib import Path
from mechm.data.feature_store import read_features
from mechm.data.feature_extraction import FeatureExtractor, Span
from mechm.model.config import TINY

spans = [Span(path) for path in sorted(Path(sys.argv[1]).iterdir())]
read_features(spans, FeatureExtractor.from_preset(TINY), Path(sys.argv[2]), progress=lambda *at: print(*at, flush=True))
"""


def test_a_killed_process_leaves_whole_files(
    extractor: FeatureExtractor, write_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_clip(tmp_path / "one.m4a", [], 300, seconds=0.3).read_bytes()
    clips = tmp_path / "clips"
    clips.mkdir()
    n = SPANS_PER_FILE + 40
    for number in range(n):
        (clips / f"dia1utt{number:03d}.m4a").write_bytes(source)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(clips), str(tmp_path / "f")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line.split()[0]) >= SPANS_PER_FILE + 5:
                process.kill()
                break
    seen: list[int] = []
    spans = [Span(path) for path in sorted(clips.iterdir())]
    table = read_features(spans, extractor, tmp_path / "f", progress=lambda done, total: seen.append(done))
    assert seen[0] == SPANS_PER_FILE
    assert len(table.row_of) == n
    assert np.ptp(table.voices, axis=0).max() == 0  # the same sound, whichever process read it


def test_features_of_other_encoders_are_refused(extractor: FeatureExtractor, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", "1")
    read_features(spans, Counting(extractor), tmp_path / "f")
    with pytest.raises(InputError, match="of other encoders") as caught:
        read_features(spans, Counting(extractor, "b"), tmp_path / "f")
    assert "--features" in caught.value.hint


def test_damaged_and_foreign_folders_are_refused(counting: Any, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", "1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        read_features(spans, counting, tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be kept"):
        read_features(spans, counting, tmp_path / "file")
    folder = tmp_path / "f"
    read_features(spans, counting, folder)
    (kept,) = folder.glob("*.safetensors")
    whole = kept.read_bytes()
    for damaged in (whole[:-10], b"", b"\xff" * 64):
        kept.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged") as caught:
            read_features(spans, counting, folder)
        assert "delete it" in caught.value.hint
    kept.unlink()
    (folder / "features.json").write_text("{")
    with pytest.raises(InputError, match=r"features\.json is damaged"):
        read_features(spans, counting, folder)


def test_ten_thousand_rows_are_small_and_quick_to_find(counting: Any, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", *(str(n % 100) for n in range(10_000)))
    read_features(spans, counting, tmp_path / "f", n_jobs=2)
    assert not list((tmp_path / "f").glob("*.part"))
    n_bytes = sum(path.stat().st_size for path in (tmp_path / "f").iterdir())
    row = sum(np.asarray(getattr(FusionInputs.absent((Utterance(1),), counting.sizes), n)).size for n in ARRAYS)
    assert n_bytes < 10_000 * (2 * row + 60)
    counting.read.clear()
    started = time.perf_counter()
    table = read_features(spans, counting, tmp_path / "f")
    assert time.perf_counter() - started < 60
    assert not counting.read
    assert voices(table, spans[:200]) == [n % 100 for n in range(200)]


def test_a_recording_above_a_limit_is_reported(extractor: FeatureExtractor, write_clip: Any, tmp_path: Path) -> None:
    spans = [Span(write_clip(tmp_path / f"{n}.m4a", [], 300, seconds=n)) for n in (1, 4)]
    table = read_features(spans, extractor, tmp_path / "f", limits=MediaLimits(max_duration_s=3))
    assert [p.name for p in table.problems] == ["4.m4a"]
    assert json.loads((tmp_path / "f" / "features.json").read_text()) == {"encoders": extractor.fingerprint}


def test_trainings_that_start_together_read_a_recording_once(extractor: FeatureExtractor, tmp_path: Path) -> None:
    spans = files(tmp_path / "clips", *map(str, range(100)))
    both = [Counting(extractor), Counting(extractor)]
    with ThreadPoolExecutor(2) as threads:
        tables = list(threads.map(lambda one: read_features(spans, one, tmp_path / "f"), both))
    assert sum(len(one.read) for one in both) == 100
    assert voices(tables[0], spans) == voices(tables[1], spans) == list(range(100))
