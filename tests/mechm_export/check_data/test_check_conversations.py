"""The conversations that exports are checked on are what their description promises."""

from __future__ import annotations

from collections import Counter

from mechm_export.check_data import check_conversations, check_recordings
from mechm_runtime.types import EMOTIONS


def test_they_are_twelve_short_conversations_of_two_to_four_speakers() -> None:
    conversations = check_conversations()
    assert [c.conversation.id for c in conversations] == [str(number) for number in range(1, 13)]
    for labelled in conversations:
        utterances = labelled.conversation.utterances
        assert 6 <= len(utterances) <= 12
        assert 2 <= len({u.speaker for u in utterances}) <= 4
        assert all(u.text for u in utterances)


def test_every_emotion_occurs_and_about_half_is_neutral() -> None:
    counts = Counter(emotion for c in check_conversations() for emotion in c.emotions)
    assert all(counts[emotion] >= 5 for emotion in EMOTIONS)
    assert 0.4 < counts["neutral"] / counts.total() < 0.6


def test_every_emotional_utterance_has_a_cause_at_or_before_it() -> None:
    for labelled in check_conversations():
        emotional = {
            u.id for u, e in zip(labelled.conversation.utterances, labelled.emotions, strict=True) if e != "neutral"
        }
        assert {pair.emotion_utterance for pair in labelled.pairs} == emotional
        assert all(pair.cause_utterance <= pair.emotion_utterance for pair in labelled.pairs)


def test_the_recording_has_words_with_times_and_several_speakers() -> None:
    (talk,) = check_recordings()
    assert talk.media is not None
    assert len({u.speaker for u in talk.utterances}) == 3
    assert all(u.end_s is not None and u.start_s is not None and u.end_s > u.start_s for u in talk.utterances)
