"""Merging an adapter: the sum is the sum, what is written answers alike, and what cannot be merged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraModel, PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mechm.cli import cli, main
from mechm.llm.comparison import Answers, answer, compare_answers
from mechm.llm.merge import check_conversations, merge_adapter
from mechm.llm.scorer import AnswerScores, add_adapter, load_llama
from mechm.llm.stored_base import base_fingerprint, read_base
from mechm.training.llm_adapter import save_adapter
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.errors import VerificationError, WeightsError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.types import Conversation, Utterance

VOCABULARY = 32_000  # Llama-2's
CONVERSATIONS = check_conversations()[2:3]


@pytest.fixture(scope="module")
def tokenizer_files(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer with as many tokens as Llama-2 has: byte pairs come by rank, so the first ones are whole."""
    small = small_weights / "llm"
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = json.loads((small / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {piece: number for piece, number in model["vocab"].items() if number < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(small / name, folder)
    return folder


def make_base(folder: Path, tokenizer_files: Path, *, dtype: torch.dtype, shard: str = "1GB", **sizes: Any) -> Path:
    """A Llama with random weights in the Hugging Face layout."""
    config = LlamaConfig(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, dtype=dtype, **sizes)
    with torch.device("meta"):
        llama = LlamaForCausalLM(config).to(dtype)  # type: ignore[no-untyped-call]
    llama.to_empty(device="cpu").tie_weights()
    # One noise for all, over and over: drawing 464 million numbers would take longer than the test.
    noise = 0.02 * torch.randn(99_991, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        for parameter in llama.parameters():
            values = noise.repeat(-(-parameter.numel() // len(noise)))[: parameter.numel()]
            parameter.copy_(values.view(parameter.shape) + (1 if parameter.dim() == 1 else 0))
    llama.save_pretrained(folder, max_shard_size=shard)
    shutil.copytree(tokenizer_files, folder, dirs_exist_ok=True)
    (folder / "LICENSE.txt").write_text("the terms")
    return folder


def make_adapter(base: Path, folder: Path, *, scale: float = 0.05, **card: Any) -> Path:
    """An adapter that changes answers, as `mechm train llm` writes it."""
    torch.manual_seed(1)
    adapted = add_adapter(load_llama(base, torch.bfloat16), rank=4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    save_adapter(adapted, DecisionConfig(neutral_log_bias=-0.5), {"preset": "small", **card}, folder)
    return folder


SMALL_SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def any_base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_files: Path) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return make_base(
        folder, tokenizer_files, dtype=torch.float16, tie_word_embeddings=bool(request.param), **SMALL_SIZES
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_files: Path) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), tokenizer_files, dtype=torch.float16, **SMALL_SIZES)


@pytest.fixture(scope="module")
def shared_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("trained") / "adapter")


@pytest.fixture
def adapter(shared_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(shared_adapter, tmp_path / "adapter"))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_command_writes_a_plain_model_that_answers_as_the_adapter_did(any_base: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(any_base, tmp_path / "adapter"), tmp_path / "merged"
    arguments = ["merge", "--adapter", str(adapter), "--base", str(any_base), "--out", str(out), "--dtype", "fp32"]
    ran = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "0 of 30 labels and 0 pairs" in ran.output
    tokenizer = QuestionTokenizer(out / "tokenizer.json")
    merged = AnswerScores(AutoModelForCausalLM.from_pretrained(out), tokenizer)
    beside = AnswerScores(PeftModel.from_pretrained(load_llama(any_base, torch.float32), adapter), tokenizer)
    plain = AnswerScores(load_llama(any_base, torch.float32), tokenizer)
    answers = [answer(scores, tokenizer, CONVERSATIONS)[0] for scores in (merged, beside, plain)]
    assert np.abs(answers[0].emotion - answers[1].emotion).max() < 1e-4
    assert np.abs(answers[0].cause - answers[1].cause).max() < 1e-4
    assert np.abs(answers[0].emotion - answers[2].emotion).max() > 0.01, "the adapter changes answers"
    assert AutoTokenizer.from_pretrained(out)("hello")["input_ids"]
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer_config.json", "decision.json", "LICENSE.txt"}
    assert not {"adapter_config.json", "pytorch_model.bin"} & names
    assert ("lm_head.weight" in tensors_of(out)) == (
        not json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    )
    assert json.loads((out / "decision.json").read_text())["neutral_log_bias"] == -0.5
    written = [path.read_text(encoding="utf-8") for path in out.glob("*.json")]
    assert not any(str(tmp_path) in text or str(any_base) in text for text in written), "paths of this machine"
    assert not list(tmp_path.glob(".*"))
    modes = {path.stat().st_mode for path in out.glob("*.safetensors")}
    assert modes == {(out / "config.json").stat().st_mode}, "whoever may read the config may read the weights"


def test_merged_weights_are_base_plus_scaled_product(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, base, tmp_path / "merged", dtype="fp32", conversations=("c", CONVERSATIONS))
    before, after = tensors_of(base), tensors_of(tmp_path / "merged")
    pairs = load_file(adapter / "adapter_model.safetensors")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert after.keys() == before.keys()
    changed = 0
    for name, value in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        expected = value.double().numpy()
        if f"{module}.lora_A.weight" in pairs:
            a, b = (pairs[f"{module}.lora_{side}.weight"].double().numpy() for side in "AB")
            expected = expected + settings["lora_alpha"] / settings["r"] * (b @ a)
            changed += 1
        assert after[name].dtype == torch.float32
        assert np.abs(after[name].double().numpy() - expected).max() < 1e-6, name
    assert changed == 14, "seven linear layers in each of two blocks"


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_card_and_the_config_say_how_it_was_merged(
    base: Path, adapter: Path, tmp_path: Path, dtype: Any, torch_dtype: torch.dtype
) -> None:
    out = tmp_path / "merged"
    (adapter / "combination.json").write_text('{"fitted": "beside the fusion"}')
    steps: list[str] = []
    made = merge_adapter(
        adapter,
        base,
        out,
        dtype=dtype,
        conversations=("mine", CONVERSATIONS),
        on_progress=lambda s, _d, _n: steps.append(s),
    )
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch_dtype
    assert (out / "combination.json").read_text() == (adapter / "combination.json").read_text()
    card = json.loads((out / "card.json").read_text())
    assert card["preset"] == "small"
    assert card["merged"]["dtype"] == dtype
    assert (card["merged"]["conversations"], card["merged"]["n_conversations"]) == ("mine", 1)
    assert card["merged"]["merged"]["largest"] == made.merged.largest < 1e-4
    assert 0 < card["merged"]["written"]["mean_kl"] == made.written.mean_kl < 0.01
    assert card["merged"]["base_fingerprint"] == base_fingerprint(read_base(base))
    assert steps.index("merging") < steps.index("writing") < steps.index("asking what was written")


def test_a_model_of_the_widths_of_llama_2_7b(tmp_path: Path, tokenizer_files: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1, "num_attention_heads": 32}
    base = make_base(tmp_path / "base", tokenizer_files, dtype=torch.bfloat16, shard="400MB", **sizes)
    assert len(list(base.glob("*.safetensors"))) > 1
    adapter = make_adapter(base, tmp_path / "adapter", scale=0.01)
    short = Conversation("1", (Utterance(1, "Ann", "We won!"),))
    made = merge_adapter(adapter, base, tmp_path / "merged", conversations=("c", [short]))
    assert made.n_parameters == 2 * 32_000 * 4096 + 4 * 4096**2 + 3 * 4096 * 11008 + 3 * 4096
    assert made.merged.largest < 1e-4
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["architectures"], config["hidden_size"], config["dtype"]) == (["LlamaForCausalLM"], 4096, "bfloat16")
    for folder in (base, tmp_path / "merged"):
        shutil.rmtree(folder)  # pytest keeps three runs' folders, and these are 1.9 GB


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


Damage = Callable[[Path, Path], object]
FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "quantized": (
        lambda _, base: edit(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantized (gptq)",
    ),
    "int8": (
        lambda _, base: edit_weights(
            base / "model.safetensors",
            lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(160, 64, dtype=torch.int8)}),
        ),
        "model.layers.0.mlp.up_proj.weight is stored as I8",
    ),
    "pickled base": (
        lambda _, base: (base / "model.safetensors").rename(base / "pytorch_model.bin"),
        "holds pickled weights (pytorch_model.bin)",
    ),
    "base cut short": (
        lambda _, base: (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-9]),
        "not a whole safetensors file",
    ),
    "base lacks a norm": (
        lambda _, base: edit_weights(base / "model.safetensors", lambda t: t.pop("model.norm.weight")),
        "lacks 1 of its weights, the first is model.norm.weight",
    ),
    "base is NaN": (
        lambda _, base: edit_weights(base / "model.safetensors", lambda t: t["model.norm.weight"].fill_(torch.nan)),
        "model.norm.weight is not finite",
    ),
    "no config": (lambda _, base: (base / "config.json").unlink(), "cannot read"),
    "no tokenizer": (lambda _, base: (base / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "another tokenizer": (
        lambda _, base: edit(base / "config.json", vocab_size=30_000),
        "tokens, more than the model embeds",
    ),
    "index leads away": (
        lambda _, base: (base / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "does not map weights to files beside it",
    ),
    "no adapter weights": (
        lambda adapter, _: (adapter / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "pickled adapter": (
        lambda adapter, _: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin"),
        "holds a pickled adapter (adapter_model.bin)",
    ),
    "adapter is NaN": (
        lambda adapter, _: edit_weights(adapter / "adapter_model.safetensors", lambda t: t[FIRST].fill_(torch.nan)),
        "layers.0.mlp.down_proj.lora_A.default.weight is not finite",
    ),
    "half a pair": (
        lambda adapter, _: edit_weights(adapter / "adapter_model.safetensors", lambda t: t.pop(FIRST)),
        "the two sides of model.layers.0.mlp.down_proj do not go together",
    ),
    "more than LoRA": (
        lambda adapter, _: edit_weights(
            adapter / "adapter_model.safetensors",
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)}),
        ),
        "base_model.model.lm_head.weight, which is no side of a LoRA pair",
    ),
    "a layer left out": (
        lambda adapter, _: edit_weights(
            adapter / "adapter_model.safetensors",
            lambda t: [t.pop(name) for name in list(t) if "layers.1.self_attn.q_proj" in name],
        ),
        "model.layers.1.self_attn.q_proj is not in the adapter",
    ),
    "not LoRA": (lambda adapter, _: edit(adapter / "adapter_config.json", peft_type="IA3"), "'IA3' adapter, not LoRA"),
    "DoRA": (lambda adapter, _: edit(adapter / "adapter_config.json", use_dora=True), "sets use_dora"),
    "biases": (lambda adapter, _: edit(adapter / "adapter_config.json", bias="all"), "sets bias"),
    "PiSSA": (
        lambda adapter, _: edit(adapter / "adapter_config.json", init_lora_weights="pissa"),
        "sets init_lora_weights",
    ),
    "no targets": (
        lambda adapter, _: edit(adapter / "adapter_config.json", target_modules=None),
        "lists no target_modules",
    ),
    "no decision": (lambda adapter, _: (adapter / "decision.json").write_text('{"x": 1}'), "not decision constants"),
    "no card": (lambda adapter, _: (adapter / "card.json").write_text("[]"), "does not hold a JSON object"),
    "other weights": (
        lambda adapter, _: edit(adapter / "card.json", base_fingerprint="ab" * 32),
        "was trained on other weights than those of",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_cannot_be_merged_is_refused_in_one_line(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Damage, words: str
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "base"))
    damage(adapter, copy)
    with pytest.raises(SystemExit) as caught:
        main(["merge", "--adapter", str(adapter), "--base", str(copy), "--out", str(tmp_path / "merged")])
    assert caught.value.code == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 32}, "model.layers.0.mlp.down_proj is 64 x 160 in the adapter and 32 x 160 in the base"),
        ({"num_hidden_layers": 1}, "model.layers.1.mlp.down_proj is not in the base"),
        ({"num_hidden_layers": 3}, "model.layers.2.mlp.down_proj is not in the adapter"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    adapter: Path, tmp_path: Path, tokenizer_files: Path, sizes: dict[str, int], words: str
) -> None:
    other = make_base(tmp_path / "base", tokenizer_files, dtype=torch.float16, **(SMALL_SIZES | sizes))
    with pytest.raises(WeightsError, match="does not fit") as caught:
        merge_adapter(adapter, other, tmp_path / "merged")
    assert words in str(caught.value)
    assert "preset small" in caught.value.hint


def test_the_fingerprint_knows_weights_and_not_how_they_are_stored(
    base: Path, tmp_path: Path, tokenizer_files: Path
) -> None:
    known = base_fingerprint(read_base(base))
    stored = Path(shutil.copytree(base, tmp_path / "stored"))
    (stored / "model.safetensors").unlink()
    load_llama(base, torch.float32).save_pretrained(stored, max_shard_size="3MB")
    assert len(list(stored.glob("*.safetensors"))) > 1
    assert base_fingerprint(read_base(stored)) == known
    sibling = Path(shutil.copytree(base, tmp_path / "sibling"))
    edit_weights(sibling / "model.safetensors", lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    assert base_fingerprint(read_base(sibling)) != known
    adapter = make_adapter(base, tmp_path / "adapter", base_fingerprint=known)
    merge_adapter(adapter, stored, tmp_path / "merged", conversations=("c", CONVERSATIONS))
    with pytest.raises(WeightsError, match="other weights"):
        merge_adapter(adapter, sibling, tmp_path / "other")


def test_a_merge_that_answers_differently_is_not_written(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(SystemExit) as caught:
        main(["merge", "--adapter", str(adapter), "--base", str(base), "--out", str(tmp_path / "merged")])
    assert caught.value.code == 1
    assert "merged and unmerged answer differently on mechm merge conversations" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_files_that_answer_differently_are_not_put_in_place(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = LlamaForCausalLM.save_pretrained

    def damaged(self: Any, folder: Path, **options: Any) -> None:
        save(self, folder, **options)
        edit_weights(folder / "model.safetensors", lambda t: t["model.norm.weight"].mul_(-50))

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", damaged)
    with pytest.raises(VerificationError, match="in bf16 the merged model answers differently"):
        merge_adapter(adapter, base, tmp_path / "merged", conversations=("c", CONVERSATIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_weights_that_fp16_cannot_hold(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "base"))

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()
        tensors["model.embed_tokens.weight"][31_999, 0] = 1e6  # a token that nobody says

    edit_weights(copy / "model.safetensors", enlarge)
    with pytest.raises(WeightsError, match=r"model.embed_tokens.weight does not fit into fp16") as caught:
        merge_adapter(adapter, copy, tmp_path / "merged", dtype="fp16", conversations=("c", CONVERSATIONS))
    assert "bf16" in caught.value.hint
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("full", [OSError(28, "No space left on device"), SafetensorError("IoError: No space left")])
def test_a_full_disk_leaves_nothing_behind(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", fail)
        with pytest.raises(WeightsError, match=r"cannot write .*No space left"):
            merge_adapter(adapter, base, tmp_path / "merged", conversations=("c", CONVERSATIONS))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(WeightsError, match=r"the merged model takes 0\.0 GB"):
        merge_adapter(adapter, base, tmp_path / "merged", conversations=("c", CONVERSATIONS))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_device_that_is_too_small(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AnswerScores, "to", full)
    with pytest.raises(WeightsError, match="is too small") as caught:
        merge_adapter(adapter, base, tmp_path / "merged", conversations=("c", CONVERSATIONS))
    assert "--device cpu" in caught.value.hint


def test_an_out_that_exists_and_a_preset_that_is_not_the_adapters(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    with pytest.raises(WeightsError, match="exists"):
        merge_adapter(adapter, base, out)
    arguments = ["merge", "--adapter", str(adapter), "--preset", "llama2-7b", "--out", str(tmp_path / "other")]
    ran = CliRunner().invoke(cli, arguments)
    assert "trained for preset small, not llama2-7b" in str(ran.exception)
    edit(adapter / "card.json", preset=None)
    ran = CliRunner().invoke(cli, ["merge", "--adapter", str(adapter), "--out", str(tmp_path / "other")])
    assert isinstance(ran.exception, WeightsError)
    assert "names no preset" in str(ran.exception)


def test_differences_counted_by_hand() -> None:
    def answers(*emotions: list[float]) -> list[Answers]:
        cause = np.log(np.full((len(emotions), 14), 1 / 14, np.float32))
        return [Answers(np.log(np.array(emotions, np.float32)), cause)]

    sure, unsure = [0.9, 0.05, 0.01, 0.01, 0.01, 0.01, 0.01], [0.05, 0.9, 0.01, 0.01, 0.01, 0.01, 0.01]
    same = compare_answers(answers(sure, sure), answers(sure, sure), DecisionConfig())
    assert (same.largest, same.n_labels, same.n_labels_changed, same.n_pairs) == (0, 2, 0, 0)
    assert same.mean_kl == pytest.approx(0)
    other = compare_answers(answers(sure, sure), answers(sure, unsure), DecisionConfig())
    assert other.largest == pytest.approx(np.log(0.9 / 0.05), rel=1e-5)
    assert other.mean_kl == pytest.approx(0.85 * np.log(18) / 4, rel=1e-5), "one of four questions differs"
    assert other.n_labels_changed == 1
    assert other.n_pairs_changed == 2, "an angry utterance has two causes, each with a probability of 0.9 / 2"
    nan = compare_answers(answers(sure), answers([np.nan] * 7), DecisionConfig())
    assert (nan.largest, nan.mean_kl) == (np.inf, np.inf)
