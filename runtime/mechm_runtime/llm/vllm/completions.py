"""vLLM's `/v1/completions`, asked for the log-probabilities of chosen tokens in one token's place: body and answer.

Nothing is decoded: the server is asked for one token and for the exact log-probabilities of the answers' tokens there.
For models that answer in words it is asked to write. No text goes into an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PATH = "/v1/completions"
MAX_PROMPTS = 1024
"""In one request; vLLM takes no more unless it is told to."""
MAX_REQUEST_BYTES = 32 << 20
"""Of embedded prompts in one request."""


def requests(
    model: str, prompts: Sequence[list[int]] | Sequence[str], answers: Sequence[int]
) -> list[tuple[int, bytes]]:
    """Requests that ask about all prompts, each with how many of them it holds.

    prompts: token ids, or embeddings as base64 of a torch file. answers: tokens whose log-probabilities are wanted.
    """
    embedded = bool(prompts) and isinstance(prompts[0], str)
    made = []
    first = 0
    while first < len(prompts):
        last, n_bytes = first, 0
        while last < len(prompts) and last - first < MAX_PROMPTS:
            n_bytes += len(prompts[last]) if embedded else 0
            if last > first and n_bytes > MAX_REQUEST_BYTES:
                break
            last += 1
        body = {
            "model": model,
            "prompt_embeds" if embedded else "prompt": prompts[first:last],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 0,
            "logprob_token_ids": answers,
            "return_tokens_as_token_ids": True,
        }
        made.append((last - first, json.dumps(body).encode()))
        first = last
    return made


def read_choices(answer: Any, n_prompts: int) -> list[dict[int, float]]:
    """Token id -> log-probability for each prompt of a request.

    Raises: ValueError: the answer has another form.
    """
    choices = {one.get("index"): one for one in entries(answer, "choices")}
    if sorted(choices, key=str) != sorted(range(n_prompts), key=str):
        raise ValueError(f"{len(choices)} answers to {n_prompts} prompts")
    return [_log_probabilities(choices[index]) for index in range(n_prompts)]


def writing_request(model: str, prompt: str, max_new_tokens: int) -> bytes:
    """A request to write on after a prompt, the likeliest token each time, the end not at once.

    prompt: embeddings as base64 of a torch file.
    """
    body = {
        "model": model,
        "prompt_embeds": prompt,
        "max_tokens": max_new_tokens,
        "min_tokens": 1,
        "temperature": 0,
        "repetition_penalty": 1,
        "return_token_ids": True,
    }
    return json.dumps(body).encode()


def read_written(answer: Any) -> list[int]:
    """The token ids that a server wrote.

    Raises: ValueError: the answer has another form.
    """
    choices = entries(answer, "choices")
    ids = choices[0].get("token_ids") if len(choices) == 1 else None
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ValueError("it has no token ids")
    return ids


def entries(body: Any, key: str) -> list[dict[str, Any]]:
    """Raises: ValueError: the content is no object with a list of objects there."""
    found = body.get(key) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"it has no {key}")
    return found


def _log_probabilities(choice: Mapping[str, Any]) -> dict[int, float]:
    """Of one choice, as vLLM writes them with `return_tokens_as_token_ids`: `token_id:123` -> log-probability."""
    try:
        (first,) = choice["logprobs"]["top_logprobs"]
        return {int(name.removeprefix("token_id:")): float(value) for name, value in first.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("an answer has no log-probabilities") from error
