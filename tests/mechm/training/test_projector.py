"""The projector: what was heard reaches the Llama's answers, and words alone are answered as before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mechm.cli import cli
from mechm.data.simulated_modalities import SimulatedModalities, SimulationConfig
from mechm.llm.projection import Projection, speakers_of
from mechm.llm.scorer import AnswerScores, add_adapter, load_llama, load_merged
from mechm.llm.stored_projector import ProjectorOrigin, has_projector, load_projector, save_projector
from mechm.model.build import build_network, save_trained
from mechm.model.config import TINY
from mechm.model.projector import ProjectorConfig, SoftTokenProjector
from mechm.training.llm import score_with_llama
from mechm.training.llm_adapter import save_adapter
from mechm.training.projector import ProjectorTrainingConfig, drawn_soft_tokens, train_projector
from mechm.training.stages import Stage
from mechm_export.check_data import check_conversations
from mechm_runtime.bundle.config import DecisionConfig, QuestionConfig
from mechm_runtime.errors import WeightsError
from mechm_runtime.llm.questions import QuestionTokenizer
from mechm_runtime.readers import read_labelled
from mechm_runtime.types import LabelledConversation

SIZES = ProjectorConfig(n_tokens=2, state_size=TINY.fusion.hidden_size, hidden_size=64)

# Nothing in the words tells joy from sadness.
SAMPLE = "".join(
    f"""{number} 4
 (1,1),(2,2),(3,3),(4,4)
1 | Ann | {first} | Well. |
2 | Bob | {second} | Well. |
3 | Ann | {second} | Well. |
4 | Bob | {first} | Well. |
"""
    for number, (first, second) in enumerate([("joy", "sadness"), ("sadness", "joy")] * 8, 1)
)


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fusion weights that were written, random as they are."""
    folder = tmp_path_factory.mktemp("fusion")
    save_trained(build_network(TINY, None), DecisionConfig(), {"data": "none"}, folder)
    return folder


@pytest.fixture
def adapter(llama_base: Path, tmp_path: Path) -> Path:
    """An adapter, as training writes it, with which a random Llama looks at more than the mean of its words."""
    torch.manual_seed(1)
    llama = add_adapter(load_llama(llama_base, torch.float32))
    with torch.no_grad():
        for parameter in llama.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.15)
    save_adapter(llama, DecisionConfig(), {"data": "none"}, tmp_path / "llm")
    return tmp_path / "llm"


def projection(fusion_seed: int = 0) -> Projection:
    words = torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    network = build_network(TINY, None, seed=fusion_seed)
    return Projection(network.fusion, TINY.text.hidden_size, SoftTokenProjector(SIZES, words))


def conversations() -> tuple[LabelledConversation, ...]:
    return check_conversations()[:3]


def drawing(**changes: float) -> SimulatedModalities:
    return SimulatedModalities(TINY, {}, SimulationConfig(**{"conversation_rate": 1.0, "text_dropout": 0.0, **changes}))


def test_a_soft_token_starts_as_the_mean_of_the_emotions_words() -> None:
    words = torch.randn(7, 64)
    projector = SoftTokenProjector(SIZES, words)
    logits = torch.tensor([[0.0, 0.0, 0.0, 50.0, 0.0, 0.0, 0.0], [0.0] * 7])
    tokens = projector(torch.randn(2, SIZES.state_size), logits)
    assert tokens.shape == (2, 2, 64)
    torch.testing.assert_close(tokens[0], words[3].expand(2, 64))
    torch.testing.assert_close(tokens[1], words.mean(0).expand(2, 64))


def test_padding_and_what_is_absent_change_no_token() -> None:
    some = conversations()
    module = projection()
    nowhere = drawing(utterance_rate=0.0)
    for one in some:
        soft = drawn_soft_tokens(module, one, nowhere, [0, 0])
        assert not soft.has_nonverbal.any()
    one = drawn_soft_tokens(module, some[0], drawing(), [0, 1])
    again = drawn_soft_tokens(module, some[0], drawing(), [0, 1])
    other = drawn_soft_tokens(module, some[0], drawing(), [0, 2])
    assert one.has_nonverbal.any()
    assert np.array_equal(one.tokens, again.tokens)
    assert not np.array_equal(one.tokens, other.tokens)


def test_speakers_are_padded() -> None:
    ids, mask = speakers_of([one.conversation for one in conversations()])
    assert mask.sum(1).tolist() == [len(one.emotions) for one in conversations()]
    assert ids.shape == mask.shape
    assert not ids[~mask].any()


def test_what_only_faces_say_is_learnt(llama_base: Path, adapter: Path, fusion: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "ecf.txt"
    corpus.write_text(SAMPLE, encoding="utf-8")
    labelled = read_labelled(corpus)
    tokenizer = QuestionTokenizer(llama_base / "tokenizer.json", QuestionConfig(soft_tokens=SIZES.n_tokens))
    scores = AnswerScores(load_merged(llama_base, adapter), tokenizer)
    words = scores.causal.get_input_embeddings().weight[scores.emotion_answers]
    module = Projection(build_network(TINY, None).fusion, TINY.text.hidden_size, SoftTokenProjector(SIZES, words))
    before = {name: value.clone() for name, value in scores.state_dict().items()}
    config = ProjectorTrainingConfig((Stage("projector", ("ecf",), 120),), max_tokens=250, learning_rate=0.03)
    train_projector(
        scores,
        module,
        tokenizer,
        {"ecf": labelled},
        labelled,
        drawing(mismatch=0.0, utterance_rate=1.0),
        config,
        tmp_path / "out",
        ProjectorOrigin.of(fusion, adapter),
        lambda *_: None,
    )

    def likelihood(mismatch: float) -> float:
        """Mean log-probability of the annotated emotions, with faces of which that share is of any emotion."""
        faces = drawing(mismatch=mismatch, utterance_rate=1.0)
        soft = [drawn_soft_tokens(module, one, faces, [9, number]) for number, one in enumerate(labelled)]
        scored = score_with_llama(scores, tokenizer, labelled, soft)
        return float(np.mean([s.emotion_logits[np.arange(len(s.emotions)), s.emotions].mean() for s in scored]))

    assert likelihood(0.0) > likelihood(1.0) + 0.02
    assert all(torch.equal(value, before[name]) for name, value in scores.state_dict().items())


def test_the_command_writes_what_it_trained(llama_base: Path, adapter: Path, fusion: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "ecf.txt"
    corpus.write_text(SAMPLE, encoding="utf-8")
    arguments = ["train", "projector", "--preset", "tiny", "--adapter", str(adapter), "--fusion", str(fusion)]
    arguments += ["--base", str(llama_base), "--train", str(corpus), "--dev", str(corpus), "--threads", "1"]
    options = ["--epochs", "2", "--max-tokens", "250", "--conversations", "12"]
    ran = CliRunner().invoke(cli, [*arguments, *options], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert has_projector(adapter)
    card = json.loads((adapter / "projector" / "card.json").read_text(encoding="utf-8"))
    assert card["data"]["ecf"]["conversations"] == 12
    assert card["scores"]["ecf.txt"]["emotion_accuracy"] > 0
    assert not list(adapter.rglob(".*"))
    assert load_projector(adapter, fusion).state_proj.weight.abs().max() > 0
    finished = CliRunner().invoke(cli, [*arguments, *options, "--resume"])
    assert "is finished" in finished.output
    again = CliRunner().invoke(cli, arguments)
    assert isinstance(again.exception, WeightsError)


def test_a_projector_between_other_weights_is_refused(adapter: Path, fusion: Path, tmp_path: Path) -> None:
    projector = SoftTokenProjector(SIZES)
    save_projector(projector, ProjectorOrigin.of(fusion, adapter), {}, adapter / "projector")
    load_projector(adapter, fusion)
    other = tmp_path / "other"
    save_trained(build_network(TINY, None, seed=5), DecisionConfig(), {}, other)
    with pytest.raises(WeightsError, match="another adapter or fusion"):
        load_projector(adapter, other)
    with pytest.raises(WeightsError, match="no trained adapter"):
        ProjectorOrigin.of(fusion, tmp_path)
    (adapter / "projector" / "projector.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_projector(adapter, fusion)
