"""A pipeline that remembers, or joins runs, answers as one that does neither."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechm_runtime import EMOTIONS, Analysis, Conversation, Pipeline, Utterance
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.batching import BatchConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.engines.output_cache import NO_CACHE, CacheConfig

ONE_THREAD = EngineConfig(n_threads=1, n_lanes=2)


@pytest.fixture(scope="module")
def recording(repository: Path) -> Conversation:
    utterances = tuple(Utterance(k + 1, "AB"[k % 2], f"Line {k}.", 2.0 * k, 2.0 * k + 1.5) for k in range(3))
    return Conversation("recording", utterances, repository / "sample" / "conversation.mp4")


def answer(analysis: Analysis) -> str:
    return replace(analysis, timings_ms={}).to_json()


def numbers(analysis: Analysis) -> np.ndarray:
    return np.array([[u.probabilities[emotion] for emotion in EMOTIONS] for u in analysis.utterances])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_remembered_is_what_was_answered(
    precision: Any, tiny_bundle: Path, recording: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Pipeline.from_bundle(tiny_bundle, precision=precision, engine=ONE_THREAD)
    expected = plain.analyze(recording)
    assert plain.cache is None, "nothing is remembered unless that is asked for"
    with Pipeline.from_bundle(tiny_bundle, precision=precision, engine=ONE_THREAD, cache=CacheConfig()) as pipeline:
        assert answer(pipeline.analyze(recording)) == answer(expected)
        n_runs, run = [0], OnnxRuntimeEngine.run

        def counted(self: OnnxRuntimeEngine, inputs: Any) -> Any:
            n_runs[0] += 1
            return run(self, inputs)

        monkeypatch.setattr(OnnxRuntimeEngine, "run", counted)
        assert answer(pipeline.analyze(recording)) == answer(expected)
        assert n_runs == [1], "the fusion alone"
        assert pipeline.cache is not None
        assert pipeline.cache.counts.n_hits > 0
        assert answer(pipeline.analyze(replace(recording, utterances=recording.utterances[:2]))) != answer(expected)


def test_a_folder_serves_another_pipeline_of_the_same_bundle_and_precision(
    tiny_bundle: Path, recording: Conversation, tmp_path: Path
) -> None:
    cache = CacheConfig(folder=tmp_path / "kept")
    answers, hits = [], []
    for precision in ("fp32", "fp32", "int8"):
        with Pipeline.from_bundle(tiny_bundle, precision=precision, engine=ONE_THREAD, cache=cache) as pipeline:  # type: ignore[arg-type]
            answers.append(answer(pipeline.analyze(recording)))
            assert pipeline.cache is not None
            hits.append(pipeline.cache.counts.n_hits)
    assert answers[0] == answers[1]
    assert hits[0] == hits[2] == 0
    assert hits[1] > 0
    assert Pipeline.from_bundle(tiny_bundle, cache=NO_CACHE).cache is None


def test_conversations_at_the_same_time_are_joined_and_answered_alike(tiny_bundle: Path) -> None:
    talks = [
        Conversation(str(k), tuple(Utterance(n + 1, "AB"[n % 2], f"Line {n} of {k}.") for n in range(3 + k % 3)))
        for k in range(48)
    ]
    plain = Pipeline.from_bundle(tiny_bundle, precision="fp32", engine=ONE_THREAD)
    batching = BatchConfig(max_rows=16)
    with Pipeline.from_bundle(tiny_bundle, precision="fp32", engine=ONE_THREAD, batching=batching) as joining:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(joining.analyze, talks))
        joined: Any = joining._fusion
        assert joined.n_joined > 0
    for talk, analysis in zip(talks, found, strict=True):
        assert np.abs(numbers(analysis) - numbers(plain.analyze(talk))).max() < 1e-4


def test_int8_is_never_joined(tiny_bundle: Path) -> None:
    """One scale would serve several conversations: each would depend on who else is there."""
    pipeline = Pipeline.from_bundle(tiny_bundle, precision="int8", engine=ONE_THREAD, batching=BatchConfig())
    assert isinstance(pipeline._fusion, OnnxRuntimeEngine)
