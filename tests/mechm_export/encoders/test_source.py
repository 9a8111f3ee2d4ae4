"""Models that are not what they should be: refused before anything is exported."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechm_export.cli.encoder import PRECISIONS as OFFERED_PRECISIONS
from mechm_export.cli.encoder import TASKS as OFFERED_TASKS
from mechm_export.encoders.architectures import ARCHITECTURES, TASKS
from mechm_export.encoders.axes import PRECISIONS
from mechm_export.encoders.source import find_source, load_model
from mechm_runtime.errors import InputError, MechmError, WeightsError

Folders = Callable[[str], Path]


@pytest.fixture
def folder(encoders: Folders, tmp_path: Path) -> Path:
    """BERT, to damage."""
    return Path(shutil.copytree(encoders("bert"), tmp_path / "bert"))


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_the_command_offers_what_there_is() -> None:
    assert OFFERED_TASKS == TASKS
    assert OFFERED_PRECISIONS == PRECISIONS


def test_an_unknown_architecture_is_named_with_the_list(folder: Path) -> None:
    change_config(folder, model_type="llama")
    with pytest.raises(WeightsError, match="architecture 'llama'") as refused:
        find_source(str(folder))
    assert all(name in refused.value.hint for name in ARCHITECTURES)


def test_code_of_a_models_repository_is_never_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    change_config(folder, auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    load_model(find_source(str(folder)))


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_pickled_weights_hold_tensors_alone(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    loaded = load_model(find_source(str(folder)))
    assert torch.equal(loaded.embeddings.word_embeddings.weight, state["embeddings.word_embeddings.weight"])
    marker = tmp_path / "was-run"
    torch.save(state | {"evil": Evil(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="does not load"):
        load_model(find_source(str(folder)))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker), protocol=2))
    with pytest.raises(WeightsError, match="does not load"):
        load_model(find_source(str(folder)))
    assert not marker.exists()


def drop_a_weight(state: dict[str, torch.Tensor]) -> None:
    del state["encoder.layer.0.output.dense.weight"]


def misshape_a_weight(state: dict[str, torch.Tensor]) -> None:
    state["encoder.layer.0.output.dense.weight"] = torch.zeros(7, 7)


@pytest.mark.parametrize("damage", [drop_a_weight, misshape_a_weight])
def test_weights_that_do_not_fit(damage: Callable[[dict[str, torch.Tensor]], None], folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    damage(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 weights of BertModel, enc|does not load"):
        load_model(find_source(str(folder)))


def test_a_damaged_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError):
        load_model(find_source(str(folder)))
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(WeightsError, match="not a JSON object"):
        find_source(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="no readable config"):
        find_source(str(folder))


def test_an_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="is an adapter"):
        find_source(str(folder))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("clip", {"task": "feature-extraction"}, "several encoders"),
        ("clip", {}, "several encoders"),
        ("bert", {"task": "image-embedding"}, "bert has no image-embedding"),
        ("dinov2", {"modality": "text"}, "no embedding of text"),
        ("bert", {"revision": "main"}, "--revision is for hub ids"),
    ],
)
def test_tasks_that_it_does_not_have(name: str, options: dict[str, Any], words: str, encoders: Folders) -> None:
    with pytest.raises(InputError, match=words):
        find_source(str(encoders(name)), **options)


def test_neither_a_folder_nor_an_id(tmp_path: Path) -> None:
    for model in (str(tmp_path / "nothing"), "no such model", "../up/and/away"):
        with pytest.raises(InputError, match="neither a folder nor a hub id"):
            find_source(model)


def test_a_hub_that_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own words, and what to do instead."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MechmError, match="cannot be fetched") as refused:
        find_source("some-owner/some-model-that-is-not-cached")
    assert "hf download some-owner/some-model-that-is-not-cached" in refused.value.hint
