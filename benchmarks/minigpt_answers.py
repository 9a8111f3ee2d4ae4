"""Measures an imported MiniGPT-v2 against the original implementation: time per answer, and whether answers are equal.

    mechm import minigpt-v2 --checkpoint checkpoint.pth --llama Llama-2-7b-chat-hf --vit eva_vit_g.pth --out DIR
    vllm serve DIR/llm --enable-prompt-embeds --max-logprobs 64 --served-model-name mechm-llama
    python benchmarks/minigpt_answers.py --model DIR --checkpoint checkpoint.pth --llama Llama-2-7b-chat-hf \
        --url http://127.0.0.1:8000

Only the Llama is measured: questions about random image tokens, one picture each, up to 20 generated tokens. The
original is MER-MCE's `eval_ECAC_cause.py`: transformers' generate with the LoRA unmerged beside the Llama (peft), 20
questions per batch, padded on the left. All systems take turns on the same questions; the ViT takes the same time in
all of them and is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mechm.llm.merge import DTYPES
from mechm.llm.stored_base import read_json
from mechm.minigpt.checkpoint import read_torch_file, tensors_in
from mechm.minigpt.keys import LORA, LORA_TARGETS
from mechm.minigpt.lora import lora_alpha
from mechm.minigpt.model import MAX_NEW_TOKENS, Generator, MiniGptV2, open_minigpt
from mechm.model.transformers_output import quiet_transformers
from mechm_runtime import EMOTIONS, ServerConfig

BATCH = 20  # MER-MCE's
AT_ONCE = 8
LINES = (
    "Joey: You left me standing in the rain for two hours .",
    "Phoebe: Oh my God , I won ! I really won !",
    "Ross: We were on a break , and you know it .",
    "Monica: There is a spider in my shoe , right now , in there !",
)

Question = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]
Ask = Callable[[Sequence[Question]], list[list[int]]]


def main() -> None:
    """Time every system and print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="output of mechm import minigpt-v2")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--llama", type=Path, required=True, help="the Llama that it was trained on")
    parser.add_argument("--url", default=None, help="a vLLM server of DIR/llm")
    parser.add_argument("--questions", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    dtype = next(value for name, value in DTYPES.items() if name == given.dtype)
    here = open_minigpt(given.model, dtype=dtype, device=given.device)
    systems: dict[str, Ask] = {
        f"unmerged, up to {BATCH} at once (the original)": _original(
            given.checkpoint, given.llama, dtype, given.device, BATCH
        ),
        "unmerged, one by one": _original(given.checkpoint, given.llama, dtype, given.device, 1),
        "torch": _writing(here.generator, 1),
    }
    scoring: dict[str, Generator] = {"torch, 7 answers scored": here.generator}
    if given.url is not None:
        there = open_minigpt(given.model, backend="vllm", server=ServerConfig(given.url, timeout_s=600.0))
        systems["vLLM, one by one"] = _writing(there.generator, 1)
        systems[f"vLLM, {AT_ONCE} at once"] = _writing(there.generator, AT_ONCE)
        scoring["vLLM, 7 answers scored"] = there.generator
    answers = [here.prompts.answer_ids(emotion) for emotion in EMOTIONS]
    for name, generator in scoring.items():
        systems[name] = _scoring(generator, answers)
    for ask in systems.values():  # the first run allocates memory
        ask(_questions(here, 1, seed=10_000))
    times: dict[str, list[float]] = {name: [] for name in systems}
    same: dict[str, int] = dict.fromkeys(systems, 0)
    for turn in range(given.rounds):
        # New pictures in each round, so that none is in a server's cache.
        asked = _questions(here, given.questions, seed=turn)
        expected: list[list[int]] = []
        for name, ask in systems.items():
            start = time.perf_counter()
            written = ask(asked)
            times[name].append((time.perf_counter() - start) / len(asked))
            expected = expected or written
            same[name] += sum(one == two for one, two in zip(written, expected, strict=True))
    print(
        f"{given.rounds} x {given.questions} questions, {given.dtype}, {given.device}, torch {version('torch')} with "
        f"{torch.get_num_threads()} threads, transformers {version('transformers')}, {platform.machine()}"
    )
    print(f"{'':44}{'ms per question':>16}{'ratio':>8}{'same text':>12}")
    slowest = np.array(next(iter(times.values())))
    rows = []
    for name, taken in times.items():
        ms, ratio = 1000 * float(np.median(taken)), float(np.median(slowest / taken))
        share = "" if name.endswith("scored") else f"{same[name]}/{given.rounds * given.questions}"
        print(f"{name:44}{ms:16.0f}{ratio:8.2f}{share:>12}")
        rows.append({"system": name, "ms": round(ms, 1), "ratio": round(ratio, 3), "same": share or None})
    print(json.dumps(rows))


def _questions(model: MiniGptV2, n_questions: int, seed: int) -> list[Question]:
    random = np.random.default_rng(seed)
    config = model.image_tokens.config
    made = []
    for number in range(n_questions):
        prompt = model.prompts.read(LINES[number % len(LINES)], task="emotion")
        tokens = random.normal(scale=0.02, size=(config.n_tokens, config.llama_size)).astype(np.float32)
        made.append((prompt.ids, prompt.image_at, tokens))
    return made


def _writing(generator: Generator, n_threads: int) -> Ask:
    def write(question: Question) -> list[int]:
        ids, image_at, tokens = question
        return _until_the_end(generator.generate(ids, image_at, tokens, MAX_NEW_TOKENS))

    def ask(asked: Sequence[Question]) -> list[list[int]]:
        with ThreadPoolExecutor(n_threads) as threads:
            return list(threads.map(write, asked))

    return ask


def _scoring(generator: Generator, answers: Sequence[Sequence[int]]) -> Ask:
    def ask(asked: Sequence[Question]) -> list[list[int]]:
        return [[int(generator.score(*one, answers).argmax())] for one in asked]

    return ask


def _original(checkpoint: Path, llama: Path, dtype: torch.dtype, device: str, batch: int) -> Ask:
    """`MiniGPTBase.generate` with peft's unmerged LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GenerationConfig

    content = read_torch_file(checkpoint)
    pairs = {name: tensor for name, tensor in tensors_in(checkpoint, content).items() if re.match(LORA, name)}
    rank = next(len(tensor) for name, tensor in pairs.items() if ".lora_A." in name)
    targets = [target.rpartition(".")[2] for target in LORA_TARGETS]
    with quiet_transformers():
        base: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype, local_files_only=True)
    adapted: Any = get_peft_model(
        base, LoraConfig(r=rank, lora_alpha=int(lora_alpha(content.get("config"), None)), target_modules=targets)
    )
    state = {
        re.sub(r"(lora_[AB])\.(default\.)?", r"\1.default.", n.removeprefix("llama_model.")): t
        for n, t in pairs.items()
    }
    if adapted.load_state_dict(state, strict=False).unexpected_keys:
        raise SystemExit(f"the LoRA of {checkpoint} does not fit {llama}")
    adapted = adapted.to(device, dtype).eval()
    settings = read_json(llama / "generation_config.json")
    adapted.base_model.model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, min_new_tokens=1, eos_token_id=settings["eos_token_id"], pad_token_id=0
    )

    def generate(asked: Sequence[Question]) -> list[list[int]]:
        embed = adapted.get_input_embeddings()
        rows = []
        for ids, image_at, tokens in asked:
            row = embed(torch.from_numpy(ids).to(device)).clone()
            row[torch.from_numpy(image_at).to(device)] = torch.from_numpy(tokens).to(row)
            rows.append(row)
        longest = max(map(len, rows))
        padded = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        attended = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows]).to(device)
        written = adapted.generate(inputs_embeds=padded, attention_mask=attended, max_new_tokens=MAX_NEW_TOKENS)
        return [_until_the_end(row) for row in written.tolist()]

    def ask(asked: Sequence[Question]) -> list[list[int]]:
        with torch.inference_mode():
            batches = [asked[first : first + batch] for first in range(0, len(asked), batch)]
            return [answer for one in batches for answer in generate(one)]

    return ask


def _until_the_end(ids: list[int]) -> list[int]:
    """The tokens before `</s>` (2); a batch is padded after it."""
    return ids[: ids.index(2)] if 2 in ids else ids


if __name__ == "__main__":
    main()
