"""The card says what was trained, and does not claim what was not."""

from __future__ import annotations

from mechm.training.card import NO_VOICE, PAIRED_VOICE, make_card
from mechm.training.fusion import FusionTrainingConfig
from mechm.training.stages import Stage
from mechm_export.data import check_conversations

TRAINING = FusionTrainingConfig((Stage("target", ("ecf",), 1),))


def test_a_voice_is_claimed_only_where_there_were_recordings() -> None:
    corpora = {"ecf": check_conversations()}
    silent, heard = (make_card("small", corpora, n, TRAINING) for n in (0, 350))
    assert NO_VOICE in silent["limits"]
    assert PAIRED_VOICE not in silent["limits"]
    assert "speech" not in silent["data"]
    assert PAIRED_VOICE in heard["limits"]
    assert NO_VOICE not in heard["limits"]
    assert heard["data"]["speech"]["recordings"] == 350


def test_the_data_are_counted() -> None:
    counted = make_card("small", {"ecf": check_conversations()}, 0, TRAINING)["data"]["ecf"]
    assert (counted["conversations"], counted["utterances"], counted["pairs"]) == (12, 132, 78)
