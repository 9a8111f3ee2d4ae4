"""Llamas that generate their answers token by token: transformers in this process, and a vLLM server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechm.bench.rivals.per_utterance import GENERATED_TOKENS
from mechm_runtime.bundle.manifest import Bundle
from mechm_runtime.errors import InputError, MissingExtraError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.types import EMOTIONS, Utterance


def question_tokenizer(bundle: Bundle) -> QuestionTokenizer:
    """The tokenizer of the questions to the bundle's Llama.

    Raises: InputError: the bundle has none.
    """
    if bundle.llama is None:
        raise InputError(
            "the bundle has no Llama", hint="with mechm[export], mechm export bundle --adapter DIR adds one"
        )
    return QuestionTokenizer(bundle.path(bundle.llama.tokenizer), bundle.llama.questions)


def generation_prompt(questions: QuestionTokenizer, utterances: Sequence[Utterance], position: int) -> list[int]:
    """Token ids of the conversation and one question, up to where the answer begins."""
    lines = [token for line in questions.conversation(utterances) for token in line.ids]
    return [*lines, *questions.question(utterances, position).ids]


class TransformersGenerator:
    """Greedy decoding with transformers' generate, always exactly as many tokens as asked for.

    llama: a causal language model, with or without an unmerged adapter.
    """

    def __init__(self, llama: Any, questions: QuestionTokenizer) -> None:
        self._llama = llama.eval()
        self._questions = questions

    def generate(self, ids: Sequence[int], n_tokens: int = GENERATED_TOKENS) -> list[int]:
        """The token ids generated after a prompt."""
        import torch
        from transformers import GenerationConfig

        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, pad_token_id=0
        )
        prompt = torch.tensor([list(ids)])
        with torch.inference_mode():
            written = self._llama.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy
            )
        answer: list[int] = written[0, len(ids) :].tolist()
        return answer

    def answer(self, utterances: Sequence[Utterance], position: int, n_tokens: int) -> str | None:
        """See `AnswerGenerator`."""
        written = self.generate(generation_prompt(self._questions, utterances, position), n_tokens)
        return emotion_of(self._questions, written)


class ServerGenerator:
    """vLLM's generate over HTTP, one question per request, like a client that cannot score answers.

    Raises: MissingExtraError: without the `vllm` extra.
    """

    def __init__(self, server: ServerConfig, questions: QuestionTokenizer) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise MissingExtraError("httpx2", extra="vllm") from error
        headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        self._client = httpx2.Client(base_url=server.url, headers=headers, timeout=600.0, trust_env=False)
        self._questions = questions
        self._model = server.model
        self._n_asked = 0

    def generate(self, ids: Sequence[int], salt: str, n_tokens: int = GENERATED_TOKENS) -> str:
        """The text generated after a prompt.

        salt: only prompts with the same salt share the server's prefix cache.
        """
        body = {
            "model": self._model,
            "prompt": list(ids),
            "max_tokens": n_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "cache_salt": salt,
        }
        answer = self._client.post("/v1/completions", json=body).raise_for_status().json()
        return str(answer["choices"][0]["text"])

    def answer(self, utterances: Sequence[Utterance], position: int, n_tokens: int) -> str | None:
        """See `AnswerGenerator`. Questions on one conversation share the server's cache; earlier runs' do not."""
        if position == 0:
            self._n_asked += 1
        text = self.generate(
            generation_prompt(self._questions, utterances, position), f"written {id(self)} {self._n_asked}", n_tokens
        )
        return next((emotion for emotion in EMOTIONS if text.strip().startswith(emotion)), None)


def emotion_of(questions: QuestionTokenizer, written: Sequence[int]) -> str | None:
    """The emotion of the first token, None if it is no emotion's token."""
    answers = questions.emotion_answers.tolist()
    return EMOTIONS[answers.index(written[0])] if written and written[0] in answers else None


def unmerged_llama(preset: str, adapter: Path | None, dtype: Any) -> Any:
    """The preset's Llama with its adapter unmerged, as after training.

    adapter: None for the one that is shipped with the preset.
    Raises: WeightsError: weights are missing.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mechm.model.build import pretrained_folder
    from mechm.model.transformers_output import quiet_transformers
    from mechm.weights import weights_path

    folder = adapter or pretrained_folder(preset) / "llm"
    with quiet_transformers():
        base: Any = AutoModelForCausalLM.from_pretrained(
            weights_path("llm", preset), dtype=dtype, local_files_only=True
        )
        return PeftModel.from_pretrained(base, str(folder), local_files_only=True)
