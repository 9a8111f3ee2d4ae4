"""Bodies and answers of vLLM's `/v1/completions`: the log-probabilities of given tokens, or generated tokens.

To score, one token is requested and the exact log-probabilities of the answers' tokens in its place. Tokens are
generated for models that answer in words. No text goes into an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

PATH = "/v1/completions"
MAX_PROMPTS = 1024
"""Most prompts in one request: vLLM's default limit."""
MAX_REQUEST_BYTES = 32 << 20
"""Most bytes of embedded prompts in one request."""
LOWEST_LOG_PROBABILITY = -1e5
"""Below every log-probability of a model, whose logits are below 1e4; vLLM writes -9999 for minus infinity. Numbers
beyond overflow in float32."""
ROUNDING = 1e-3
"""Largest amount by which rounding may lift a log-probability above 0."""


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
    choices = object_list(answer, "choices")
    by_index = {one["index"]: one for one in choices if type(one.get("index")) is int}
    if len(choices) != n_prompts or by_index.keys() != set(range(n_prompts)):
        n_answered = len({_name(one.get("index")) for one in choices})
        raise ValueError(f"{n_answered} answers to {n_prompts} prompts")
    return [_log_probabilities(by_index[index]) for index in range(n_prompts)]


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


def _name(index: Any) -> str:
    """An index as it was sent, to count different ones; those that are neither numbers nor text count as one."""
    return repr(index) if isinstance(index, int | float | str) else ""


def _log_probabilities(choice: Any) -> dict[int, float]:
    """Token id -> log-probability of one choice; vLLM names tokens `token_id:123` (`return_tokens_as_token_ids`).

    Raises: ValueError: there are none, or one is no log-probability.
    """
    try:
        (first,) = choice["logprobs"]["top_logprobs"]
        found = {int(name.removeprefix("token_id:")): value for name, value in first.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("no log-probabilities") from error
    return {token: _checked(value) for token, value in found.items()}


def _checked(value: Any) -> float:
    """A log-probability as JSON has it: a number, at most 0 but for rounding.

    Raises: ValueError: it is something else.
    """
    if type(value) not in (int, float) or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("a log-probability is not a number")
    # An int of any size compares with a float; only then it is known to fit into one.
    if not LOWEST_LOG_PROBABILITY <= value <= ROUNDING:
        raise ValueError(f"a log-probability is not between {LOWEST_LOG_PROBABILITY:g} and 0")
    return float(value)
