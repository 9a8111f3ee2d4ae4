"""Measures answers that are given while a conversation goes on: scores at once, at the end, and of the whole.

    python benchmarks/streaming.py --bundle DIR --gold ecf/dev.txt

Each conversation goes through a session utterance by utterance, text alone. `at once` are the answers given right after
each utterance; `at the end` the answers after all revisions; `whole` is `Pipeline.analyze` on all of it. Limit to
expect: an answer at once cannot use later utterances, which `whole` does; `at the end` can come close to `whole`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import track

from mechm.evaluation import score_emotions, score_pairs
from mechm_runtime import EngineConfig, LabelledConversation, Pair, Pipeline, SessionConfig, open_bundle, read_labelled

Answers = dict[str, tuple[list[str | None], list[Pair]]]
"""Emotions and pairs by conversation."""


def main() -> None:
    """Stream every conversation with each configuration and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--gold", type=Path, required=True, help="annotated conversations")
    parser.add_argument("--llm", choices=["none", "onnx"], default="onnx")
    parser.add_argument("--text-tokens", type=int, nargs="+", default=[SessionConfig().text_tokens])
    parser.add_argument("--revised-turns", type=int, nargs="+", default=[SessionConfig().revised_turns])
    parser.add_argument("--asked-below", type=float, default=None, help="default: the bundle's own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first conversations")
    given = parser.parse_args()
    labelled = read_labelled(given.gold)[: given.limit]
    pipeline = Pipeline(
        open_bundle(given.bundle),
        engine=EngineConfig(n_threads=given.threads),
        llm=given.llm,
        asked_below=given.asked_below if given.llm == "onnx" else None,
    )
    print(
        f"{given.gold.name}, {len(labelled)} conversations, text, llm {given.llm}; "
        f"onnxruntime {version('onnxruntime')}, {given.threads} threads, {platform.machine()}; {pipeline.bundle_id}"
    )
    print(f"{'':34}{'weighted F1':>12}{'accuracy':>10}{'ms p50':>9}{'p99':>8}{'revised':>9}")
    rows = []
    whole: Answers = {}
    times = []
    for one in track(labelled, "whole", transient=True):
        analysis = pipeline.analyze(one.conversation)
        whole[one.conversation.id] = [u.emotion for u in analysis.utterances], list(analysis.pairs)
        times.append(analysis.timings_ms["total"])
    rows.append(row("whole", labelled, whole, times, None))
    for text_tokens in given.text_tokens:
        for revised in given.revised_turns:
            config = SessionConfig(text_tokens=text_tokens, revised_turns=revised)
            at_once, at_the_end, times, n_revisions = stream(pipeline, labelled, config)
            name = f"{text_tokens} tokens, {revised} asked again"
            rows.append(row(f"{name}, at once", labelled, at_once, times, n_revisions))
            rows.append(row(f"{name}, at the end", labelled, at_the_end, times, n_revisions))
    print(json.dumps(rows))


def stream(
    pipeline: Pipeline, labelled: Sequence[LabelledConversation], config: SessionConfig
) -> tuple[Answers, Answers, list[float], int]:
    """Stream one conversation; returns answers at once and at the end, milliseconds per utterance, and revisions."""
    at_once: Answers = {}
    at_the_end: Answers = {}
    times: list[float] = []
    n_revisions = 0
    for one in track(labelled, f"{config.text_tokens}/{config.revised_turns}", transient=True):
        session = pipeline.open_session(one.conversation.id, config=config)
        emotions: dict[int, str | None] = {}
        pairs: dict[int, tuple[Pair, ...]] = {}
        first: tuple[list[str | None], list[Pair]] = ([], [])
        for utterance in one.conversation.utterances:
            update = session.append(utterance)
            times.append(update.timings_ms["total"])
            first[0].append(update.utterance.emotion)
            first[1].extend(update.pairs)
            emotions[utterance.id], pairs[utterance.id] = update.utterance.emotion, update.pairs
            for revision in update.revisions:
                n_revisions += 1
                emotions[revision.utterance.id], pairs[revision.utterance.id] = (
                    revision.utterance.emotion,
                    revision.pairs,
                )
        at_once[one.conversation.id] = first
        at_the_end[one.conversation.id] = list(emotions.values()), [pair for found in pairs.values() for pair in found]
    return at_once, at_the_end, times, n_revisions


def row(
    name: str, labelled: Sequence[LabelledConversation], found: Answers, times: list[float], n_revisions: int | None
) -> dict[str, object]:
    """Print one row of the table."""
    f1 = score_pairs(labelled, {key: pairs for key, (_, pairs) in found.items()}).weighted.f1
    accuracy = score_emotions(labelled, {key: emotions for key, (emotions, _) in found.items()}).accuracy
    p50, p99 = np.percentile(times, [50, 99])
    revised = None if n_revisions is None else n_revisions / len(times)
    shown = "" if revised is None else f"{revised:.2f}"
    print(f"{name:34}{f1:12.4f}{accuracy:10.4f}{p50:9.1f}{p99:8.1f}{shown:>9}", flush=True)
    return {
        "answers": name,
        "weighted_f1": round(f1, 4),
        "emotion_accuracy": round(accuracy, 4),
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "revisions_an_utterance": None if revised is None else round(revised, 3),
    }


if __name__ == "__main__":
    main()
