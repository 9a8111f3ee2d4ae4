"""Features for training are what the runtime's pipeline hands to the fusion for the same recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mechm.data.feature_extraction import FeatureExtractor, Features, Span, span_of
from mechm.model.config import LLAMA2_7B, SMALL, TINY
from mechm.model.preprocessing import fusion_windows, log_mel_config, scene_config
from mechm_runtime.bundle.manifest import PartFiles
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig, GraphRunner
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import InputError, MediaError
from mechm_runtime.media import MediaReader
from mechm_runtime.pipeline import Pipeline
from mechm_runtime.readers import read_transcript
from mechm_runtime.types import Conversation, Utterance

EVIDENCE = ("audio", "audio_mask", "scene", "scene_mask", "face", "face_mask")


class Eavesdropper:
    """A fusion that keeps what it was given."""

    def __init__(self, fusion: GraphRunner) -> None:
        self._fusion = fusion
        self.heard: list[dict[str, npt.NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self.heard.append(dict(inputs))
        return self._fusion.run(inputs)


class PipelineInputs:
    """The fusion's inputs in a bundle's pipeline, its graphs run in fp32."""

    def __init__(self, folder: Path) -> None:
        self.bundle = open_bundle(folder)
        self._fusion: Eavesdropper | None = None
        self._pipeline = Pipeline(self.bundle, load_part=self._load)

    def _load(self, part: PartFiles) -> GraphRunner:
        engine = OnnxRuntimeEngine(self.bundle.path(part.files["fp32"]), EngineConfig(n_threads=1))
        if part.name != "fusion":
            return engine
        self._fusion = Eavesdropper(engine)
        return self._fusion

    def of(self, conversation: Conversation) -> dict[str, npt.NDArray[Any]]:
        assert self._fusion is not None
        self._pipeline.analyze(conversation)
        (inputs,) = self._fusion.heard
        self._fusion.heard.clear()
        return {name: inputs[name][0, : len(conversation.utterances)] for name in EVIDENCE}


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> PipelineInputs:
    return PipelineInputs(tiny_bundle)


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> FeatureExtractor:
    return FeatureExtractor.from_preset(TINY)


def features_of(extractor: FeatureExtractor, conversation: Conversation) -> list[Features]:
    spans = [span_of(conversation, u) for u in conversation.utterances]
    with MediaReader() as reader:
        if conversation.media is not None:
            found = dict(extractor.read_spans([s for s in spans if s is not None], reader))
        else:
            found = {s: f for span in spans if span is not None for s, f in extractor.read_spans([span], reader)}
    return [found[span] for span in spans if span is not None]


def assert_same(extractor: FeatureExtractor, runtime: PipelineInputs, conversation: Conversation) -> list[Features]:
    """Largest difference over everything that is not masked below 1e-4, masks equal."""
    expected = runtime.of(conversation)
    actual = features_of(extractor, conversation)
    for name in EVIDENCE:
        values = np.stack([getattr(one, name) for one in actual])
        assert values.dtype == expected[name].dtype
        assert np.abs(values.astype(np.float32) - expected[name]).max() < 1e-4, name
    return actual


def clips(*paths: Path) -> Conversation:
    return Conversation("c", tuple(Utterance(i, "A", "Well.", media=path) for i, path in enumerate(paths, 1)))


def test_a_clip_gives_what_the_pipeline_reads_of_it(
    extractor: FeatureExtractor, runtime: PipelineInputs, write_clip: Any, tmp_path: Path
) -> None:
    grey = [np.full((64, 96, 3), level, np.uint8) for level in (40, 120, 200)]
    both = write_clip(tmp_path / "both.mp4", grey, 300)
    silent = write_clip(tmp_path / "silent.mp4", grey, None)
    blind = write_clip(tmp_path / "blind.m4a", [], 300)
    first, second, third = assert_same(extractor, runtime, clips(both, silent, blind))
    assert (first.audio_mask.all(), first.scene_mask.all(), first.face_mask.any()) == (True, True, False)
    assert first.missing == {"face": "no face found"}
    assert (second.audio_mask.any(), second.scene_mask.all(), "audio" in second.missing) == (False, True, True)
    assert (third.audio_mask.all(), third.scene_mask.any(), "face" in third.missing) == (True, False, True)
    assert all(one.usable for one in (first, second, third))


def test_stretches_of_a_recording_give_what_the_pipeline_reads_of_them(
    extractor: FeatureExtractor, runtime: PipelineInputs, repository: Path
) -> None:
    sample = repository / "sample"
    (conversation,) = read_transcript(sample / "conversation.srt", media=sample / "conversation.mp4")
    short = replace(conversation, utterances=conversation.utterances[:4])
    actual = assert_same(extractor, runtime, short)
    assert all(one.audio_mask.all() and one.scene_mask.all() for one in actual)


def test_several_faces_are_read(
    extractor: FeatureExtractor, runtime: PipelineInputs, write_clip: Any, tmp_path: Path, mechm_data: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [
        np.asarray(image.open(mechm_data / "media" / name).convert("RGB").resize((640, 480)))
        for name in ("faces_1.jpg", "faces_4.jpg")
    ]
    many = write_clip(tmp_path / "many.mp4", pictures, 300)
    film = mechm_data / "media" / "carphone_no_audio.mp4"
    crowd, driver = assert_same(extractor, runtime, clips(many, film))
    assert crowd.face_mask.sum() == TINY.n_frames * TINY.max_faces
    assert 1 <= driver.face_mask.sum() <= TINY.n_frames * TINY.max_faces
    heights = crowd.face[crowd.face_mask, -1]
    assert ((heights > 0) & (heights < 1)).all()
    assert np.allclose(crowd.face[crowd.face_mask, :-1].sum(-1), 1, atol=1e-5)
    assert (driver.audio_mask.any(), "audio" in driver.missing) == (False, True)


def test_a_file_that_is_no_recording_is_refused(extractor: FeatureExtractor, tmp_path: Path) -> None:
    (tmp_path / "dia1utt1.mp4").write_bytes(b"half a down")
    with MediaReader() as reader, pytest.raises(MediaError, match=r"dia1utt1\.mp4"):
        list(extractor.read_spans([Span(tmp_path / "dia1utt1.mp4")], reader))


def test_a_preset_is_read_with_the_constants_of_its_bundle(runtime: PipelineInputs) -> None:
    assert log_mel_config(TINY) == runtime.bundle.log_mel
    assert scene_config(TINY) == runtime.bundle.scene
    assert fusion_windows(TINY) == runtime.bundle.fusion
    assert scene_config(LLAMA2_7B).image_size == 448


def test_other_weights_and_sizes_have_another_fingerprint(extractor: FeatureExtractor) -> None:
    assert FeatureExtractor.from_preset(TINY).fingerprint == extractor.fingerprint
    assert FeatureExtractor.from_preset(replace(TINY, n_frames=2)).fingerprint != extractor.fingerprint
    assert FeatureExtractor.from_preset(SMALL).fingerprint != extractor.fingerprint


def test_a_preset_that_the_pipeline_cannot_read_voices_with_is_refused() -> None:
    with pytest.raises(InputError, match="spectrograms") as caught:
        FeatureExtractor.from_preset(LLAMA2_7B)
    assert "--preset small" in caught.value.hint


def test_an_utterance_s_own_clip_comes_before_the_recording() -> None:
    film, clip = Path("film.mp4"), Path("clip.mp4")
    utterances = (Utterance(1, media=clip, start_s=0.0, end_s=1.0), Utterance(2, start_s=1.0, end_s=2.0), Utterance(3))
    conversation = Conversation("c", utterances, film)
    assert [span_of(conversation, u) for u in utterances] == [Span(clip), Span(film, 1.0, 2.0), None]
    assert span_of(replace(conversation, media=None), utterances[1]) is None
