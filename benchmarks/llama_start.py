"""Measures the time from process start to the Llama's first answer, and its memory, for each backend.

    mechm export llm --bundle DIR
    python benchmarks/llama_start.py --bundle DIR --vllm-python .venv-vllm/bin/python

Each backend runs in a fresh process with one thread, three times; the lowest of each value counts: seconds to the
answer on a first conversation, and the process's peak resident memory. vLLM's server is started by `mechm serve llm`,
which reports both itself: the time until it has answered, and the memory of its processes then. Limit to expect: the
weights have to be read once, at the disk's speed, and held in memory once.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from mechm_runtime import EngineConfig, Utterance, open_bundle
from mechm_runtime.bundle.manifest import LLAMA
from mechm_runtime.bundle.precision import PORTABLE_INT8
from mechm_runtime.engines.base import GraphRunner
from mechm_runtime.engines.load import load_engine
from mechm_runtime.llm.graph import LlamaGraph
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.scorer import LlamaScorer
from mechm_runtime.llm.vllm.in_process import InProcessVllm
from mechm_runtime.llm.vllm.launch_plan import ServeConfig

REPEATS = 3
TALK = (Utterance(1, "A", "I got the job!"), Utterance(2, "B", "No way! Congratulations."))
SERVED = re.compile(r"after ([\d.]+) s, ([\d.]+) GB")


def main() -> None:
    """Start every backend and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--vllm-python", type=Path, default=None, help="a Python with vLLM, for its two backends")
    parser.add_argument("--port", type=int, default=8765, help="for vLLM's server")
    parser.add_argument("--backend", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.backend is not None:
        _answer(given.bundle, given.backend)
        return
    backends = [*open_bundle(given.bundle).parts[LLAMA].files, *(["vllm-local"] if given.vllm_python else [])]
    rows = []
    for backend in backends:
        python = given.vllm_python if backend == "vllm-local" else Path(sys.executable)
        runs = [_started(python, given.bundle, backend) for _ in range(REPEATS)]
        rows.append({"backend": backend, "start_s": min(s for s, _ in runs), "memory_gb": min(gb for _, gb in runs)})
    if given.vllm_python is not None:
        served = [_served(given.vllm_python, given.bundle, given.port) for _ in range(REPEATS)]
        least = {"start_s": min(s for s, _ in served), "memory_gb": min(gb for _, gb in served)}
        rows.append({"backend": "vllm server", **least})
    print(f"{platform.machine()}, one thread, lowest of {REPEATS} runs; bundle {open_bundle(given.bundle).id}")
    print(f"{'backend':14}{'start s':>9}{'memory GB':>11}")
    for row in rows:
        print(f"{row['backend']:14}{row['start_s']:9.1f}{row['memory_gb']:11.2f}")
    print(json.dumps(rows))


def _started(python: Path, bundle: Path, backend: str) -> tuple[float, float]:
    command = [str(python), __file__, "--bundle", str(bundle), "--backend", backend]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken = time.perf_counter() - start
    return round(taken, 2), round(int(done.stdout.split()[-1]) / 1e9, 3)


def _answer(folder: Path, backend: str) -> None:
    """Answer one question in this process and print its peak memory in bytes."""
    bundle = open_bundle(folder, check_hashes=False)
    if bundle.llama is None:
        raise SystemExit("the bundle has no Llama")
    questions = QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)
    engine: GraphRunner
    if backend == "vllm-local":
        engine = InProcessVllm(bundle, questions, ServeConfig())
    else:
        name = bundle.parts[LLAMA].files[backend]
        config = EngineConfig(n_threads=1, engine="openvino" if backend == PORTABLE_INT8 else "onnxruntime")
        engine = LlamaGraph(load_engine(bundle.path(name), config), bundle.parts[LLAMA])
    LlamaScorer(questions, engine, bundle.parts[LLAMA].width("soft_tokens")).score(TALK)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


def _served(python: Path, bundle: Path, port: int) -> tuple[float, float]:
    command = [str(python), "-c", "from mechm.cli import main; main()", "serve", "llm"]
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), "--port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        found = SERVED.search(next(iter(process.stdout or ()), ""))
        if found is None:
            raise SystemExit("mechm serve llm did not start")
        return float(found[1]), float(found[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


if __name__ == "__main__":
    main()
