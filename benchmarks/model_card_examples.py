"""Prints the answers in the model card's table of failures.

    python benchmarks/model_card_examples.py [BUNDLE]

BUNDLE: a folder; by default the one that `make demo` built. fp32, without the Llama, on the words alone.
"""

from __future__ import annotations

import sys

from mechm_runtime import Conversation, Pipeline, Utterance

TALKS = (
    (("Ana", "Wonderful. Best. Monday. Ever."),),
    (("Ana", "My car broke down again."), ("Ana", "Oh great. Just great.")),
    (
        ("Client", "My mother died in March and I can't get out of bed."),
        ("Clinician", "I am so sorry. That must be terribly sad."),
    ),
    (
        ("Ana", "I have been saving up my pills."),
        ("Ben", "What for?"),
        ("Ana", "I gave my cat to my sister. She will be fine there."),
    ),
)


def main() -> None:
    """Analyse the conversations and print one line per utterance."""
    pipeline = Pipeline.from_bundle(sys.argv[1] if len(sys.argv) > 1 else None, llm="none", precision="fp32")
    print(f"bundle {pipeline.bundle_id}, fp32, no Llama")
    for number, turns in enumerate(TALKS, start=1):
        utterances = tuple(Utterance(i, speaker, text) for i, (speaker, text) in enumerate(turns, start=1))
        for one in pipeline.analyze(Conversation(str(number), utterances)).utterances:
            emotion, probability = max(one.probabilities.items(), key=lambda item: item[1])
            print(f"{emotion:8} {probability:4.0%}  {one.speaker}: {one.text}")


if __name__ == "__main__":
    main()
