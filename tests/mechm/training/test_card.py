"""The card says what was trained, and does not claim what was not."""

from __future__ import annotations

from mechm.training.card import NO_VOICE, PAIRED_VOICE, SIMULATED, make_card
from mechm.training.fusion import FusionTrainingConfig
from mechm.training.stages import Stage
from mechm_export.check_data import check_conversations

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
    assert (silent["learned"], heard["learned"]) == (["text", "face"], ["text", "audio", "face"])


def test_other_speech_is_named() -> None:
    card = make_card("small", {"ecf": check_conversations()}, 30, TRAINING, speech=("EmoDB", "AESI"))
    assert PAIRED_VOICE not in card["limits"]
    assert any("acted speech (EmoDB, AESI)" in limit for limit in card["limits"])
    assert card["data"]["speech"]["licence"].count("AESI") == card["data"]["speech"]["licence"].count("EmoDB") == 1


def test_what_was_recorded_is_said_of_each_modality() -> None:
    corpora = {"ecf": check_conversations()}
    heard = make_card("small", corpora, 0, TRAINING, recorded={"audio": 9, "face": 0, "scene": 0})
    assert heard["data"]["recordings"] == {"audio": 9}
    assert "Audio: learned from recordings of 9 utterances themselves." in heard["limits"]
    assert NO_VOICE not in heard["limits"]
    assert set(SIMULATED.values()) <= set(heard["limits"])
    assert heard["learned"] == ["text", "audio", "face"]
    seen = make_card("small", corpora, 0, TRAINING, recorded={"audio": 0, "face": 4, "scene": 8})
    assert NO_VOICE in seen["limits"]
    assert not set(SIMULATED.values()) & set(seen["limits"])
    assert seen["learned"] == ["text", "face", "scene"]
    assert "recordings" not in make_card("small", corpora, 0, TRAINING, recorded=dict.fromkeys(SIMULATED, 0))["data"]


def test_the_data_are_counted() -> None:
    counted = make_card("small", {"ecf": check_conversations()}, 0, TRAINING)["data"]["ecf"]
    assert (counted["conversations"], counted["utterances"], counted["pairs"]) == (12, 132, 78)
