"""Importing: at the full list of names, complete or refused, merged as it was unmerged, whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from mechm.cli import cli
from mechm.llm.blockwise import log_probabilities
from mechm.minigpt.image_tokens import ImageTokens
from mechm.minigpt.importing import import_minigpt
from mechm_runtime.errors import InputError, MechmError, WeightsError

Kit = dict[str, Callable[..., Any]]


def eva(state: dict[str, Tensor], pixels: Tensor, *, n_layers: int, head: int) -> Tensor:
    """EVA's ViT in plain torch, on the names of its file (Vision-CAIR/MiniGPT-4, models/eva_vit.py)."""
    state = {name: tensor.float() for name, tensor in state.items()}
    weight = state["patch_embed.proj.weight"]
    x = F.conv2d(pixels, weight, state["patch_embed.proj.bias"], stride=weight.shape[-1])
    side = x.shape[-1]
    x = x.flatten(2).transpose(1, 2)
    positions = state["pos_embed"]
    old = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[0, 1:].T.reshape(1, -1, old, old)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    positions = torch.cat([positions[:, :1], grid.reshape(1, -1, side * side).transpose(1, 2)], 1)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + positions
    b, t, d = x.shape
    for number in range(n_layers):
        block = {
            name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith(f"blocks.{number}.")
        }
        y = F.layer_norm(x, (d,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        bias = torch.cat([block["attn.q_bias"], torch.zeros(d), block["attn.v_bias"]])
        q, k, v = F.linear(y, block["attn.qkv.weight"], bias).reshape(b, t, 3, d // head, head).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) / head**0.5).softmax(-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).reshape(b, t, d), block["attn.proj.weight"], block["attn.proj.bias"])
        y = F.layer_norm(x, (d,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return x


def image_tokens(vit: dict[str, Tensor], model: dict[str, Tensor], pixels: Tensor, **sizes: int) -> Tensor:
    """`MiniGPTv2.encode_img`: the class token dropped, four states in a row, one linear layer."""
    x = eva(vit, pixels, **sizes)
    x = F.layer_norm(x, x.shape[-1:], model["ln_vision.weight"], model["ln_vision.bias"], 1e-5)[:, 1:]
    b, n, d = x.shape
    return F.linear(x.reshape(b, n // 4, d * 4), model["llama_proj.weight"], model["llama_proj.bias"])


def llama_of(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def test_the_command_imports_every_name_of_the_full_model(kit: Kit, tmp_path: Path) -> None:
    """39 of 40 blocks at 448 px from 224, and the 32 blocks of Llama-2-7b; widths reduced, one head of 88."""
    vit, model = kit["vit"](39, 88, 100, side=16), kit["checkpoint"](n_layers=32, width=88)
    assert len(vit) == 4 + 40 * 13 + 3
    assert len(model) == 4 + 32 * 5
    torch.save(vit, tmp_path / "eva_vit_g.pth")
    checkpoint = kit["write"](tmp_path / "checkpoint_6.pth", model)
    llama = kit["llama"](tmp_path / "llama", num_hidden_layers=32)
    out = tmp_path / "imported"
    arguments = ["--checkpoint", checkpoint, "--llama", llama, "--vit", tmp_path / "eva_vit_g.pth", "--out", out]
    done = CliRunner().invoke(cli, ["import", "minigpt-v2", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "minigpt-v2: LoRA of rank 4, alpha 16, on 64 layers" in done.output

    module = ImageTokens.from_folder(out / "vision")
    assert module.config.n_tokens == 256
    pixels = torch.randn(1, 3, 448, 448)
    with torch.inference_mode():
        found = module(pixels)
        expected = image_tokens(vit, model, pixels, n_layers=39, head=88)
    assert found.shape == (1, 256, 64)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)

    before, after = llama_of(llama), llama_of(out / "llm")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float16
        path = f"llama_model.base_model.model.{name.removesuffix('.weight')}"
        a, b = model.get(f"{path}.lora_A.weight"), model.get(f"{path}.lora_B.weight")
        summed = value.double() if a is None or b is None else value.double() + 16 / 4 * (b.double() @ a.double())
        torch.testing.assert_close(after[name].double(), summed, atol=1e-6, rtol=1e-3)

    card = json.loads((out / "card.json").read_text())["imported"]
    assert 0 < card["merged"]["largest"] < 1e-3
    assert card["merged"]["largest"] < card["written"]["largest"] < 1
    assert {*card["inputs"]} == {"checkpoint/checkpoint_6.pth", "vit/eva_vit_g.pth", "llama/model.safetensors"}
    assert sum(name.startswith("blocks.39.") for name in card["unused"]) == 13
    assert AutoModelForCausalLM.from_pretrained(out / "llm").dtype == torch.float16
    assert (out / "llm/LICENSE.txt").read_text() == "the terms"
    assert not any(str(tmp_path) in path.read_text() for path in out.rglob("*.json"))
    assert not list(tmp_path.glob(".*"))


def test_several_files_are_read_and_written(shared_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechm.minigpt.importing.SHARD", "60KB")
    first = tmp_path / "first"
    import_minigpt(shared_files.checkpoint, shared_files.llama, shared_files.vit, first, shape=shared_files.small)
    assert len(list((first / "llm").glob("*.safetensors"))) > 3
    # What has the LoRA in it has it twice when it is merged again: the sharded folder is a Llama like any other.
    steps: list[str] = []
    import_minigpt(
        shared_files.checkpoint,
        first / "llm",
        shared_files.vit,
        tmp_path / "second",
        dtype="fp32",
        shape=shared_files.small,
        on_progress=lambda doing, _done, _n: steps.append(doing),
    )
    name = "model.layers.1.self_attn.q_proj.weight"
    zero, one, two = (llama_of(f)[name].double() for f in (shared_files.llama, first / "llm", tmp_path / "second/llm"))
    torch.testing.assert_close(two - one, one - zero, atol=2e-3, rtol=0)
    assert (one - zero).abs().max() > 0.1
    assert steps.index("reading the checkpoint") < steps.index("merging the LoRA") < steps.index("asking the sum")


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_run_block_by_block_answers_as_a_whole_one(kit: Kit, tmp_path: Path, tied: bool) -> None:
    folder = kit["llama"](tmp_path / "llama", tie_word_embeddings=tied, num_attention_heads=4, num_key_value_heads=2)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = llama_of(folder)
    prompts = [[1, 5, 300, 7], [1, 9]]
    found = log_probabilities(LlamaConfig.from_pretrained(folder), lambda name: state[name].float(), prompts)
    for prompt, one in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected = whole(torch.tensor([prompt])).logits[0].log_softmax(-1)
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=0)


def imported(files: Any, out: Path, checkpoint: Path | None = None, **options: Any) -> Any:
    vit = options.pop("vit", files.vit)
    llama = options.pop("llama", files.llama)
    return import_minigpt(checkpoint or files.checkpoint, llama, vit, out, shape=files.small, **options)


def test_alpha_is_what_the_checkpoint_says(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    state = kit["checkpoint"](n_layers=2, width=32, adapter_name=".default")
    checkpoint = kit["write"](tmp_path / "c.pth", state, lora_r=4, lora_alpha=32)
    made = imported(shared_files, tmp_path / "out", checkpoint, dtype="fp32")
    assert made.alpha == 32
    name = "model.layers.0.self_attn.v_proj"
    a, b = (state[f"llama_model.base_model.model.{name}.lora_{side}.default.weight"] for side in "AB")
    added = llama_of(tmp_path / "out/llm")[f"{name}.weight"] - llama_of(shared_files.llama)[f"{name}.weight"].float()
    torch.testing.assert_close(added, 32 / 4 * b @ a, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="trained with 32"):
        imported(shared_files, tmp_path / "other", checkpoint, alpha=16)
    assert imported(shared_files, tmp_path / "given", alpha=8).alpha == 8


def test_a_checkpoint_with_a_vit_of_its_own(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    """Trained at the picture's size: positions stay as they are, and the original's file is not wanted."""
    vit = {name: tensor for name, tensor in kit["vit"](2, 32, 48, side=8, seed=5).items() if "blocks.2." not in name}
    state = kit["checkpoint"](n_layers=2, width=32)
    checkpoint = kit["write"](tmp_path / "c.pth", {**state, **{f"visual_encoder.{n}": t for n, t in vit.items()}})
    with pytest.raises(InputError, match="has a ViT of its own"):
        imported(shared_files, tmp_path / "out", checkpoint)
    imported(shared_files, tmp_path / "out", checkpoint, vit=None)
    written = load_file(tmp_path / "out/vision/model.safetensors")
    assert torch.equal(written["embeddings.position_embedding"], vit["pos_embed"].float())
    pixels = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        found = ImageTokens.from_folder(tmp_path / "out/vision")(pixels)
    torch.testing.assert_close(found, image_tokens(vit, state, pixels, n_layers=2, head=16), atol=1e-4, rtol=1e-4)


def test_without_ln_vision_the_identity_is_asked_for(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    state = {n: t for n, t in kit["checkpoint"](n_layers=2, width=32).items() if not n.startswith("ln_vision")}
    checkpoint = kit["write"](tmp_path / "c.pth", state)
    with pytest.raises(WeightsError, match=r"lacks ln_vision\.weight and ln_vision\.bias") as refused:
        imported(shared_files, tmp_path / "out", checkpoint)
    assert "--ln-vision identity" in refused.value.hint
    made = imported(shared_files, tmp_path / "out", checkpoint, ln_vision="identity")
    assert made.ln_vision == "identity"
    plain = {**state, "ln_vision.weight": torch.ones(32), "ln_vision.bias": torch.zeros(32)}
    pixels = torch.randn(1, 3, 112, 112)
    vit = torch.load(shared_files.vit, weights_only=True)
    with torch.inference_mode():
        found = ImageTokens.from_folder(tmp_path / "out/vision")(pixels)
    torch.testing.assert_close(found, image_tokens(vit, plain, pixels, n_layers=2, head=16), atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="an ln_vision of its own"):
        imported(shared_files, tmp_path / "other", ln_vision="identity")


def test_mer_mces_unused_projection_is_left_out(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    state = kit["checkpoint"](n_layers=2, width=32)
    unused = {"feats_llama_proj.weight": torch.ones(64, 1024), "feats_llama_proj.bias": torch.ones(64)}
    made = imported(shared_files, tmp_path / "out", kit["write"](tmp_path / "c.pth", {**state, **unused}))
    assert made.variant == "mer-mce"
    assert set(unused) < set(made.unused)
    assert not any("feats" in name for name in load_file(tmp_path / "out/vision/model.safetensors"))


def test_emotion_llama_adds_features_and_the_class_token(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    state = kit["checkpoint"](n_layers=2, width=32)
    for name, width in {"cls_tk_llama_proj": 32, **{f"feats_llama_proj{n}": 10 for n in (1, 2, 3)}}.items():
        state |= {f"{name}.weight": torch.randn(64, width), f"{name}.bias": torch.randn(64)}
    training = {"attention.feats_prep.0.0.weight": torch.ones(2, 2), "attention.fc_out.bias": torch.ones(6)}
    made = imported(shared_files, tmp_path / "out", kit["write"](tmp_path / "c.pth", {**state, **training}))
    assert made.variant == "emotion-llama"
    module = ImageTokens.from_folder(tmp_path / "out/vision")
    assert module.config.n_tokens == 16 + 3 + 1
    pixels, features = torch.randn(2, 3, 112, 112), torch.randn(2, 3, 10)
    vit = torch.load(shared_files.vit, weights_only=True)
    states = eva(vit, pixels, n_layers=2, head=16)
    normed = F.layer_norm(states, (32,), state["ln_vision.weight"], state["ln_vision.bias"], 1e-5)
    told = [
        F.linear(features[:, n], state[f"feats_llama_proj{n + 1}.weight"], state[f"feats_llama_proj{n + 1}.bias"])
        for n in range(3)
    ]
    class_token = F.linear(normed[:, :1], state["cls_tk_llama_proj.weight"], state["cls_tk_llama_proj.bias"])
    expected = [image_tokens(vit, state, pixels, n_layers=2, head=16), torch.stack(told, 1), class_token]
    with torch.inference_mode():
        torch.testing.assert_close(module(pixels, features), torch.cat(expected, 1), atol=1e-4, rtol=1e-4)
    for wrong in (None, features[:1], features[:, :2]):
        with pytest.raises(InputError, match="features"):
            module(pixels, wrong)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


LORA = "llama_model.base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
STATES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "half a pair": (lambda s: s.pop(LORA), "1 missing: model.layers.1.self_attn.v_proj.lora_B"),
    "two adapters": (
        lambda s: s.update({LORA.replace("lora_B", "lora_B.default"): s[LORA]}),
        "two adapters: model.layers.1.self_attn.v_proj.lora_B is there twice",
    ),
    "another layer": (
        lambda s: s.update({LORA.replace("layers.1", "layers.2"): s[LORA]}),
        "1 left over: model.layers.2.self_attn.v_proj.lora_B",
    ),
    "another module": (
        lambda s: s.update({LORA.replace("v_proj", "k_proj"): s[LORA]}),
        "1 left over: model.layers.1.self_attn.k_proj.lora_B",
    ),
    "no projection": (lambda s: s.pop("llama_proj.bias"), "1 missing: llama_proj.bias"),
    "half a norm": (lambda s: s.pop("ln_vision.bias"), "1 missing: ln_vision.bias"),
    "left over": (lambda s: s.update({"query_tokens": torch.ones(1)}), "1 left over: query_tokens"),
    "many left over": (
        lambda s: s.update({f"Qformer.{n}": torch.ones(1) for n in range(40)}),
        "40 left over: Qformer.0, Qformer.1, Qformer.2, Qformer.3",
    ),
    "another Llama": (
        lambda s: s.update({"llama_proj.weight": torch.ones(96, 128), "llama_proj.bias": torch.ones(96)}),
        "llama_proj.weight is (96, 128) where llama x token is (64, 128)",
    ),
    "another ViT": (
        lambda s: s.update({"llama_proj.weight": torch.ones(64, 5632)}),
        "llama_proj.weight is (64, 5632) where llama x token is (64, 128)",
    ),
    "another rank": (
        lambda s: s.update({LORA: torch.ones(64, 8)}),
        "model.layers.1.self_attn.v_proj: A (4, 64), B (64, 8) for 64 x 64 at rank 4",
    ),
    "another width of pairs": (
        lambda s: s.update({n: torch.ones(4, 96) for n in s if "lora_A" in n}),
        "LoRA does not fit the Llama, 4 pairs",
    ),
    "not finite": (lambda s: s.update({LORA: torch.full((64, 4), torch.nan)}), "self_attn.v_proj.lora_B is not finite"),
    "no rank": (lambda s: s.update({n: torch.ones(()) for n in s if "lora_A" in n}), "4 pairs: model.layers.0"),
    "sparse": (
        lambda s: s.update({"llama_proj.bias": torch.ones(64).to_sparse()}),
        "llama_proj.bias is torch.float32, torch.sparse_coo, not a dense tensor of floats",
    ),
    "projection not finite": (lambda s: s["llama_proj.bias"].fill_(torch.inf), "llama_proj.bias is not finite"),
    "no tensor": (lambda s: s.update(name="checkpoint"), "name is str, not a dense tensor of floats"),
    "whole numbers": (lambda s: s.update(ids=torch.ones(2, dtype=torch.int64)), "ids is torch.int64"),
    "nothing": (lambda s: s.clear(), "has no tensors by name"),
}


@pytest.mark.parametrize("what", STATES)
def test_a_checkpoint_that_does_not_fit_is_refused(shared_files: Any, kit: Kit, tmp_path: Path, what: str) -> None:
    change, said = STATES[what]
    state = kit["checkpoint"](n_layers=2, width=32)
    change(state)
    checkpoint = kit["write"](tmp_path / "c.pth", state)
    with pytest.raises(WeightsError) as refused:
        imported(shared_files, tmp_path / "out", checkpoint)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 1500
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


VITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a block too few": (
        lambda s: [s.pop(n) for n in list(s) if n.startswith(("blocks.1.", "blocks.2."))],
        "13 missing: blocks.1.attn.",
    ),
    "a block too many": (
        lambda s: s.update({n.replace("blocks.2.", "blocks.3."): t for n, t in list(s.items()) if "blocks.2." in n}),
        "13 left over: blocks.3.",
    ),
    "another mlp": (
        lambda s: s.update({"blocks.1.mlp.fc2.weight": torch.ones(32, 64)}),
        "blocks.1.mlp.fc2.weight is (32, 64) where width x mlp is (32, 48)",
    ),
    "no square": (lambda s: s.update(pos_embed=torch.ones(1, 13, 32)), "13 positions and patches of 14 px"),
    "flat": (lambda s: s.update(pos_embed=torch.ones(32)), "positions"),
    "other heads": (
        lambda s: s.update({"pos_embed": torch.ones(1, 17, 24)}),
        "width 24 does not divide into heads of 16",
    ),
    "not finite": (lambda s: s["cls_token"].fill_(torch.nan), "cls_token is not finite"),
}


@pytest.mark.parametrize("what", VITS)
def test_a_vit_that_does_not_fit_is_refused(shared_files: Any, kit: Kit, tmp_path: Path, what: str) -> None:
    change, said = VITS[what]
    state = kit["vit"](2, 32, 48)
    change(state)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(WeightsError) as refused:
        imported(shared_files, tmp_path / "out", vit=tmp_path / "vit.pth")
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_file_with_code_in_it_is_refused_and_not_run(
    shared_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "c.pth"
    torch.save({"model": {"llama_proj.weight": torch.ones(1)}, "config": Payload()}, checkpoint)
    with pytest.raises(WeightsError, match="holds more than tensors") as refused:
        imported(shared_files, tmp_path / "out", checkpoint)
    assert "(posix.mkdir)" in str(refused.value)
    checkpoint.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(WeightsError, match="holds more than tensors"):
        imported(shared_files, tmp_path / "out", checkpoint)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_none_are_refused(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.pth"
    checkpoint.write_bytes(shared_files.checkpoint.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match="torch file"):
        imported(shared_files, tmp_path / "out", checkpoint)
    torch.save([torch.ones(1)], checkpoint)
    with pytest.raises(WeightsError, match="holds a list"):
        imported(shared_files, tmp_path / "out", checkpoint)
    with pytest.raises(InputError, match="has no ViT") as refused:
        imported(shared_files, tmp_path / "out", vit=None)
    assert "--vit" in refused.value.hint


def test_a_base_that_is_none_is_refused(shared_files: Any, kit: Kit, tmp_path: Path) -> None:
    llama = tmp_path / "llama"
    shutil.copytree(shared_files.llama, llama)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(WeightsError, match="'gpt2', where a Llama is expected"):
        imported(shared_files, tmp_path / "out", llama=llama)
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(WeightsError, match=r"9 missing: model\.layers\.2\."):
        imported(shared_files, tmp_path / "out", llama=llama)
    (llama / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(WeightsError, match="is none of a Llama"):
        imported(shared_files, tmp_path / "out", llama=llama)
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 112}))
    with pytest.raises(WeightsError, match=r"weights of other sizes, 6: model\.layers\.0\.mlp"):
        imported(shared_files, tmp_path / "out", llama=llama)
    (llama / "config.json").write_text(json.dumps(config))
    kit["tokenizer"](prefix=False).save(str(llama / "tokenizer.json"))
    with pytest.raises(WeightsError, match="otherwise than MiniGPT-v2's did"):
        imported(shared_files, tmp_path / "out", llama=llama)


def test_nothing_is_left_of_an_import_that_fails(
    shared_files: Any, kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    large = {n: 1e6 * t if "lora_B" in n else t for n, t in kit["checkpoint"](n_layers=2, width=32).items()}
    checkpoint = kit["write"](tmp_path / "c.pth", large)
    with pytest.raises(WeightsError, match="does not fit into fp16") as refused:
        imported(shared_files, out, checkpoint)
    assert "--dtype" in refused.value.hint
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as few:
        few.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(WeightsError, match="GB free"):
            imported(shared_files, out)
    with monkeypatch.context() as strict:
        strict.setattr("mechm.minigpt.comparison.TOLERANCE", 0.0)
        with pytest.raises(MechmError, match="merged and unmerged answer differently"):
            imported(shared_files, out)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]
    out.mkdir()
    with pytest.raises(WeightsError, match="exists"):
        imported(shared_files, out)
