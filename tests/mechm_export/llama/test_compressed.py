"""A Llama in 8 bits for vLLM: evened out without a change, rounded close, written whole, refused where it changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mechm.cli import cli
from mechm.llm.comparison import Answers, answer
from mechm.llm.scorer import AnswerScores, load_llama
from mechm_export.bundle.report import BundleReport
from mechm_export.check_data import check_conversations
from mechm_export.llama.compressed import SCHEMES, SchemeName, simulate_quantization, smooth_channels, write_compressed
from mechm_export.vllm.served import add_served_llama
from mechm_runtime.bundle.open import open_bundle
from mechm_runtime.bundle.staging import check_target
from mechm_runtime.errors import VerificationError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.llm.vllm.launch_plan import ServeConfig, plan_serving

CONVERSATIONS = [one.conversation for one in check_conversations()[:3]]


@pytest.fixture(scope="module")
def grouped(llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama two of whose heads share keys and values, as SmolLM2's do."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("grouped") / "llama"
    shutil.copytree(llama_base, folder)
    config = LlamaConfig.from_pretrained(folder)
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(params=["llama_base", "grouped"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def scores(base: Path) -> AnswerScores:
    """A tiny Llama, some of whose channels are a hundred times larger than others, as in large ones."""
    llama = load_llama(base, torch.float32).eval()
    with torch.no_grad():
        for layer in llama.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[::9] *= 100
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.gate_proj):
                linear.weight[:, ::9] /= 100
            layer.mlp.up_proj.weight[:, ::9] /= 100
            layer.mlp.up_proj.weight[::7] *= 50
            layer.mlp.down_proj.weight[:, ::7] /= 50
    return AnswerScores(llama, QuestionTokenizer(base / "tokenizer.json"))


def ask(scores: AnswerScores, base: Path) -> list[Answers]:
    return answer(scores, QuestionTokenizer(base / "tokenizer.json"), CONVERSATIONS)


def apart(some: list[Answers], others: list[Answers]) -> float:
    """The largest difference of a log-probability."""
    return max(float(np.abs(a.emotion - b.emotion).max()) for a, b in zip(some, others, strict=True))


def test_evening_out_changes_no_answer(scores: AnswerScores, base: Path) -> None:
    before = {name: values.clone() for name, values in scores.llama.state_dict().items()}
    answered = smooth_channels(scores.llama, lambda: ask(scores, base))
    after = scores.llama.state_dict()
    changed = {name.split(".", 3)[-1] for name, values in after.items() if not torch.equal(values, before[name])}
    assert {"self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight"} <= changed
    assert apart(ask(scores, base), answered) < 1e-4


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_evened_out_it_loses_less_by_rounding(name: SchemeName, base: Path, scores: AnswerScores) -> None:
    exact = ask(scores, base)
    weights = {key: values.clone() for key, values in scores.llama.state_dict().items()}
    simulate_quantization(scores.llama, SCHEMES[name])
    plain = apart(ask(scores, base), exact)
    even = AnswerScores(load_llama(base, torch.float32).eval(), QuestionTokenizer(base / "tokenizer.json"))
    even.llama.load_state_dict(weights)
    smooth_channels(even.llama, lambda: ask(even, base))
    simulate_quantization(even.llama, SCHEMES[name])
    lost = apart(ask(even, base), exact)
    assert 0 < lost < 0.1
    # Floating point loses little to outliers in the first place.
    assert lost < (0.7 * plain if name == "int8" else 2 * plain)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_what_is_written_is_what_was_rounded(
    name: SchemeName, scores: AnswerScores, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "served")
    scheme = SCHEMES[name]
    write_compressed(scores.llama, scheme, torch.bfloat16, tmp_path / "served")
    stored = load_file(tmp_path / "served" / "model.safetensors")
    config = json.loads((tmp_path / "served" / "config.json").read_text())["quantization_config"]
    assert (config["format"], config["ignore"]) == (scheme.layout, ["lm_head"])
    simulate_quantization(scores.llama, scheme)
    for key, values in scores.llama.state_dict().items():
        if key == "lm_head.weight" and key not in stored:
            assert scores.llama.config.tie_word_embeddings
        elif f"{key}_scale" in stored:
            assert stored[key].dtype == scheme.dtype
            widened = stored[key].float() * stored[f"{key}_scale"].float()
            torch.testing.assert_close(widened, values, rtol=1e-2, atol=1e-6)  # scales are rounded to bf16
        else:
            torch.testing.assert_close(stored[key], values.to(torch.bfloat16))
    assert sum(key.endswith("_scale") for key in stored) == 7 * len(scores.llama.model.layers)


@pytest.fixture(scope="module")
def folder(report: BundleReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the Llama as a graph."""
    copy = tmp_path_factory.mktemp("quantized") / "bundle"
    shutil.copytree(report.bundle.folder, copy)
    return copy


def test_the_command_writes_it_and_says_what_it_keeps(
    folder: Path, adapter: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mechm_export.gate.comparison.ALLOWED_LABELS", 6)  # random weights answer with near ties
    arguments = ["export", "llm", "--bundle", folder, "--adapter", adapter, "--base", llama_base, "--quantize", "int8"]
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert "in int8: " in done.output
    assert "labels" in done.output
    bundle = open_bundle(folder)
    assert bundle.served is not None
    assert bundle.served.quantization == "int8"
    check_target(folder)
    plan = plan_serving(bundle, ServeConfig())
    assert plan.memory.weights_bytes == plan.shape.n_parameters * 2 - plan.shape.n_linear


def test_what_changes_answers_is_not_put_in_place(
    folder: Path, adapter: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_bundle(folder).id

    def ruined(llama: Any, scheme: Any) -> None:
        for layer in llama.model.layers:
            torch.nn.init.normal_(layer.mlp.down_proj.weight, std=10.0)

    monkeypatch.setattr("mechm_export.vllm.served.simulate_quantization", ruined)
    with pytest.raises(VerificationError, match=r"the Llama in int8: \d+ of \d+ "):
        add_served_llama(folder, adapter, llama_base, quantization="int8")
    assert open_bundle(folder).id == before
