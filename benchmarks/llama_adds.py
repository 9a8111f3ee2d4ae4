"""What does the Llama add to the fusion, and for how many milliseconds? Weighted F1 of the task, text alone.

    python benchmarks/llama_adds.py --ecf ecf --adapter runs/llm [--trained DIR]

Both models' decisions and the weights of their combination are fitted on `dev`; `test` only reports. Torch: the fusion
in fp32, the Llama in bf16 with its adapter unmerged and all questions of a conversation in one pass. Milliseconds are
the median over the conversations of `test`, one at a time. The exported graphs are several times faster; the accuracy
is what to look at here.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from mechm.llm.scorer import AnswerScores, load_llama
from mechm.llm.training import score_with_llama
from mechm.model.build import build_network, load_trained, pretrained_folder
from mechm.model.config import SMALL
from mechm.training.calibration import ScoredConversation, fit_decision
from mechm.training.card import split_scores
from mechm.training.combination import combined, fit_combination
from mechm.training.fusion import score_conversations
from mechm.weights import weights_path
from mechm_runtime.questions import QuestionTokenizer
from mechm_runtime.readers import read_labelled
from mechm_runtime.text import ConversationTokenizer, TextConfig
from mechm_runtime.types import LabelledConversation

Score = Callable[[LabelledConversation], ScoredConversation]


def main() -> None:
    """Score dev and test with fusion, Llama and both, and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ecf", type=Path, required=True, help="folder of dev.txt and test.txt")
    parser.add_argument("--adapter", type=Path, required=True, help="what mechm train llm wrote")
    parser.add_argument("--trained", type=Path, default=None, help="default: the shipped fusion")
    given = parser.parse_args()
    splits = {name: read_labelled(given.ecf / f"{name}.txt") for name in ("dev", "test")}
    models = {"fusion": _fusion(given.trained or pretrained_folder("small")), "llama": _llama(given.adapter)}
    scored: dict[str, dict[str, list[ScoredConversation]]] = {split: {} for split in splits}
    milliseconds = {}
    for name, score in models.items():
        for split, labelled in splits.items():
            seconds, scored[split][name] = [], []
            for one in labelled:
                started = time.perf_counter()
                scored[split][name].append(score(one))
                seconds.append(time.perf_counter() - started)
            milliseconds[name] = 1000 * statistics.median(seconds)
    combination = fit_combination(scored["dev"]["fusion"], scored["dev"]["llama"])
    for found in scored.values():
        found["both"] = combined(found["fusion"], found["llama"], combination)
    milliseconds["both"] = milliseconds["fusion"] + milliseconds["llama"]
    results = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; {combination}")
    print(f"{'':8}{'split':6}{'weighted F1':>13}{'micro F1':>10}{'emotion accuracy':>18}{'ECE':>8}{'ms':>8}")
    for name in ("fusion", "llama", "both"):
        decision = fit_decision(scored["dev"][name])
        for split, labelled in splits.items():
            r = split_scores(labelled, scored[split][name], decision)
            print(
                f"{name:8}{split:6}{r['weighted_f1']:13.4f}{r['micro_f1']:10.4f}{r['emotion_accuracy']:18.4f}"
                f"{r['calibration_error']['emotion']:8.4f}{milliseconds[name]:8.1f}"
            )
            results[f"{name} {split}"] = {**r, "milliseconds": round(milliseconds[name], 1)}
    print(json.dumps(results))


def _fusion(folder: Path) -> Score:
    text = weights_path("text")
    network = build_network(SMALL, text)
    load_trained(network, folder)
    tokenizer = ConversationTokenizer(text / "tokenizer.json", TextConfig())
    return lambda one: score_conversations(network, tokenizer, [one])[0]


def _llama(adapter: Path) -> Score:
    base = weights_path("llm")
    tokenizer = QuestionTokenizer(base / "tokenizer.json")
    scores = AnswerScores(PeftModel.from_pretrained(load_llama(base, torch.bfloat16), adapter), tokenizer)
    return lambda one: score_with_llama(scores, tokenizer, [one])[0]


if __name__ == "__main__":
    main()
