"""Measures emotion recognition from the voice alone, for unknown speakers, in clean and degraded recordings.

    python benchmarks/voice.py --speech emodb [--trained DIR] [--out FILE]

Leaves one speaker out at a time: the voice head is fitted on the others with the code of `mechm train fusion --speech`
(`read_speech`, `fit_voice`), then tested on the left-out speaker's recordings, clean and degraded in ten ways. Babble
comes from other speakers, noise is drawn anew. Reports unweighted average recall (UAR) of the head alone, and of the
answer that `mechm analyze` would give: the whole fusion on one utterance without text, then the decision. The fusion's
other weights are trained ones that saw no recording, since text attends to none while the head is fitted. Expect acted
speech to be recognised far better than real conversations, and emotions that differ only in loudness (joy and anger) to
be confused first. Torch, fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mechm.data.augmentation import DEGRADATIONS
from mechm.data.corpora import SpeechRecording
from mechm.model.build import build_audio_encoder, build_network, load_trained, pretrained_folder
from mechm.model.config import SMALL
from mechm.model.fusion import Fusion
from mechm.model.inputs import NonverbalInputs
from mechm.training.speech import (
    N_COPIES,
    SpeechFeatures,
    encode,
    read_samples,
    read_speech,
    read_speech_corpus,
    speech_lines,
)
from mechm.training.voice_head import VoiceConfig, fit_voice
from mechm.weights import weights_path
from mechm_runtime import EMOTIONS
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import decide

Labels = npt.NDArray[np.int64]
CLEAN = "as recorded"


@dataclass(frozen=True, slots=True)
class Heard:
    """Labels of all recordings in one condition, int64 (recordings,): by the head, and by fusion and decision."""

    head: Labels
    fused: Labels


def main() -> None:
    """Measure, print tables and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--trained", type=Path, default=None)
    parser.add_argument("--copies", type=int, default=N_COPIES)
    parser.add_argument("--out", type=Path, default=None, help="also write the JSON line to this file")
    given = parser.parse_args()
    encoder = build_audio_encoder(SMALL, weights_path("audio"))
    corpus = read_speech_corpus(given.speech)
    speech, problems = read_speech(corpus.items, encoder, n_copies=given.copies)
    for line in speech_lines(speech, (*corpus.report.problems, *problems)):
        print(line)
    network = build_network(SMALL, weights_path("text"))
    decision = load_trained(network, given.trained or pretrained_folder("small"))
    config = VoiceConfig()
    heard = leave_one_speaker_out(network.fusion, decision, speech, degraded(corpus.items, encoder, speech), config)
    report(speech, heard, config, given)


def degraded(
    recordings: Sequence[SpeechRecording], encoder: nn.Module, speech: SpeechFeatures
) -> dict[str, npt.NDArray[np.float32]]:
    """Audio tokens by condition, float32 (recordings, audio tokens, audio width)."""
    samples = [s for _, s in read_samples(recordings)[0]]
    features = {CLEAN: speech.tokens[0]}
    for name, degrade in DEGRADATIONS.items():
        tokens = []
        for index, one in enumerate(samples):
            others = [s for s, who in zip(samples, speech.speakers, strict=True) if who != speech.speakers[index]]
            tokens.append(encode(degrade(one, others, np.random.default_rng(10_000 + index)), encoder))
        features[name] = np.stack(tokens)
    return features


def leave_one_speaker_out(
    fusion: Fusion,
    decision: DecisionConfig,
    speech: SpeechFeatures,
    features: dict[str, npt.NDArray[np.float32]],
    config: VoiceConfig,
) -> dict[str, Heard]:
    """Labels of every recording from a head that was fitted without its speaker."""
    n = len(speech.emotions)
    heard = {name: Heard(np.zeros(n, np.int64), np.zeros(n, np.int64)) for name in features}
    for speaker in sorted(set(speech.speakers)):
        left_out = speech.of([speaker])
        fit_voice(fusion, speech.select(~left_out), config)
        for name, tokens in features.items():
            head, fused = listen(fusion, decision, torch.from_numpy(tokens[left_out]))
            heard[name].head[left_out], heard[name].fused[left_out] = head, fused
    return heard


def listen(fusion: Fusion, decision: DecisionConfig, tokens: torch.Tensor) -> tuple[Labels, Labels]:
    """Labels of single utterances without text, by the head, and by fusion and decision.

    tokens: float32 (n, audio tokens, audio width).
    """
    shape = (len(tokens), 1)
    absent = NonverbalInputs.absent(SMALL, shape)
    text, nothing = torch.zeros(*shape, SMALL.text.hidden_size), torch.zeros(shape, dtype=torch.bool)
    with torch.inference_mode():
        opinion = fusion.voice_head((tokens - fusion.audio_mean) / fusion.audio_deviation)
        output = fusion(
            text,
            nothing,
            tokens[:, None],
            ~nothing,
            absent.scene,
            absent.scene_mask,
            absent.face,
            absent.face_mask,
            torch.zeros(shape, dtype=torch.int64),
            ~nothing,
        )
    no_pairs, wordless = np.full((len(tokens), 1), -np.inf), np.zeros(len(tokens), bool)
    labels = decide(output.emotion_logits[:, 0].numpy(), no_pairs, decision, has_text=wordless).labels
    return opinion.argmax(-1).numpy(), labels


def recalls(emotions: Labels, found: Labels) -> dict[str, float]:
    """Recall by emotion."""
    return {EMOTIONS[e]: float((found[emotions == e] == e).mean()) for e in np.unique(emotions).tolist()}


def average_recall(emotions: Labels, found: Labels) -> float:
    """Unweighted average over emotions."""
    return float(np.mean(list(recalls(emotions, found).values())))


def report(speech: SpeechFeatures, heard: dict[str, Heard], config: VoiceConfig, given: argparse.Namespace) -> None:
    """Print the tables and the JSON line."""
    truth = speech.emotions
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"numpy {np.__version__}, torch {torch.__version__} fp32, {machine}; one speaker left out; {config}")
    print(f"\n{'condition':20}{'UAR head':>10}{'UAR fusion':>12}")
    figures = {}
    for name, labels in heard.items():
        figures[name] = {"head": average_recall(truth, labels.head), "fusion": average_recall(truth, labels.fused)}
        print(f"{name:20}{figures[name]['head']:10.3f}{figures[name]['fusion']:12.3f}")
    clean = heard[CLEAN].fused
    names = list(recalls(truth, clean))
    print(
        f"\n{CLEAN}, fusion; rows are what was meant\n{'':10}"
        + "".join(f"{name:>10}" for name in EMOTIONS)
        + "  recall"
    )
    confusion = [[int(((truth == EMOTIONS.index(row)) & (clean == e)).sum()) for e in range(7)] for row in names]
    for name, counts in zip(names, confusion, strict=True):
        print(f"{name:10}" + "".join(f"{count:10}" for count in counts) + f"{recalls(truth, clean)[name]:8.3f}")
    speakers = {s: average_recall(truth[speech.of([s])], clean[speech.of([s])]) for s in sorted(set(speech.speakers))}
    print("\nby speaker: " + ", ".join(f"{speaker} {value:.3f}" for speaker, value in speakers.items()))
    line = json.dumps(
        {
            "uar": figures,
            "recall": recalls(truth, clean),
            "confusion": confusion,
            "speakers": speakers,
            "copies": given.copies,
            "machine": machine,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
    )
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
