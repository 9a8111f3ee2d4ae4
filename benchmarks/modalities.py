"""Measures the gain from a matching voice or face and the loss from a wrong one: weighted F1 and emotion accuracy.

    python benchmarks/modalities.py --conversations ecf/dev.txt --speech emodb [--frames FILE ...] [--trained DIR]
        [--llm DIR]

ECF has no recordings here, so voices are real recordings of the annotated emotion (or of any emotion: "random"), and
faces are simulated, as in training (`mechm.data.simulated_modalities`). The speakers of the voices are unknown to the
voice head: it is fitted again on the other speakers, and no other part learns from recordings. The gain from matching
voices is an upper bound, since acted speech is unusually clear; the loss from random ones is the important number. With
--frames the scene encoder reads frames of those recordings or pictures, and each utterance gets some of them at random:
the effect of real frames on weights that were not trained on any. With --llm the Llama gets the same audio and faces
(`mechm.llm.projection`) and both are combined as in a bundle; audio alone gives it no text to read. Torch, fp32.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mechm.data.batches import group_by_size, make_batch
from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.llm.combination import read_combination
from mechm.llm.projection import Projection, speakers_of
from mechm.llm.scorer import AnswerScores, load_merged
from mechm.llm.stored_projector import load_projector
from mechm.model.build import (
    build_audio_encoder,
    build_network,
    build_scene_encoder,
    load_trained,
    pretrained_folder,
)
from mechm.model.config import SMALL
from mechm.model.inputs import NonverbalInputs
from mechm.model.network import Network
from mechm.model.preprocessing import scene_config
from mechm.training.calibration import ScoredConversation
from mechm.training.combination import combined
from mechm.training.fusion import decision_scores
from mechm.training.llm import score_with_llama
from mechm.training.speech import N_COPIES, read_speech, read_speech_corpus, speech_lines
from mechm.training.voice_head import VoiceConfig, fit_voice
from mechm.weights import weights_path
from mechm_runtime import InputError, LabelledConversation, MediaReader, read_labelled
from mechm_runtime.analysis.decoding import STILL_S
from mechm_runtime.bundle.config import QuestionConfig, TextConfig
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import SoftTokens
from mechm_runtime.modalities.frame_pixels import scene_pixels
from mechm_runtime.modalities.text_windows import ConversationTokenizer

CASES = {
    "text": (("text",), 0.0),
    "text + matching voice": (("text", "audio"), 0.0),
    "text + random voice": (("text", "audio"), 1.0),
    "text + matching faces": (("text", "face"), 0.0),
    "text + random faces": (("text", "face"), 1.0),
    "text + random frames": (("text", "scene"), 1.0),
    "matching voice alone": (("audio",), 0.0),
}
"""By name: modalities, and the share of wrong voices and faces."""
FRAMES_A_FILE = 16


class Llama:
    """A trained Llama with its soft tokens, and its combination with the fusion."""

    def __init__(self, adapter: Path, fusion: Path, network: Network) -> None:
        fitted = read_combination(adapter, fusion)
        self.combination, self.decision = fitted.combination, fitted.decision
        projector, base = load_projector(adapter, fusion), weights_path("llm")
        questions = QuestionConfig(soft_tokens=projector.config.n_tokens)
        self._tokenizer = QuestionTokenizer(base / "tokenizer.json", questions)
        self._scores = AnswerScores(load_merged(base, adapter), self._tokenizer)
        self._projection = Projection(network.fusion, network.config.text.hidden_size, projector)

    def read(self, group: Sequence[LabelledConversation], evidence: NonverbalInputs) -> list[ScoredConversation]:
        """Scores of a group of conversations with the given modalities."""
        with torch.inference_mode():
            tokens, evident = self._projection(evidence, *speakers_of([one.conversation for one in group]))
        soft = [
            SoftTokens(tokens[b, :n].numpy(), evident[b, :n].numpy())
            for b, n in enumerate(len(one.emotions) for one in group)
        ]
        return score_with_llama(self._scores, self._tokenizer, group, soft)


def read_frames(paths: Sequence[Path]) -> npt.NDArray[np.float32]:
    """Scene tokens of frames of recordings or pictures, float32 (frames, scene width)."""
    encoder, config = build_scene_encoder(SMALL, weights_path("scene")), scene_config(SMALL)
    tokens = []
    with MediaReader() as reader, torch.inference_mode():
        for path in paths:
            span = (0.0, reader.probe(path).duration_s or STILL_S)
            for segment in reader.read_segments(path, [span], n_frames=FRAMES_A_FILE).segments:
                if segment.frames is None:
                    raise InputError(f"{path.name} has no picture")
                pixels = np.stack([scene_pixels(frame, config) for frame in segment.frames])
                tokens.append(encoder(torch.from_numpy(pixels)).numpy())
    return np.concatenate(tokens)


def main() -> None:
    """Score all cases and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--frames", type=Path, nargs="+", help="recordings or pictures")
    parser.add_argument("--trained", type=Path, default=None)
    parser.add_argument("--llm", type=Path, default=None, help="an adapter with its combination and its projector")
    parser.add_argument(
        "--held-out", nargs="+", default=["13", "14"], help="speakers of the voices, unknown to the voice head"
    )
    parser.add_argument(
        "--copies", type=int, default=N_COPIES, help="degraded copies per recording that the voice head is fitted on"
    )
    given = parser.parse_args()
    folder = weights_path("text")
    network = build_network(SMALL, folder)
    trained = given.trained or pretrained_folder("small")
    decision = load_trained(network, trained)
    tokenizer = ConversationTokenizer(folder / "tokenizer.json", TextConfig())
    labelled = read_labelled(given.conversations)
    corpus = read_speech_corpus(given.speech)
    encoder = build_audio_encoder(SMALL, weights_path("audio"))
    speech, problems = read_speech(corpus.items, encoder, n_copies=given.copies)
    held_out = speech.of(given.held_out)
    fit_voice(network.fusion, speech.select(~held_out), VoiceConfig())
    voices = speech.select(held_out).by_emotion()
    llama = None if given.llm is None else Llama(given.llm, trained, network)
    results = {}
    frames = None if given.frames is None else read_frames(given.frames)
    for name, (modalities, mismatch) in CASES.items():
        if "scene" in modalities and frames is None:
            continue
        config = SimulationConfig(conversation_rate=1.0, utterance_rate=1.0, mismatch=mismatch, text_dropout=0.0)
        sampler, random = SimulatedModalities(SMALL, voices, config), np.random.default_rng(0)
        by_fusion, by_both = [], []
        for group in group_by_size(labelled, 4000):
            batch = make_batch(group, tokenizer)
            drawn, _ = sampler.sample(group, batch.emotions.numpy(), random)
            evidence = NonverbalInputs.absent(SMALL, (len(group), batch.text_mask.shape[1]))
            if "audio" in modalities:
                evidence = replace(evidence, audio=drawn.audio, audio_mask=drawn.audio_mask)
            if "face" in modalities:
                evidence = replace(evidence, face=drawn.face, face_mask=drawn.face_mask)
            if "scene" in modalities and frames is not None:
                shown = frames[random.integers(len(frames), size=evidence.scene_mask.shape)]
                mask = batch.utterance_mask[..., None].expand(evidence.scene_mask.shape)
                evidence = replace(evidence, scene=torch.from_numpy(shown), scene_mask=mask)
            with torch.inference_mode():
                output = network(batch, evidence, None if "text" in modalities else torch.ones_like(batch.text_mask))
            for b, one in enumerate(group):
                n = len(one.emotions)
                by_fusion.append(
                    ScoredConversation(
                        output.emotion_logits[b, :n].numpy(),
                        output.pair_logits[b, :n, :n].numpy(),
                        batch.emotions[b, :n].numpy(),
                        batch.causes[b, :n, :n].numpy().astype(bool),
                    )
                )
            if llama is not None and "text" in modalities:
                by_both += combined(by_fusion[-len(group) :], llama.read(group, evidence), llama.combination)
        results[name] = decision_scores(by_fusion, decision)
        if llama is not None and "text" in modalities:
            results[f"{name}, with the Llama"] = decision_scores(by_both, llama.decision)
    for line in speech_lines(speech, (*corpus.report.problems, *problems)):
        print(line)
    print(
        f"{given.conversations.name}: {len(labelled)} conversations; {held_out.sum()} recordings of speakers left out"
    )
    print(f"torch {torch.__version__} fp32, {platform.machine()}")
    print(f"{'modalities':42}{'weighted F1':>13}{'emotion accuracy':>18}")
    for name, (f1, accuracy) in results.items():
        print(f"{name:42}{f1:13.4f}{accuracy:18.4f}")
    print(json.dumps({name: {"weighted_f1": f1, "emotion_accuracy": a} for name, (f1, a) in results.items()}))


if __name__ == "__main__":
    main()
