"""Laws of the fusion: what is absent has no influence, padding and batching change nothing, speakers are only names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechm.model.config import LLAMA2_7B, SMALL, TINY, ModelConfig
from mechm.model.fusion import Fusion, FusionOutput, PairHead

Inputs = dict[str, Tensor]
MODALITIES = ("text", "audio", "scene", "face")


@pytest.fixture(scope="module")
def fusion() -> Fusion:
    torch.manual_seed(5)
    return Fusion(TINY).eval()


def inputs(config: ModelConfig = TINY, batch: int = 2, utterances: int = 5, seed: int = 0) -> Inputs:
    """Random utterances of three speakers, everything present."""
    random = torch.Generator().manual_seed(seed)
    shape, faces = (batch, utterances), config.n_frames * config.max_faces
    return {
        "text": torch.randn(*shape, config.text.hidden_size, generator=random),
        "text_mask": torch.ones(shape, dtype=torch.bool),
        "audio": torch.randn(*shape, len(config.audio.pooled_layers), 2 * config.audio.hidden_size, generator=random),
        "audio_mask": torch.ones(shape, dtype=torch.bool),
        "scene": torch.randn(*shape, config.n_frames, config.scene.hidden_size, generator=random),
        "scene_mask": torch.ones(*shape, config.n_frames, dtype=torch.bool),
        "face": torch.rand(*shape, faces, config.fusion.face_width, generator=random),
        "face_mask": torch.ones(*shape, faces, dtype=torch.bool),
        "speaker_ids": torch.randint(0, 3, shape, generator=random),
        "utterance_mask": torch.ones(shape, dtype=torch.bool),
    }


@pytest.fixture(scope="module")
def hearing() -> Fusion:
    """A fusion whose voice head is fitted, so that text attends to no audio."""
    torch.manual_seed(5)
    fusion = Fusion(TINY).eval()
    head, random = fusion.voice_head, torch.Generator().manual_seed(6)
    head.weight.copy_(0.1 * torch.randn(head.weight.shape, generator=random))
    head.heard[:6] = True
    head.doubt.fill_(0.7)
    fusion.audio_attended.fill_(False)
    return fusion


def run(fusion: Fusion, given: Inputs) -> FusionOutput:
    with torch.inference_mode():
        output: FusionOutput = fusion(**given)
    return output


def same(a: FusionOutput, b: FusionOutput) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def furthest(a: FusionOutput, b: FusionOutput) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("value", [0.0, -3.5, 1e30, float("inf"), float("nan")])
def test_an_absent_modality_has_no_influence_whatever_stands_there(fusion: Fusion, modality: str, value: float) -> None:
    given = inputs()
    mask = given[f"{modality}_mask"].clone()
    mask[0, 1] = False
    mask[1] = False
    given[f"{modality}_mask"] = mask
    absent = dict(given)
    absent[modality] = given[modality].clone()
    absent[modality][~mask] = value
    expected = run(fusion, given)
    assert all(torch.isfinite(part).all() for part in expected)
    assert same(expected, run(fusion, absent))


def test_a_fitted_voice_head_changes_nothing_where_there_is_no_voice(fusion: Fusion, hearing: Fusion) -> None:
    given = inputs()
    given["audio_mask"] = torch.zeros_like(given["audio_mask"])
    silent = run(fusion, given)
    assert same(silent, run(hearing, given))
    assert same(silent, run(hearing, {**given, "audio": torch.full_like(given["audio"], float("nan"))}))


def test_a_fitted_voice_head_changes_the_emotions_of_utterances_with_a_voice_alone(hearing: Fusion) -> None:
    given = inputs()
    given["audio_mask"] = torch.zeros_like(given["audio_mask"])
    silent = run(hearing, given)
    given["audio_mask"][0, 2] = True
    given["audio"][~given["audio_mask"]] = float("nan")
    voiced = run(hearing, given)
    assert torch.equal(silent.pair_logits, voiced.pair_logits)
    assert torch.equal(silent.hidden_states, voiced.hidden_states)
    changed = (silent.emotion_logits - voiced.emotion_logits).abs().amax(-1)
    assert changed[0, 2] > 0.01
    changed[0, 2] = 0.0
    assert not changed.any()


def test_a_voice_head_that_was_never_fitted_changes_nothing(fusion: Fusion) -> None:
    given = inputs()
    other = Fusion(TINY).eval()
    other.load_state_dict(fusion.state_dict())
    other.voice_head.doubt.fill_(0.1)
    assert same(run(fusion, given), run(other, given))


def test_gradients_are_finite_beside_absent_voices(hearing: Fusion) -> None:
    given = inputs()
    given["audio_mask"][0, :3] = False
    given["text_mask"][1, 2] = False
    given["audio"][~given["audio_mask"]] = float("nan")
    output: FusionOutput = hearing(**given)
    (output.emotion_logits.square().sum() + output.pair_logits.square().sum()).backward()
    gradients = [p.grad for p in hearing.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_present_modality_has_influence(fusion: Fusion, modality: str) -> None:
    given = inputs()
    other = dict(given)
    other[modality] = given[modality].flip(-1)
    masked = {**given, f"{modality}_mask": torch.zeros_like(given[f"{modality}_mask"])}
    assert furthest(run(fusion, given), run(fusion, other)) > 1e-4
    assert furthest(run(fusion, given), run(fusion, masked)) > 1e-4


def test_one_frame_of_several_may_be_absent(fusion: Fusion) -> None:
    given = inputs()
    given["scene_mask"][0, 0, 1] = False
    other = {**given, "scene": given["scene"].clone()}
    other["scene"][0, 0, 1] = 9.0
    assert same(run(fusion, given), run(fusion, other))
    other["scene"][0, 0, 2] = 9.0
    assert not same(run(fusion, given), run(fusion, other))


def test_utterances_of_which_nothing_is_known_get_finite_scores(fusion: Fusion) -> None:
    given = inputs()
    for modality in MODALITIES:
        given[f"{modality}_mask"] = torch.zeros_like(given[f"{modality}_mask"])
        given[modality] = torch.full_like(given[modality], float("nan"))
    assert all(torch.isfinite(part).all() for part in run(fusion, given))


def test_padding_changes_nothing(fusion: Fusion) -> None:
    given, n = inputs(batch=1, utterances=4), 4
    padded = {name: torch.cat([part, torch.zeros_like(part[:, :3])], 1) for name, part in given.items()}
    plain, longer = run(fusion, given), run(fusion, padded)
    cut = FusionOutput(longer[0][:, :n], longer[1][:, :n, :n], longer[2][:, :n])
    assert furthest(plain, cut) < 1e-5
    noisy = {name: part.clone() for name, part in padded.items()}
    for name in (*MODALITIES, "speaker_ids"):
        noisy[name][:, n:] = 2
    longer = run(fusion, noisy)
    assert torch.equal(longer[0][:, :n], cut[0])
    assert torch.equal(longer[2][:, :n], cut[2])
    # The padding's masks do not matter either: a padded utterance that claims to have evidence is still padding.
    for name in MODALITIES:
        noisy[f"{name}_mask"][:, n:] = True
    assert torch.equal(run(fusion, noisy)[0][:, :n], cut[0])


def test_a_batch_equals_its_conversations_one_by_one(fusion: Fusion) -> None:
    given = inputs(batch=3)
    together = run(fusion, given)
    for row in range(3):
        alone = run(fusion, {name: part[row : row + 1] for name, part in given.items()})
        assert furthest(alone, FusionOutput(*(part[row : row + 1] for part in together))) < 1e-5


def test_speakers_may_be_numbered_in_any_way(fusion: Fusion) -> None:
    given = inputs()
    renumbered = torch.tensor([40, 7, 11])[given["speaker_ids"]]
    assert same(run(fusion, given), run(fusion, {**given, "speaker_ids": renumbered}))
    alone = torch.zeros_like(renumbered)
    assert not same(run(fusion, given), run(fusion, {**given, "speaker_ids": alone}))


def test_the_order_of_faces_does_not_matter(fusion: Fusion) -> None:
    given = inputs()
    assert furthest(run(fusion, given), run(fusion, {**given, "face": given["face"].flip(2)})) < 1e-5


def test_the_order_of_utterances_matters(fusion: Fusion) -> None:
    given = inputs()
    backwards = run(fusion, {name: part.flip(1) for name, part in given.items()})
    assert (run(fusion, given).emotion_logits - backwards.emotion_logits.flip(1)).abs().max() > 1e-5


def test_pair_rows_are_emotions_and_columns_causes() -> None:
    torch.manual_seed(0)
    head = PairHead(hidden_size=8, pair_size=6, n_distances=9)
    states, distances = torch.randn(1, 4, 8), torch.zeros(4, 4, dtype=torch.long)
    speakers = torch.zeros(1, 4, 4, dtype=torch.long)
    with torch.no_grad():
        head.cause_proj.weight.zero_()
        scores = head(states, distances, speakers)
    assert torch.equal(scores[:, :, :1].expand(-1, -1, 4), scores)
    assert not torch.equal(scores[:, :1].expand(-1, 4, -1), scores)


def test_half_precision_stays_finite(fusion: Fusion) -> None:
    given = {name: part.half() if part.is_floating_point() else part for name, part in inputs().items()}
    given["audio_mask"] = torch.zeros_like(given["audio_mask"])
    given["utterance_mask"][:, 3:] = False
    torch.manual_seed(5)
    half = run(Fusion(TINY).eval().half(), given)
    assert all(torch.isfinite(part).all() for part in half)
    full = run(fusion, {name: part.float() if part.is_floating_point() else part for name, part in given.items()})
    assert (half.emotion_logits.float() - full.emotion_logits)[:, :3].abs().max() < 0.02


@pytest.mark.parametrize("config", [SMALL, LLAMA2_7B], ids=lambda config: config.preset)
def test_every_preset_fuses(config: ModelConfig) -> None:
    torch.manual_seed(0)
    output = run(Fusion(config).eval(), inputs(config, batch=1, utterances=3))
    assert output.emotion_logits.shape == (1, 3, 7)
    assert output.pair_logits.shape == (1, 3, 3)
    assert output.hidden_states.shape == (1, 3, config.fusion.hidden_size)
