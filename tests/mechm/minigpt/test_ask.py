"""Asking what was imported: the prompt's tokens, and answers and scores as of transformers with the LoRA beside."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mechm.cli import cli
from mechm.minigpt.image_tokens import ImageTokens
from mechm.minigpt.importing import import_minigpt
from mechm.minigpt.model import MiniGptV2, open_minigpt
from mechm.minigpt.picture import first_frame_pixels, read_features
from mechm.minigpt.prompt import PromptReader
from mechm.minigpt.torch_llama import TorchGenerator
from mechm_runtime.errors import InputError, MediaError, WeightsError
from mechm_runtime.llm.vllm.config import ServerConfig
from mechm_runtime.media import MediaLimits
from mechm_runtime.modalities.frame_pixels import clip_config, squeezed_pixels

TEXT = "Ben: No way, congratulations!"


@pytest.fixture(scope="module")
def folder(shared_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported in fp32. Treat it as read-only."""
    out = tmp_path_factory.mktemp("imported") / "model"
    files = shared_files
    import_minigpt(files.checkpoint, files.llama, files.vit, out, dtype="fp32", shape=files.small)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> MiniGptV2:
    return open_minigpt(folder)


@pytest.fixture(scope="module")
def unmerged(shared_files: Any) -> Any:
    """The Llama with the checkpoint's LoRA beside it, by peft."""
    llama = AutoModelForCausalLM.from_pretrained(shared_files.llama, dtype=torch.float32)
    adapted = get_peft_model(llama, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    state = torch.load(shared_files.checkpoint, weights_only=True)["model"]
    pairs = {
        name.removeprefix("llama_model.").replace("_A.", "_A.default.").replace("_B.", "_B.default."): tensor
        for name, tensor in state.items()
        if "lora_" in name
    }
    assert not adapted.load_state_dict(pairs, strict=False).unexpected_keys
    return adapted.eval()


def pixels_of(seed: int, side: int = 112) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(3, side, side)).astype(np.float32)


def embedded_prompt(unmerged: Any, folder: Path, kit: Any, pixels: Any, instruction: str) -> Tensor:
    """`get_context_emb`: both sides of the picture tokenized by themselves, the tokenizer's `<s>` before the first."""
    tokenizer = kit["tokenizer"]()
    before, after = f"<s>[INST] {instruction} [/INST]".split("<ImageHere>")
    embed = unmerged.get_input_embeddings()
    pieces = [
        embed(torch.tensor([tokenizer.encode(before, add_special_tokens=True).ids])),
        ImageTokens.from_folder(folder / "vision")(torch.from_numpy(pixels)[None]),
        embed(torch.tensor([tokenizer.encode(after, add_special_tokens=False).ids])),
    ]
    return torch.cat(pieces, 1)


def test_answers_are_those_of_the_lora_beside_the_llama(
    model: MiniGptV2, unmerged: Any, folder: Path, kit: dict[str, Callable[..., Any]]
) -> None:
    """Token by token without a cache, the end not allowed at first, though the published settings ask for sampling."""
    differing = set()
    for seed in range(3):
        pixels = pixels_of(seed)
        expected = []
        with torch.inference_mode():
            states = embedded_prompt(unmerged, folder, kit, pixels, f"<Img><ImageHere></Img> [emotion] {TEXT} ")
            for step in range(12):
                logits = unmerged(inputs_embeds=states).logits[0, -1]
                if step == 0:
                    logits[2] = -torch.inf
                expected.append(int(logits.argmax()))
                if expected[-1] == 2:
                    break
                states = torch.cat([states, unmerged.get_input_embeddings()(torch.tensor([expected[-1:]]))], 1)
        tokens = model.encode_picture(pixels)
        prompt = model.prompts.read(TEXT, task="emotion")
        assert model.generator.generate(prompt.ids, prompt.image_at, tokens, 12) == expected
        assert model.answer(tokens, TEXT, task="emotion", max_new_tokens=12) == model.prompts.decode(expected)
        differing.add(tuple(expected))
    assert len(differing) > 1, "answers depend on the picture"


def test_the_end_is_not_the_first_token(shared_files: Any, model: MiniGptV2) -> None:
    llama = AutoModelForCausalLM.from_pretrained(shared_files.llama, dtype=torch.float32)
    with torch.no_grad():
        llama.model.norm.weight.zero_()  # all tokens are as likely, and </s> wins when its row is larger
    llama.lm_head = torch.nn.Linear(64, 500)
    with torch.no_grad():
        llama.lm_head.bias.zero_()
        llama.lm_head.bias[2], llama.lm_head.bias[7] = 2.0, 1.0
    written = TorchGenerator(llama).generate(np.array([1, 5]), np.array([1]), np.zeros((1, 64), np.float32), 5)
    assert written == [7, 2]


def test_scores_are_the_answers_log_probabilities(
    model: MiniGptV2, unmerged: Any, folder: Path, kit: dict[str, Callable[..., Any]]
) -> None:
    pixels, answers = pixels_of(4), ["joy", "surprise", "neutral"]
    expected = []
    with torch.inference_mode():
        states = embedded_prompt(unmerged, folder, kit, pixels, f"<Img><ImageHere></Img> {TEXT}")
        for answer in answers:
            ids = kit["tokenizer"]().encode(f"{answer}</s>", add_special_tokens=False).ids
            assert ids[-1] == 2
            total = 0.0
            grown = states
            for one in ids:
                total += float(unmerged(inputs_embeds=grown).logits[0, -1].log_softmax(-1)[one])
                grown = torch.cat([grown, unmerged.get_input_embeddings()(torch.tensor([[one]]))], 1)
            expected.append(total)
    found = model.score(model.encode_picture(pixels), TEXT, answers)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(InputError, match="no answers"):
        model.score(model.encode_picture(pixels), TEXT, [])


def test_the_prompt_is_the_one_of_training(shared_files: Any, kit: dict[str, Callable[..., Any]]) -> None:
    reader = PromptReader(shared_files.llama / "tokenizer.json", "mer-mce", 3)
    prompt = reader.read("Ana: hi", task="emotion")
    at = prompt.image_at.tolist()
    tokenizer = kit["tokenizer"]()
    tokens = [tokenizer.id_to_token(one) for one in prompt.ids.tolist()]
    assert at == list(range(at[0], at[0] + 3))
    assert tokens[:2] == ["<s>", "<s>"]
    assert "".join(tokens[2 : at[0]]) == "▁[INST]▁<Img>"
    assert "".join(tokens[at[-1] + 1 :]) == "▁</Img>▁[emotion]▁Ana:▁hi▁▁[/INST]"
    assert "".join(tokenizer.id_to_token(one) for one in reader.read("hi").ids[at[-1] + 1 :]) == "▁</Img>▁hi▁[/INST]"
    assert reader.decode([*tokenizer.encode("joy", add_special_tokens=False).ids, 2]) == "joy"
    with pytest.raises(InputError, match="<ImageHere> in the text"):
        reader.read("look: <ImageHere>")
    heard = PromptReader(shared_files.llama / "tokenizer.json", "emotion-llama", 2).read("hi")
    words = "".join(tokenizer.id_to_token(one) for one in heard.ids[heard.image_at[-1] + 1 :])
    assert words == "▁</video>▁<feature><FeatureHere></feature>▁hi▁[/INST]"
    with pytest.raises(WeightsError, match="is no tokenizer"):
        PromptReader(shared_files.llama / "config.json", "mer-mce", 3)


@pytest.mark.parametrize("size", [(300, 200), (90, 400)])
def test_a_picture_is_squeezed_as_blip_2_does(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    processor = BlipImageProcessorPil(size={"height": 112, "width": 112}, resample=3)
    (expected,) = processor(frame, return_tensors="np")["pixel_values"]
    found = squeezed_pixels(frame, clip_config(112))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_large_picture_is_scaled_once(tmp_path: Path) -> None:
    """ECF's clips are 1280 x 720: what is heard and seen elsewhere is scaled to 640 pixels when it is decoded."""
    frame = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "large.png")
    found = first_frame_pixels(tmp_path / "large.png", 448)
    np.testing.assert_array_equal(found, squeezed_pixels(frame, clip_config(448)))
    smaller = first_frame_pixels(tmp_path / "large.png", 448, MediaLimits())
    assert np.abs(smaller - found).max() > 0.1


def test_the_command_answers_about_a_recordings_first_frame(
    folder: Path, model: MiniGptV2, repository: Path, tmp_path: Path
) -> None:
    video = repository / "sample/conversation.mp4"
    tokens = model.encode_picture(first_frame_pixels(video, 112))
    arguments = ["ask", "picture", "--model", str(folder), "--device", "cpu", "--task", "emotion"]
    done = CliRunner().invoke(cli, [*arguments, str(video), TEXT], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert done.output.rstrip("\n").strip() == model.answer(tokens, TEXT, task="emotion").rstrip("\n")
    done = CliRunner().invoke(cli, [*arguments, "--answers", "joy, anger", str(video), TEXT], catch_exceptions=False)
    scores = {line.split()[1]: float(line.split()[0]) for line in done.output.splitlines()}
    expected = model.score(tokens, TEXT, ["joy", "anger"], task="emotion")
    assert scores == pytest.approx(dict(zip(["joy", "anger"], expected, strict=True)), abs=2e-3)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_what_cannot_be_asked_is_refused(folder: Path, model: MiniGptV2, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a picture \(3, 224, 224\)"):
        model.encode_picture(pixels_of(0, 224))
    with pytest.raises(InputError, match="reads no features"):
        model.encode_picture(pixels_of(0), np.zeros((3, 4), np.float32))
    with pytest.raises(WeightsError, match="is no imported model") as refused:
        open_minigpt(tmp_path)
    assert "mechm import minigpt-v2" in refused.value.hint
    with pytest.raises(InputError, match="a server for backend torch"):
        open_minigpt(folder, server=ServerConfig())
    with wave.open(str(tmp_path / "voice.wav"), "wb") as voice:
        voice.setparams((1, 2, 16_000, 0, "NONE", ""))
        voice.writeframes(bytes(32_000))
    with pytest.raises(MediaError, match=r"voice\.wav shows nothing"):
        first_frame_pixels(tmp_path / "voice.wav", 112)
    np.save(tmp_path / "f.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="no numpy file"):
        read_features(tmp_path / "f.npy")
    np.save(tmp_path / "f.npy", np.full((3, 4), np.nan))
    with pytest.raises(InputError, match="not finite"):
        read_features(tmp_path / "f.npy")
    usage = CliRunner().invoke(
        cli, ["ask", "picture", "--model", str(folder), "--llm-url", "http://x", str(tmp_path / "f.npy"), "?"]
    )
    assert usage.exit_code == 2
    assert "--backend vllm" in usage.output


@pytest.mark.parametrize("damage", ["weights", "config", "missing"])
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "vision" / name).read_bytes())
    if damage == "weights":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-5])
    elif damage == "config":
        config = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(config.replace('"n_layers": 2', '"n_layers": 3'))
    else:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError):
        ImageTokens.from_folder(tmp_path)
