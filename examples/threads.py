"""One pipeline serves many threads: `python examples/threads.py [BUNDLE]`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from mechm_runtime import Conversation, Pipeline, Utterance

TALKS = [
    Conversation(f"talk {n}", (Utterance(1, "Ana", f"I got {n} offers!"), Utterance(2, "Ben", "Congratulations!")))
    for n in range(8)
]


def main() -> None:
    """Analyse some conversations in four threads."""
    with (
        Pipeline.from_bundle(sys.argv[1] if len(sys.argv) > 1 else None) as pipeline,
        ThreadPoolExecutor(4) as pool,
    ):
        for analysis in pool.map(pipeline.analyze, TALKS):
            print(analysis.conversation_id, [utterance.emotion for utterance in analysis.utterances])


if __name__ == "__main__":
    main()
