"""Bodies and answers of vLLM's `/v1/completions`: the log-probabilities of given tokens, or generated tokens.

To score, one token is requested and the exact log-probabilities of the answers' tokens in its place. Tokens are
generated for models that answer in words. No text goes into an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PATH = "/v1/completions"
MAX_PROMPTS = 1024
"""Most prompts in one request: vLLM's default limit."""
MAX_REQUEST_BYTES = 32 << 20
"""Most bytes of embedded prompts in one request."""


def scoring_requests(
    model: str, prompts: Sequence[list[int]] | Sequence[str], answers: Sequence[int]
) -> list[tuple[int, bytes]]:
    """Bodies of the requests that score all prompts, as (number of prompts, body).

    prompts: token ids, or embeddings as base64 of a torch file. answers: tokens whose log-probabilities are requested.
    """
    embedded = bool(prompts) and isinstance(prompts[0], str)
    bodies = []
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
        bodies.append((last - first, json.dumps(body).encode()))
        first = last
    return bodies


def read_log_probabilities(answer: Any, n_prompts: int) -> list[dict[int, float]]:
    """Read token id -> log-probability for each prompt of a scoring request.

    Raises: ValueError: the answer has another form.
    """
    choices = {one.get("index"): one for one in object_list(answer, "choices")}
    if sorted(choices, key=str) != sorted(range(n_prompts), key=str):
        raise ValueError(f"{len(choices)} answers to {n_prompts} prompts")
    return [_log_probabilities(choices[index]) for index in range(n_prompts)]


def generation_request(model: str, prompt: str, max_new_tokens: int) -> bytes:
    """Body of a request that continues a prompt greedily, with at least one token that is not the end.

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


def read_generated(answer: Any) -> list[int]:
    """Read the token ids that a server generated.

    Raises: ValueError: the answer has another form.
    """
    choices = object_list(answer, "choices")
    ids = choices[0].get("token_ids") if len(choices) == 1 else None
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ValueError("no token ids")
    return ids


def object_list(body: Any, key: str) -> list[dict[str, Any]]:
    """The list of objects under a key of a JSON object.

    Raises: ValueError: there is none.
    """
    found = body.get(key) if isinstance(body, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"no {key}")
    return found


def _log_probabilities(choice: Mapping[str, Any]) -> dict[int, float]:
    """Token id -> log-probability of one choice; vLLM names tokens `token_id:123` (`return_tokens_as_token_ids`)."""
    try:
        (first,) = choice["logprobs"]["top_logprobs"]
        return {int(name.removeprefix("token_id:")): float(value) for name, value in first.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("no log-probabilities") from error
