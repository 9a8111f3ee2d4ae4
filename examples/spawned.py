"""A pipeline a process, for systems that cannot fork, and for GPUs: `python examples/spawned.py [BUNDLE]`."""

from __future__ import annotations

import multiprocessing
import sys

from mechm_runtime import Conversation, EngineConfig, Pipeline, Utterance

TALKS = [
    Conversation(f"talk {n}", (Utterance(1, "Ana", f"I got {n} offers!"), Utterance(2, "Ben", "Congratulations!")))
    for n in range(8)
]

pipelines: list[Pipeline] = []
"""The pipeline of this process."""


def start(bundle: str | None) -> None:
    """Runs first in each process: one thread, since the processes share the cores already."""
    pipelines.append(Pipeline.from_bundle(bundle, engine=EngineConfig(n_threads=1, n_lanes=1)))


def emotions(talk: Conversation) -> tuple[str, list[str | None]]:
    """Runs in a process."""
    return talk.id, [utterance.emotion for utterance in pipelines[0].analyze(talk).utterances]


def main() -> None:
    """Analyse some conversations in two processes."""
    bundle = sys.argv[1] if len(sys.argv) > 1 else None
    with multiprocessing.get_context("spawn").Pool(2, start, (bundle,)) as pool:
        for name, found in pool.imap(emotions, TALKS):
            print(name, found)


if __name__ == "__main__":
    main()
