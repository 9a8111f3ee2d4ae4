"""A conversation in, an analysis out: every mix of modalities, broken media, long conversations, many threads."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import time
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import mechm_runtime
from mechm_runtime import EMOTIONS, MODALITIES, Analysis, Conversation, Pipeline, Utterance
from mechm_runtime.bundle.manifest import TOKENIZER_FILE
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.engines.base import EngineConfig
from mechm_runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from mechm_runtime.errors import BundleError, InputError, MediaError
from mechm_runtime.fusion.inputs import FusionInputs
from mechm_runtime.fusion.run import run_fusion, window_spans
from mechm_runtime.media import MediaReader
from mechm_runtime.modalities.log_mel import log_mel_spectrogram
from mechm_runtime.modalities.text import TEXT_WINDOWS_PER_RUN, TextEncoder
from mechm_runtime.modalities.text_windows import ConversationTokenizer, pool_utterances
from mechm_runtime.modalities.voice import MAX_MEL_FRAMES, VoiceEncoder, VoicePiece, merge_pieces
from mechm_runtime.readers import read_transcript

ONE_THREAD = EngineConfig(n_threads=1)
TEXTS = ("We won the cup!", "Really? That's wonderful.", "No. It was a joke.", "How mean of you.")


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    """The tiny bundle, every score of a cause counting as one, so that there are pairs to look at."""
    bundle = open_bundle(tiny_bundle)
    return Pipeline(replace(bundle, decision=undecided(bundle.decision, tiny_bundle)), engine=ONE_THREAD)


def undecided(decision: Any, folder: Path) -> Any:
    """Constants with which random weights choose among all emotions and find some pairs."""
    plain = Pipeline.from_bundle(folder, engine=ONE_THREAD)
    answers = plain.analyze(spoken(*TEXTS)).utterances
    usual = np.mean([np.log([u.probabilities[e] for e in EMOTIONS]) for u in answers], 0)
    return replace(decision, emotion_bias=tuple(-usual * 20), emotion_temperature=0.05, pair_threshold=0.1)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`both.mp4` has picture and sound, `silent.mp4` no audio track, `voice.wav` no video track; two seconds each."""
    folder = tmp_path_factory.mktemp("media")
    samples = tones(2.0)
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.tobytes())
    for name, sound in (("both.mp4", samples), ("silent.mp4", None)):
        with av.open(str(folder / name), "w") as output:
            video: Any = output.add_stream("libx264", rate=10)
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            audio: Any = None if sound is None else output.add_stream("aac", rate=16_000, layout="mono")
            for index in range(20):
                pixels = np.full((64, 96, 3), 12 * index, np.uint8)
                pixels[:, : 4 * index] = 255 - 12 * index
                output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            output.mux(video.encode(None))
            if audio is not None and sound is not None:
                frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
                frame.sample_rate = 16_000
                output.mux(audio.encode(frame))
                output.mux(audio.encode(None))
    return folder


def tones(seconds: float) -> np.ndarray:
    t = np.arange(round(16_000 * seconds)) / 16_000
    return (8_000 * np.sin(2 * np.pi * 180 * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype("<i2")


def spoken(*texts: str | None, media: Path | None = None, seconds: float = 0.5, name: str = "c") -> Conversation:
    """A conversation of two speakers in turns; with times where there is a recording."""
    times = [(k * seconds, (k + 1) * seconds) if media else (None, None) for k in range(len(texts))]
    return Conversation(
        name,
        tuple(
            Utterance(k + 1, "AB"[k % 2], text, start_s, end_s)
            for k, (text, (start_s, end_s)) in enumerate(zip(texts, times, strict=True))
        ),
        media,
    )


def answer_of(analysis: Analysis) -> dict[str, Any]:
    """All of an analysis but how long it took."""
    return {**asdict(analysis), "timings_ms": {}}


def probabilities_of(analysis: Analysis) -> np.ndarray:
    return np.array([[u.probabilities[emotion] for emotion in EMOTIONS] for u in analysis.utterances])


def assert_sound(analysis: Analysis, conversation: Conversation, pipeline: Pipeline) -> None:
    """Laws that hold for every analysis whatever went in."""
    assert analysis.conversation_id == conversation.id
    assert analysis.bundle_id == pipeline.bundle_id == pipeline.bundle.id
    assert [(u.id, u.speaker, u.text, u.start_s, u.end_s) for u in analysis.utterances] == [
        (u.id, u.speaker, u.text, u.start_s, u.end_s) for u in conversation.utterances
    ]
    labels = {}
    for u in analysis.utterances:
        assert tuple(u.probabilities) == EMOTIONS
        assert math.isclose(sum(u.probabilities.values()), 1.0, abs_tol=1e-9)
        assert all(0 <= p <= 1 for p in u.probabilities.values())
        assert u.emotion in EMOTIONS
        assert list(u.modalities) == [m for m in pipeline.modalities if m in u.modalities]
        assert not set(u.modalities) & set(u.missing)
        assert set(u.missing) <= set(pipeline.modalities)
        labels[u.id] = u.emotion
    for pair in analysis.pairs:
        assert pair.emotion != "neutral"
        assert labels[pair.emotion_utterance] == pair.emotion
        assert pair.cause_utterance in labels
        assert pipeline.bundle.decision.pair_threshold <= pair.probability <= 1
    assert len({(p.emotion_utterance, p.cause_utterance) for p in analysis.pairs}) == len(analysis.pairs)
    assert analysis.timings_ms["total"] >= max(analysis.timings_ms.values())


# Modalities


def test_text_alone(pipeline: Pipeline) -> None:
    conversation = spoken(*TEXTS)
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    assert [(u.modalities, u.missing) for u in analysis.utterances] == [(("text",), {})] * 4
    assert analysis.pairs, "the fixture's threshold lets some through"
    assert set(analysis.timings_ms) == {"text", "fusion", "decide", "total"}


def test_ids_are_kept(pipeline: Pipeline) -> None:
    plain = spoken(*TEXTS)
    numbered = replace(
        plain, utterances=tuple(replace(u, id=n) for u, n in zip(plain.utterances, (3, 4, 17, 900), strict=True))
    )
    analysis, expected = pipeline.analyze(numbered), pipeline.analyze(plain)
    assert_sound(analysis, numbered, pipeline)
    ids = {1: 3, 2: 4, 3: 17, 4: 900}
    assert [(p.emotion_utterance, p.cause_utterance) for p in analysis.pairs] == [
        (ids[p.emotion_utterance], ids[p.cause_utterance]) for p in expected.pairs
    ]


def test_voice_alone(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken(None, None, None, None, media=media / "voice.wav")
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    for u in analysis.utterances:
        assert u.modalities == ("audio",)
        assert u.missing == {"text": "no words known", "face": "no video track", "scene": "no video track"}


def test_picture_and_sound(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken(*TEXTS, media=media / "both.mp4")
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    for u in analysis.utterances:
        assert u.modalities == ("text", "audio", "scene")
        assert u.missing == {"face": "no face found"}
    assert set(analysis.timings_ms) == {
        "text", "decode", "audio", "face", "scene", "fusion", "decide", "total"
    }  # fmt: skip


def test_a_recording_without_an_audio_track(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken(*TEXTS, media=media / "silent.mp4")
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    for u in analysis.utterances:
        assert u.modalities == ("text", "scene")
        assert u.missing == {"audio": "no audio track", "face": "no face found"}


def test_some_have_no_words(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken("We won!", None, "", "  ", media=media / "voice.wav")
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    assert [u.modalities for u in analysis.utterances] == [("text", "audio")] + [("audio",)] * 3
    assert ["text" in u.missing for u in analysis.utterances] == [False, True, True, True]


def test_some_have_no_words_and_nothing_else(pipeline: Pipeline) -> None:
    """They are analysed from their neighbours, and say that nothing of their own was there."""
    conversation = spoken("We won!", None)
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    assert [u.modalities for u in analysis.utterances] == [("text",), ()]


def test_every_modality_counts(tiny_bundle: Path, media: Path) -> None:
    """Each of them alone, and all of them together, give answers of their own."""
    conversation = spoken(*TEXTS, media=media / "both.mp4")
    seen = []
    for chosen in (("text",), ("audio",), ("scene",), ("scene", "text"), MODALITIES):
        only = Pipeline.from_bundle(tiny_bundle, modalities=chosen, engine=ONE_THREAD)
        assert only.modalities == tuple(m for m in MODALITIES if m in chosen), "in the order of MODALITIES"
        analysis = only.analyze(conversation)
        assert_sound(analysis, conversation, only)
        assert all(set(u.modalities) == set(chosen) - {"face"} for u in analysis.utterances)
        seen.append(probabilities_of(analysis))
    for index, one in enumerate(seen):
        for other in seen[index + 1 :]:
            assert np.abs(one - other).max() > 1e-6


def test_faces_are_read_where_there_are_some(mechm_data: Path, pipeline: Pipeline) -> None:
    picture = next((mechm_data / "media").glob("faces_*.jpg"))
    analysis = pipeline.analyze(Conversation("p", (Utterance(1, media=picture),)))
    (utterance,) = analysis.utterances
    assert utterance.modalities == ("face", "scene")
    assert utterance.missing == {"text": "no words known", "audio": "no audio track"}


def test_text_alone_never_decodes(tiny_bundle: Path, tmp_path: Path) -> None:
    """The recording does not even exist."""
    only = Pipeline.from_bundle(tiny_bundle, modalities=("text",), engine=ONE_THREAD)
    conversation = spoken(*TEXTS, media=tmp_path / "gone.mp4")
    analysis = only.analyze(conversation)
    assert_sound(analysis, conversation, only)
    assert all(u.missing == {} for u in analysis.utterances)
    assert "decode" not in analysis.timings_ms


def test_sound_alone_asks_for_no_pictures(tiny_bundle: Path, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    iterate = MediaReader.iter_segments

    def watched(self: MediaReader, path: Path, spans: Sequence[tuple[float, float]], *, n_frames: int = 3) -> Any:
        asked.append(n_frames)
        return iterate(self, path, spans, n_frames=n_frames)

    monkeypatch.setattr(MediaReader, "iter_segments", watched)
    only = Pipeline.from_bundle(tiny_bundle, modalities=("audio", "text"), engine=ONE_THREAD)
    analysis = only.analyze(spoken(*TEXTS, media=media / "both.mp4"))
    assert asked == [0]
    assert all(u.missing == {} for u in analysis.utterances)


def test_what_the_weights_did_not_learn_from_is_read_only_if_asked_to(tiny_bundle: Path, media: Path) -> None:
    bundle = replace(open_bundle(tiny_bundle), learned=("text", "audio", "face"))
    by_default = Pipeline(bundle, engine=ONE_THREAD)
    assert by_default.modalities == ("text", "audio", "face")
    conversation = spoken(*TEXTS, media=media / "both.mp4")
    analysis = by_default.analyze(conversation)
    assert "scene" not in analysis.timings_ms
    assert {u.modalities for u in analysis.utterances} == {("text", "audio")}
    asked = Pipeline(bundle, modalities=MODALITIES, engine=ONE_THREAD).analyze(conversation)
    assert {u.modalities for u in asked.utterances} == {("text", "audio", "scene")}
    scenes_alone = replace(bundle, parts={name: bundle.parts[name] for name in ("scene", "fusion")})
    assert Pipeline(scenes_alone, engine=ONE_THREAD).modalities == ("scene",)


@pytest.mark.parametrize("chosen", [("text", "smell"), ("Text",), ("",)])
def test_an_unknown_modality_is_refused(chosen: tuple[str, ...], tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="unknown modality") as refused:
        Pipeline.from_bundle(tiny_bundle, modalities=chosen)
    assert refused.value.hint == "choose from text, audio, face, scene"


def test_no_modality_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="no modality"):
        Pipeline.from_bundle(tiny_bundle, modalities=())


# Clips


def with_clips(*clips: Path | None) -> Conversation:
    plain = spoken(*TEXTS[: len(clips)])
    return replace(
        plain, utterances=tuple(replace(u, media=clip) for u, clip in zip(plain.utterances, clips, strict=True))
    )


def test_a_broken_clip_costs_its_own_utterance_only(pipeline: Pipeline, media: Path, tmp_path: Path) -> None:
    broken = tmp_path / "dia1utt2.mp4"
    broken.write_bytes((media / "both.mp4").read_bytes()[:900])
    conversation = with_clips(media / "both.mp4", broken, None, tmp_path / "gone.mp4")
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    whole, half, none, gone = analysis.utterances
    assert whole.modalities == ("text", "audio", "scene")
    for utterance, words in ((half, broken.name), (none, "no clip"), (gone, "gone.mp4")):
        assert utterance.modalities == ("text",)
        assert set(utterance.missing) == {"audio", "face", "scene"}
        assert all(words in reason for reason in utterance.missing.values())
        assert not any(str(tmp_path) in reason for reason in utterance.missing.values())


def test_a_clip_is_its_span_of_the_recording(pipeline: Pipeline, media: Path) -> None:
    """Two entry points to the same sound: a clip of an utterance, and a recording that holds nothing else."""
    clip = pipeline.analyze(with_clips(media / "voice.wav"))
    recording = pipeline.analyze(spoken(TEXTS[0], media=media / "voice.wav", seconds=2.0))
    assert np.abs(probabilities_of(clip) - probabilities_of(recording)).max() < 1e-6


def test_an_own_clip_goes_before_the_recording(pipeline: Pipeline, media: Path) -> None:
    timed = spoken(*TEXTS[:2], media=media / "both.mp4")
    first, second = timed.utterances
    mixed = replace(timed, utterances=(replace(first, media=media / "voice.wav"), second))
    progress: list[tuple[str, int, int]] = []
    analysis = pipeline.analyze(mixed, progress=lambda *step: progress.append(step))
    assert_sound(analysis, mixed, pipeline)
    assert [u.modalities for u in analysis.utterances] == [("text", "audio"), ("text", "audio", "scene")]
    assert analysis.utterances[0].missing == {"face": "no video track", "scene": "no video track"}
    assert [step for step in progress if step[0] == "media"] == [("media", 1, 2), ("media", 2, 2)]


# Refusals


def test_nothing_to_analyse_is_refused(pipeline: Pipeline, media: Path) -> None:
    with pytest.raises(InputError, match="nothing to analyse") as refused:
        pipeline.analyze(spoken(None, ""))
    assert refused.value.exit_code == 2
    assert refused.value.hint
    broken = media / "broken.mp4"
    broken.write_bytes(b"no media")
    with pytest.raises(InputError, match=r"nothing to analyse .*broken\.mp4"):
        pipeline.analyze(Conversation("c", (Utterance(1, media=broken),)))


@pytest.mark.parametrize("seconds", [0.7, 100.0])
def test_times_past_the_recording_are_refused(seconds: float, pipeline: Pipeline, media: Path) -> None:
    with pytest.raises(InputError, match=r"the recording at 2\.0") as refused:
        pipeline.analyze(spoken(*TEXTS, media=media / "voice.wav", seconds=seconds))
    assert "another recording" in refused.value.hint


def test_times_a_little_past_the_recording_are_clocks(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken(*TEXTS, media=media / "voice.wav", seconds=0.6)
    analysis = pipeline.analyze(conversation)
    assert all(u.modalities == ("text", "audio") for u in analysis.utterances)


def test_a_broken_recording_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "call.wav").write_bytes(b"RIFF")
    with pytest.raises(MediaError, match=r"call\.wav"):
        pipeline.analyze(spoken(*TEXTS, media=tmp_path / "call.wav"))


def test_a_recording_without_times_gives_its_words(pipeline: Pipeline, media: Path) -> None:
    timed = spoken(*TEXTS[:2], media=media / "both.mp4")
    first, second = timed.utterances
    conversation = replace(timed, utterances=(first, replace(second, start_s=None, end_s=None)))
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    assert analysis.utterances[0].modalities == ("text", "audio", "scene")
    assert analysis.utterances[1].missing == dict.fromkeys(("audio", "face", "scene"), "the transcript gives no times")


def test_a_precision_that_is_not_there_is_refused_at_once(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(BundleError, match="no fp16 file of its audio part") as refused:
        Pipeline(bundle, precisions={"audio": "fp16"})
    assert refused.value.hint == "it has fp32, int8"
    with pytest.raises(BundleError, match="its vision part"):
        Pipeline(bundle, precisions={"vision": "int8"})


def test_a_bundle_without_a_part_serves_what_it_can(tiny_bundle: Path, media: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    lacking = replace(bundle, parts={name: part for name, part in bundle.parts.items() if name != "audio"})
    pipeline = Pipeline(lacking, engine=ONE_THREAD)
    assert pipeline.modalities == ("text", "face", "scene")
    analysis = pipeline.analyze(spoken(*TEXTS, media=media / "both.mp4"))
    assert {u.modalities for u in analysis.utterances} == {("text", "scene")}
    with pytest.raises(BundleError, match="no audio part") as refused:
        Pipeline(lacking, modalities=("audio", "text"))
    assert refused.value.hint == "it reads text, face, scene"


@pytest.mark.parametrize("name", [TOKENIZER_FILE, "onnx/detector.fp32.onnx"])
def test_an_unlisted_file_is_not_used_though_it_lies_there(name: str, tiny_bundle: Path, media: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    files = {listed: facts for listed, facts in bundle.manifest["files"].items() if listed != name}
    forged = replace(bundle, manifest={**bundle.manifest, "files": files})
    with pytest.raises(BundleError, match=f"lists no {name}"):
        Pipeline(forged, engine=ONE_THREAD).analyze(spoken(*TEXTS, media=media / "both.mp4"))


def test_no_tokenizer_is_needed_where_no_text_is_read(tiny_bundle: Path, media: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    wordless = replace(bundle, parts={name: part for name, part in bundle.parts.items() if name != "text"})
    pipeline = Pipeline(wordless, modalities=("audio",), engine=ONE_THREAD)
    assert pipeline.analyze(spoken(*TEXTS, media=media / "voice.wav")).utterances[0].modalities == ("audio",)


# The same answer again


def test_it_answers_the_same_twice(pipeline: Pipeline, tiny_bundle: Path, media: Path) -> None:
    conversation = spoken(*TEXTS, media=media / "both.mp4")
    once = answer_of(pipeline.analyze(conversation))
    assert answer_of(pipeline.analyze(conversation)) == once
    again = Pipeline(replace(open_bundle(tiny_bundle), decision=pipeline.bundle.decision), engine=ONE_THREAD)
    assert answer_of(again.analyze(conversation)) == once


def test_eight_threads_share_a_pipeline(tiny_bundle: Path, pipeline: Pipeline, media: Path) -> None:
    """Also the encoders that the first recording loads are loaded once and right."""
    fresh = Pipeline(pipeline.bundle, engine=ONE_THREAD)
    conversations = [
        spoken(*TEXTS[: 1 + k % 4], media=media / ("both.mp4", "voice.wav", "silent.mp4")[k % 3] if k % 4 else None)
        for k in range(16)
    ]
    expected = [answer_of(pipeline.analyze(conversation)) for conversation in conversations]
    with ThreadPoolExecutor(8) as pool:
        answers = [answer_of(analysis) for analysis in pool.map(fresh.analyze, conversations)]
    assert answers == expected


def test_awaiting_it_gives_the_same_and_the_loop_goes_on(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken(*TEXTS, media=media / "both.mp4")

    async def ask() -> tuple[Analysis, int]:
        ticks = 0
        task = asyncio.create_task(pipeline.analyze_async(conversation))
        while not task.done():
            await asyncio.sleep(0.002)
            ticks += 1
        return await task, ticks

    answer, ticks = asyncio.run(ask())
    assert answer_of(answer) == answer_of(pipeline.analyze(conversation))
    assert ticks > 5


def test_an_error_reaches_who_awaits_it(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match="nothing to analyse"):
        asyncio.run(pipeline.analyze_async(Conversation("c", (Utterance(1, "A", None),))))


def test_speakers_and_order_matter(pipeline: Pipeline) -> None:
    plain = probabilities_of(pipeline.analyze(spoken(*TEXTS)))
    backwards = probabilities_of(pipeline.analyze(spoken(*reversed(TEXTS))))
    assert np.abs(plain - backwards[::-1]).max() > 1e-4
    alone = replace(spoken(*TEXTS), utterances=tuple(replace(u, speaker="A") for u in spoken(*TEXTS).utterances))
    assert np.abs(plain - probabilities_of(pipeline.analyze(alone))).max() > 1e-4


def test_precisions_answer_alike_and_not_equally(tiny_bundle: Path) -> None:
    answers = []
    for precision in ("fp32", "int8"):
        pipeline = Pipeline.from_bundle(tiny_bundle, precision=precision, engine=ONE_THREAD)
        answers.append(probabilities_of(pipeline.analyze(spoken(*TEXTS))))
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.05


# Long conversations


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("int8", 0.1)])
@pytest.mark.parametrize("n", [12, 13, 17, 30])
def test_a_window_scores_as_if_it_were_all(
    n: int, precision: str, atol: float, pipeline: Pipeline, request: pytest.FixtureRequest
) -> None:
    """An utterance of a long conversation gets the scores that it has in its window alone.

    They differ from those of one window over everything: what lies outside of the window is not seen. In int8 one
    scale serves a whole batch, so that windows which are run together blur each other a little.
    """
    if precision == "int8":
        request.getfixturevalue("exact_int8")
    part = pipeline.bundle.parts["fusion"]
    sizes, engine = pipeline.bundle.fusion, OnnxRuntimeEngine(pipeline.bundle.path(part.files[precision]), ONE_THREAD)
    random = np.random.default_rng(n)
    inputs = FusionInputs.absent([Utterance(k + 1, "ABC"[k % 3]) for k in range(n)], sizes)
    for item in fields(inputs):
        values = getattr(inputs, item.name)
        if values.dtype == np.float32:
            values[:] = random.normal(size=values.shape)
        elif values.dtype == bool:
            values[:] = random.random(values.shape) < 0.7
    long = run_fusion(engine, inputs, sizes)
    assert len(long.emotion_logits) == n
    for first, last, core_first, core_last in window_spans(n, sizes.window, sizes.window_context):
        own = FusionInputs(**{item.name: getattr(inputs, item.name)[first:last] for item in fields(inputs)})
        alone = run_fusion(engine, own, sizes)
        core, inside = slice(core_first, core_last), slice(core_first - first, core_last - first)
        assert np.abs(long.emotion_logits[core] - alone.emotion_logits[inside]).max() < atol
        assert np.abs(long.pair_logits[core, : last - first] - alone.pair_logits[inside]).max() < atol
        assert np.isneginf(long.pair_logits[core, last - first :]).all()
        assert (long.first_cause[core] == first).all()


def test_5000_utterances_take_seconds(pipeline: Pipeline) -> None:
    conversation = spoken(*(f"This is the number {k}, and it surprised nobody at all." for k in range(5000)))
    progress: dict[str, list[int]] = {}
    start_s = time.monotonic()
    analysis = pipeline.analyze(
        conversation, progress=lambda stage, done, _: progress.setdefault(stage, []).append(done)
    )
    assert time.monotonic() - start_s < 20
    assert_sound(analysis, conversation, pipeline)
    assert list(progress) == ["text", "fusion"]
    for steps in progress.values():
        assert steps == sorted(steps)
        assert steps[-1] == 5000
        assert len(steps) > 20
    reach = pipeline.bundle.fusion.window
    assert all(abs(p.emotion_utterance - p.cause_utterance) < reach for p in analysis.pairs)
    assert {p.emotion_utterance > 4000 for p in analysis.pairs} == {True, False}


def test_text_read_a_few_windows_at_a_time_is_the_text(pipeline: Pipeline) -> None:
    """Against all windows read in one go and pooled together."""
    bundle = pipeline.bundle
    engine = OnnxRuntimeEngine(bundle.path(bundle.parts["text"].files["fp32"]), ONE_THREAD)
    tokenizer = ConversationTokenizer(bundle.path(TOKENIZER_FILE), bundle.text)
    utterances = spoken(*(f"Number {k} says that it is the number {k}." if k % 7 else "" for k in range(70))).utterances
    windows = tokenizer(utterances)
    assert len(windows.input_ids) > 2 * TEXT_WINDOWS_PER_RUN
    feeds = {"input_ids": windows.input_ids, "attention_mask": windows.attention_mask}
    inputs = FusionInputs.absent(utterances, bundle.fusion)
    TextEncoder(tokenizer, engine).encode(utterances, inputs)
    expected = pool_utterances(engine.run(feeds)["last_hidden_state"], windows)
    assert np.abs(inputs.text - expected).max() < 1e-5
    assert np.array_equal(inputs.text_mask, [k % 7 != 0 for k in range(70)])


@pytest.mark.parametrize("cuts", [[700], [300, 301, 900], [1, 2, 3]])
def test_pieces_of_a_voice_are_the_voice(cuts: list[int]) -> None:
    """Mean and deviation of the pieces, weighted by length, are those of the whole."""
    states = np.random.default_rng(0).normal(3.0, 2.0, (4, 1000, 6)) * np.linspace(0.1, 3, 1000)[:, None]

    def statistics(piece: np.ndarray) -> np.ndarray:
        return np.concatenate([piece.mean(1), piece.std(1)], -1).astype(np.float32)

    pieces = np.split(states, cuts, 1)
    merged = merge_pieces([VoicePiece(statistics(piece), piece.shape[1]) for piece in pieces])
    assert merged.dtype == np.float32
    assert np.abs(merged - statistics(states)).max() < 1e-5
    assert np.array_equal(merge_pieces([VoicePiece(statistics(states), 5)]), statistics(states))


class Framewise:
    """A speech encoder that looks at each frame by itself, so that cutting loses nothing."""

    def __init__(self) -> None:
        self.n_frames: list[int] = []

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        (mel,), (n_frames,) = inputs["mel"], inputs["mel_frames"]
        assert mel.shape[1] == n_frames
        self.n_frames.append(int(n_frames))
        return {"audio_tokens": np.concatenate([mel.mean(1), mel.std(1)])[None, None]}


@pytest.mark.parametrize("seconds", [29.99, 30.0, 30.01, 95.0])
def test_a_long_utterance_is_read_in_pieces_of_about_equal_length(seconds: float, pipeline: Pipeline) -> None:
    sizes = replace(pipeline.bundle.fusion, audio_tokens=1, audio_width=160)
    inputs, engine = FusionInputs.absent([Utterance(1)], sizes), Framewise()
    # The loudest moment sets each piece's floor, so every piece gets one: noise that never rests.
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * 16_000)).astype(np.float32)
    assert VoiceEncoder(pipeline.bundle.log_mel, engine).encode(0, samples, inputs) == ""
    assert len(engine.n_frames) == math.ceil(len(samples) / (160 * MAX_MEL_FRAMES))
    assert max(engine.n_frames) <= MAX_MEL_FRAMES
    assert max(engine.n_frames) - min(engine.n_frames) <= 1
    mel = log_mel_spectrogram(samples, pipeline.bundle.log_mel)
    assert np.abs(inputs.audio[0, 0] - np.concatenate([mel.mean(1), mel.std(1)])).max() < 5e-3


@pytest.mark.parametrize(
    ("samples", "words"), [(np.ones(399, np.float32), "25 ms"), (np.zeros(16_000, np.float32), "silence")]
)
def test_what_is_no_voice_is_not_read(samples: np.ndarray, words: str, pipeline: Pipeline) -> None:
    inputs = FusionInputs.absent([Utterance(1)], pipeline.bundle.fusion)
    engine = Framewise()
    assert words in VoiceEncoder(pipeline.bundle.log_mel, engine).encode(0, samples, inputs)
    assert not inputs.audio_mask.any()
    assert engine.n_frames == []


# What comes out


def test_json_keeps_everything_under_stable_names(pipeline: Pipeline, media: Path) -> None:
    conversation = spoken('Wir haben gewonnen – "endlich"!\n', None, *TEXTS, media=media / "voice.wav", seconds=0.3)
    analysis = pipeline.analyze(conversation)
    read = json.loads(analysis.to_json())
    assert read == json.loads(analysis.to_json(indent=2)) == json.loads(json.dumps(asdict(analysis)))
    assert list(read) == ["conversation_id", "utterances", "pairs", "timings_ms", "bundle_id", "notes", "late_ms"]
    assert list(read["utterances"][0]) == [
        "id", "speaker", "text", "start_s", "end_s", "emotion", "probabilities", "modalities", "missing"
    ]  # fmt: skip
    assert list(read["utterances"][0]["probabilities"]) == list(EMOTIONS)
    assert read["utterances"][0]["text"] == conversation.utterances[0].text
    assert analysis.pairs
    assert list(read["pairs"][0]) == ["emotion_utterance", "emotion", "cause_utterance", "probability"]
    assert read["bundle_id"] == pipeline.bundle_id
    assert all(value >= 0 for value in read["timings_ms"].values())


def test_the_default_bundle_serves(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHM_BUNDLE", str(tiny_bundle))
    assert Pipeline.from_bundle().bundle_id == Pipeline.from_bundle(str(tiny_bundle)).bundle_id


def test_a_changed_bundle_does_not_load(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    with (folder / TOKENIZER_FILE).open("r+b") as stream:
        stream.seek(100)
        stream.write(b"~")
    with pytest.raises(BundleError, match="was changed"):
        Pipeline.from_bundle(folder)


def test_public_names_load_on_use(fresh_python: Any) -> None:
    done = fresh_python(
        "import sys, mechm_runtime\n"
        "assert 'numpy' not in sys.modules and 'Pipeline' in dir(mechm_runtime)\n"
        "from mechm_runtime import Conversation, Utterance\n"
        "assert 'numpy' not in sys.modules\n"
        "from mechm_runtime import Pipeline\n"
        "assert mechm_runtime.Pipeline is Pipeline and 'numpy' in sys.modules"
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Piepline'"):
        mechm_runtime.Piepline  # type: ignore[attr-defined]  # noqa: B018


# With trained weights


@pytest.mark.weights
def test_the_sample_makes_sense(small_bundle: Path, repository: Path) -> None:
    """The shipped weights hear more than neutral in the shipped sample, find its faces, and name causes nearby."""
    pipeline = Pipeline.from_bundle(small_bundle)
    sample = repository / "sample" / "conversation.mp4"
    (conversation,) = read_transcript(sample.with_suffix(".srt"), media=sample)
    analysis = pipeline.analyze(conversation)
    assert_sound(analysis, conversation, pipeline)
    assert all({"text", "audio"} <= set(u.modalities) <= {"text", "audio", "face"} for u in analysis.utterances)
    assert len({u.emotion for u in analysis.utterances}) >= 3
    assert analysis.pairs
    near = [p for p in analysis.pairs if 0 <= p.emotion_utterance - p.cause_utterance <= 3]
    assert len(near) >= 0.8 * len(analysis.pairs)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("text", "emotion"),
    [
        ("Oh my God! This is the best day of my life, I am so happy!", "joy"),
        ("How dare you! Get out of my house, you liar!", "anger"),
        ("She died last night. I miss her so much.", "sadness"),
        ("The meeting is on Tuesday at ten.", "neutral"),
    ],
)
def test_plain_words_get_plain_labels(text: str, emotion: str, small_bundle: Path) -> None:
    pipeline = Pipeline.from_bundle(small_bundle, modalities=("text",))
    conversation = Conversation("c", (Utterance(1, "Anna", "Hello."), Utterance(2, "Ben", text)))
    (_, utterance) = pipeline.analyze(conversation).utterances
    assert utterance.emotion == emotion, utterance.probabilities
