"""One pipeline serves an event loop, which is never blocked: `python examples/event_loop.py [BUNDLE]`."""

from __future__ import annotations

import asyncio
import sys

from mechm_runtime import Conversation, Pipeline, Utterance

TALKS = [
    Conversation(f"talk {n}", (Utterance(1, "Ana", f"I got {n} offers!"), Utterance(2, "Ben", "Congratulations!")))
    for n in range(8)
]


async def analyse_all(pipeline: Pipeline) -> None:
    """Analyse some conversations at the same time; one that takes too long is given up by itself."""
    calls = [asyncio.wait_for(pipeline.analyze_async(talk), timeout=60) for talk in TALKS]
    for talk, answer in zip(TALKS, await asyncio.gather(*calls, return_exceptions=True), strict=True):
        if isinstance(answer, BaseException):
            print(talk.id, "failed:", answer)
        else:
            print(talk.id, [utterance.emotion for utterance in answer.utterances])


def main() -> None:
    """Run the loop."""
    with Pipeline.from_bundle(sys.argv[1] if len(sys.argv) > 1 else None) as pipeline:
        asyncio.run(analyse_all(pipeline))


if __name__ == "__main__":
    main()
