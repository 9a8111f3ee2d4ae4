"""Answers many questions from a file in MER-MCE's form, each about a clip, in order.

The file has one JSON object per line: `{"name": "dia1utt1", "input": "...", ...}`, as MER-MCE's `ECACEmotionDataset`
reads it; the clip is `NAME.mp4`, or `NAME.avi` as in Emotion-LLaMA.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mechm.data.corpora.files import read_text
from mechm.minigpt.model import MiniGptV2
from mechm.minigpt.picture import first_frame_pixels, read_features
from mechm_runtime.errors import InputError

CLIP_SUFFIXES = (".mp4", ".avi")
CACHED_PICTURES = 16
"""Questions about one clip follow each other; a picture's tokens take 4 MB for Llama-2-7b."""


@dataclass(frozen=True, slots=True)
class NamedQuestion:
    """A question about a clip. features: of the clip, for Emotion-LLaMA."""

    name: str
    text: str
    clip: Path
    features: Path | None = None


def read_questions(path: Path, clips: Path, features: Path | None = None) -> tuple[NamedQuestion, ...]:
    """Read the questions of a file.

    clips: folder of the clips. features: folder of numpy files, `NAME.npy`.
    Raises: InputError: a line is not a question, or clips or features are missing.
    """
    questions, missing = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["name"], row["input"]
            if not isinstance(name, str) or not isinstance(text, str) or not name or Path(name).name != name:
                raise ValueError
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path.name}, line {number}: no question",
                hint='a line is {"name": "dia1utt1", "input": "the question"}, and the name that of a clip',
            ) from error
        found = [clip for suffix in CLIP_SUFFIXES if (clip := clips / f"{name}{suffix}").is_file()]
        feature_file = None if features is None else features / f"{name}.npy"
        if not found or (feature_file is not None and not feature_file.is_file()):
            missing.append(name)
            continue
        questions.append(NamedQuestion(name, text, found[0], feature_file))
    if missing:
        shown = ", ".join(missing[:5])
        where = clips if features is None else f"{clips} and {features}"
        raise InputError(f"{where} lack files of {len(missing)} questions: {shown}", hint="unpack all of them there")
    if not questions:
        raise InputError(f"{path.name} has no questions")
    return tuple(questions)


def answer_questions(
    model: MiniGptV2, questions: Sequence[NamedQuestion], *, task: str | None, max_new_tokens: int, n_threads: int = 1
) -> Iterator[str]:
    """Yield answers in the order of the questions.

    n_threads: questions asked in parallel, for a server that processes several together.
    Raises: MediaError, InputError: see `mechm.minigpt.picture`. LlmUnavailableError: the server does not answer.
    """

    @lru_cache(CACHED_PICTURES)
    def tokens_of(clip: Path, features: Path | None) -> npt.NDArray[np.float32]:
        pixels = first_frame_pixels(clip, model.image_size)
        return model.encode_picture(pixels, None if features is None else read_features(features))

    def answer(question: NamedQuestion) -> str:
        tokens = tokens_of(question.clip, question.features)
        return model.answer(tokens, question.text, task=task, max_new_tokens=max_new_tokens)

    with ThreadPoolExecutor(n_threads) as threads:
        try:
            yield from threads.map(answer, questions)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def write_answers(
    path: Path, questions: Sequence[NamedQuestion], answer: Callable[[Sequence[NamedQuestion]], Iterator[str]]
) -> Iterator[int]:
    """Write each answer at once as a line `NAME<tab>ANSWER`, as `eval_ECAC_cause.py` does; yields the number done.

    An existing file is continued: it must hold the answers to the first questions.
    Raises: InputError: it holds other answers, or cannot be written.
    """
    try:
        done = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        names = [line.partition("\t")[0] for line in done]
        if names != [question.name for question in questions[: len(names)]]:
            raise InputError(f"{path} does not hold the first answers to these questions", hint="choose another --out")
        yield len(done)
        left = questions[len(done) :]
        with path.open("a", encoding="utf-8") as file:
            for number, (question, words) in enumerate(zip(left, answer(left), strict=True), len(done) + 1):
                # Line breaks in an answer become spaces.
                file.write(f"{question.name}\t{' '.join(words.split())}\n")
                file.flush()
                yield number
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}", hint="choose another --out") from error
