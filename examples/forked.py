"""A pipeline that is made once and serves forked processes: `python examples/forked.py [BUNDLE]`.

With one thread an operator the processes share the weights' memory; with more each loads its own when it first needs
them. GPUs do not survive a fork: see `spawned.py`. Forked processes must end as those of multiprocessing do
(`os._exit`): onnxruntime would wait for threads that they have not got.
"""

from __future__ import annotations

import multiprocessing
import sys

from mechm_runtime import Conversation, EngineConfig, Pipeline, Utterance

TALKS = [
    Conversation(f"talk {n}", (Utterance(1, "Ana", f"I got {n} offers!"), Utterance(2, "Ben", "Congratulations!")))
    for n in range(8)
]

pipelines: list[Pipeline] = []
"""The pipeline that processes are forked with; one cannot be sent to a process."""


def emotions(talk: Conversation) -> tuple[str, list[str | None]]:
    """Runs in a forked process."""
    return talk.id, [utterance.emotion for utterance in pipelines[0].analyze(talk).utterances]


def main() -> None:
    """Analyse some conversations in two processes."""
    engine = EngineConfig(n_threads=1)
    pipelines.append(Pipeline.from_bundle(sys.argv[1] if len(sys.argv) > 1 else None, engine=engine))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for name, found in pool.imap(emotions, TALKS):
            print(name, found)


if __name__ == "__main__":
    main()
