"""Measures the Llama's answers by generating and by scoring: packed, one by one, in the graph and on a server.

    mechm export llm --bundle DIR && mechm serve llm --bundle DIR &
    mechm export bundle --engine onnxruntime --engine openvino --out DIR
    python benchmarks/llama_serving.py --bundle DIR --conversations ecf/test.txt --url http://127.0.0.1:8000

Four questions on each conversation of ten utterances, in turns on the same conversations, with one thread. A question
asks for an emotion and its causes. The original way is that of MER-MCE and similar systems: transformers' generate,
greedy, 20 tokens, one question at a time, here with the same merged weights; the generated text is ignored, since this
Llama was trained to be scored. New conversations are reported separately from known ones, whose tokens are in the
server's cache or among the graph's keys and values: those matter for conversations that grow, new ones for everything
else. Last, the newest utterance of a growing conversation, with its start known or not. Accuracy: `mechm evaluate
--llm ...`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm.bench.rivals.generators import ServerGenerator, TransformersGenerator, generation_prompt
from mechm_runtime import Bundle, EngineConfig, EngineName, ServerConfig, Utterance, open_bundle, read_labelled
from mechm_runtime.bundle.manifest import LLAMA
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.load import load_engine
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import graph_inputs
from mechm_runtime.llm.vllm.client import VllmClient

UTTERANCES = 10
QUESTIONS = 4
TURNS = (5, 20, 50)
REPEATS = 5
KNOWN = "conversation known"
"""For systems that cache earlier tokens: a server's prefix cache, the graph's keys and values."""

Ask = Callable[[Sequence[Utterance], list[int]], Any]


def main() -> None:
    """Time every system on every conversation and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="default: the one that make demo built")
    parser.add_argument("--conversations", type=Path, required=True)
    parser.add_argument("--url", default=None, help="a server that `mechm serve llm` started with this bundle")
    parser.add_argument("--limit", type=int, default=12, help="conversations")
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    if bundle.llama is None or bundle.served is None:
        parser.error("the bundle has no Llama for vLLM: mechm export llm adds it")
    questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
    talks = [one.conversation.utterances for one in read_labelled(given.conversations)]
    talks = [talk[:UTTERANCES] for talk in talks if len(talk) >= UTTERANCES][: given.limit]
    systems = _systems(bundle, bundle.folder / bundle.served.folder, questions, given.url)
    for ask in systems.values():  # the first run allocates memory
        ask(talks[-1], [0])
    times: dict[str, list[float]] = {name: [] for name in systems}
    for talk in talks:
        asked = np.linspace(0, len(talk) - 1, QUESTIONS).round().astype(int).tolist()
        # In turns, so that a machine that slows down slows all of them.
        for name, ask in systems.items():
            if KNOWN in name:
                ask(talk, [0])
            start = time.perf_counter()
            ask(talk, asked)
            times[name].append(1000 * (time.perf_counter() - start))
    server = f", {given.url}" if given.url else ""
    print(
        f"{given.conversations.name}, {len(talks)} conversations of {UTTERANCES} utterances, {QUESTIONS} questions; "
        f"onnxruntime {version('onnxruntime')}, torch {version('torch')}, transformers {version('transformers')}, one "
        f"thread, {platform.machine()}; bundle {bundle.id}{server}"
    )
    print(f"{'':44}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}")
    slowest = np.array(times["transformers generate, one by one"])
    rows = []
    for name, taken in times.items():
        p50, p99 = np.percentile(taken, [50, 99])
        ratio = float(np.median(slowest / taken))
        print(f"{name:44}{p50:9.0f}{p99:9.0f}{ratio:8.1f}")
        rows.append({"system": name, "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "ratio": round(ratio, 2)})
    print(f"\nthe newest utterance of a growing conversation, ms{'':4}" + "".join(f"turn {n:<6}" for n in TURNS))
    lines = [u for talk in talks for u in talk]
    for name, ask in systems.items():
        if "scoring" not in name or "one by one" in name:
            continue
        taken = [_newest(ask, lines[: n - 1], KNOWN in name, run) for n in TURNS for run in range(REPEATS)]
        medians = np.median(np.reshape(taken, (len(TURNS), REPEATS)), 1)
        print(f"{name:44}" + "".join(f"{value:11.0f}" for value in medians))
        rows.append({"system": name, "newest_ms": dict(zip(map(str, TURNS), medians.round(1).tolist(), strict=True))})
    print(json.dumps(rows))


def _newest(ask: Ask, before: Sequence[Utterance], known: bool, run: int) -> float:
    """Milliseconds for the last utterance of a conversation, with its start known or not."""
    opening = Utterance(1, "A", f"Let us begin with number {time.perf_counter_ns()} of the conversations, run {run}.")
    talk = [opening, *before]
    if known:
        ask(talk[:-1], [len(talk) - 2])
    start = time.perf_counter()
    ask(talk, [len(talk) - 1])
    return 1000 * (time.perf_counter() - start)


def _systems(bundle: Bundle, served: Path, questions: QuestionTokenizer, url: str | None) -> dict[str, Ask]:
    width = bundle.parts[LLAMA].width("soft_tokens")
    systems: dict[str, Ask] = {"transformers generate, one by one": _writer(served, questions)}
    if url is not None:
        server = VllmClient(ServerConfig(url, timeout_s=600.0), questions)
        server.check()
        systems["vLLM generate, one by one"] = _server_writer(url, questions)
        systems["vLLM scoring"] = _packed(server, questions, width)
        systems[f"vLLM scoring, {KNOWN}"] = systems["vLLM scoring"]
    for precision, file in bundle.parts[LLAMA].files.items():
        name: EngineName = "openvino" if precision == PORTABLE_INT8 else "onnxruntime"
        graph = LlamaGraph(load_engine(bundle.path(file), EngineConfig(n_threads=1, engine=name)), bundle.parts[LLAMA])
        systems[f"{name} {precision} scoring, one by one"] = _one_by_one(graph, questions, width)
        systems[f"{name} {precision} scoring, packed"] = _packed(graph, questions, width)
        systems[f"{name} {precision} scoring, {KNOWN}"] = _packed(graph.with_cache(), questions, width)
    return systems


def _packed(runner: GraphRunner, questions: QuestionTokenizer, width: int) -> Ask:
    def ask(talk: Sequence[Utterance], asked: list[int]) -> Any:
        return runner.run(graph_inputs(questions.pack(talk, asked), _no_soft_tokens(questions, talk, width)))

    return ask


def _one_by_one(runner: GraphRunner, questions: QuestionTokenizer, width: int) -> Ask:
    packed = _packed(runner, questions, width)
    return lambda talk, asked: [packed(talk, [position]) for position in asked]


def _no_soft_tokens(questions: QuestionTokenizer, talk: Sequence[Utterance], width: int) -> npt.NDArray[np.float32]:
    return np.zeros((len(talk), questions.config.soft_tokens, width), np.float32)


def _writer(folder: Path, questions: QuestionTokenizer) -> Ask:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    writer = TransformersGenerator(llama, questions)
    return lambda talk, asked: [writer.generate(generation_prompt(questions, talk, position)) for position in asked]


def _server_writer(url: str, questions: QuestionTokenizer) -> Ask:
    writer = ServerGenerator(ServerConfig(url), questions)

    def ask(talk: Sequence[Utterance], asked: list[int]) -> Any:
        # A separate cache, so that the scoring that follows does not find the conversation in it.
        salt = f"written {id(talk)}"
        return [writer.generate(generation_prompt(questions, talk, position), salt) for position in asked]

    return ask


if __name__ == "__main__":
    main()
