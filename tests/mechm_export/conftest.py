"""The preset `tiny` in torch, and a bundle of it that has a Llama: what several modules compare with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mechm.cli import cli
from mechm.llm.combination import FittedCombination, fusion_sha256, write_combination
from mechm.llm.scorer import add_adapter, load_llama
from mechm.llm.stored_projector import PROJECTOR_FOLDER, ProjectorOrigin, save_projector
from mechm.model.build import build_network, save_trained
from mechm.model.config import TINY
from mechm.model.projector import ProjectorConfig, SoftTokenProjector
from mechm.training.llm_adapter import save_adapter
from mechm_export.bundle.report import BundleReport
from mechm_export.bundle.write import export_bundle
from mechm_export.parts import ModelParts, build_parts
from mechm_runtime.bundle.config import CombinationConfig, DecisionConfig

COMBINATION = CombinationConfig(0.4, 1.1, 0.3, 0.8, pair_bias=0.1)
DECISION = DecisionConfig(pair_threshold=0.05, neutral_log_bias=-1.0)


@pytest.fixture(scope="session")
def tiny_parts(small_weights: Path) -> ModelParts:
    """What `tiny_bundle` was exported from. Change a copy, not this."""
    return build_parts("tiny", None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fusion weights of the preset `tiny`."""
    folder = tmp_path_factory.mktemp("trained")
    save_trained(build_network(TINY, None), DecisionConfig(), {"data": "none"}, folder)
    return folder


@pytest.fixture(scope="session")
def adapter(llama_base: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes answers, as training writes it."""
    torch.manual_seed(1)
    adapted = add_adapter(load_llama(llama_base, torch.float32))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.05)
    folder = tmp_path_factory.mktemp("adapter") / "llm"
    save_adapter(adapted, DecisionConfig(), {"data": "none"}, folder)
    write_combination(FittedCombination(COMBINATION, DECISION, fusion_sha256(trained)), folder)
    projector = SoftTokenProjector(ProjectorConfig(2, TINY.fusion.hidden_size, 64), torch.randn(7, 64))
    save_projector(projector, ProjectorOrigin.of(trained, folder), {"data": "none"}, folder / PROJECTOR_FOLDER)
    return folder


@pytest.fixture(scope="session")
def report(
    trained: Path, adapter: Path, llama_base: Path, tmp_path_factory: pytest.TempPathFactory, small_weights: Path
) -> BundleReport:
    """A bundle of `trained` with the Llama of `adapter`. Treat it as read-only."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    return export_bundle("tiny", out, trained=trained, adapter=adapter, llm_base=llama_base)


@pytest.fixture(scope="session")
def served(report: BundleReport, adapter: Path, llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with the Llama in fp32 for vLLM, by the command. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    shutil.copytree(report.bundle.folder, folder)
    arguments = ["--bundle", folder, "--adapter", adapter, "--base", llama_base, "--dtype", "fp32"]
    done = CliRunner().invoke(cli, ["export", "llm", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert f"wrote {folder / 'llm/served'}" in done.output
    return folder
