"""Model card of trained weights: training data, hyperparameters, scores and limits of use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mechm.evaluation import score_emotions, score_pairs
from mechm.training.calibration import (
    ScoredConversation,
    cause_calibration_error,
    expected_calibration_error,
)
from mechm.training.stages import absent_emotions
from mechm_runtime.bundle.config import DecisionConfig
from mechm_runtime.fusion.decision import decide
from mechm_runtime.types import EMOTIONS, LabelledConversation, Pair

if TYPE_CHECKING:
    from mechm.training.fusion import FusionTrainingConfig
    from mechm.training.projector import ProjectorTrainingConfig

LICENCES = {
    "ecf": "ECF 1.0 (NUSTM/MECPE, GPL-3.0 repository), research use only",
    "reccon": "RECCON on DailyDialog, CC BY-NC-SA 4.0, research use only",
    "goemotions": "GoEmotions, Apache-2.0",
    "meld": "MELD (declare-lab/MELD, GPL-3.0 repository), research use only",
    "semaine": "SEMAINE, by agreement with its authors, research use only",
}

SPEECH_LICENCES = {
    "EmoDB": "EmoDB, free for research",
    "AESI": "AESI, by agreement with its authors, research use only",
}

PAIRED_VOICE = (
    "Voice: paired with ECF text by emotion from acted German speech (EmoDB), since no aligned recordings were at "
    "hand; boredom left out, surprise never heard."
)
OTHER_VOICE = "Voice: paired with text by emotion from acted speech ({}); emotions that it lacks were never heard."
RECORDED = "{}: learned from recordings of {} utterances themselves."
NO_VOICE = "Voice: not trained, its branch still has random weights; it is left out unless it is asked for."

SIMULATED = {
    "face": "Faces: learned from simulated readings of the expression network, not from labelled faces.",
    "scene": "Scene: learned from noise without labels; it tells nothing until trained on clips, so it is not read.",
}
"""Limits of a modality that no utterance had a recording of."""

LIMITS = (
    "Trained on scripted TV dialogue and everyday text in English; other domains and languages are unmeasured.",
    "Not for diagnosis, for deciding about a person, or for inferring what somebody feels at work or school.",
)


def corpora_table(corpora: Mapping[str, Sequence[LabelledConversation]]) -> dict[str, Any]:
    """Describe the training data: sizes and licence of each corpus."""
    return {
        name: {
            "conversations": len(conversations),
            "utterances": sum(len(one.emotions) for one in conversations),
            "pairs": sum(len(one.pairs) for one in conversations),
            "licence": LICENCES[name],
        }
        for name, conversations in corpora.items()
    }


def unseen_note(conversations: Sequence[LabelledConversation]) -> str | None:
    """Return a note about emotions without an example in the target corpus; None where it has all."""
    absent = absent_emotions(conversations)
    if not absent:
        return None
    return f"No utterance of the target corpus is labelled {' or '.join(absent)}: do not expect to find any."


def make_card(
    preset: str,
    corpora: Mapping[str, Sequence[LabelledConversation]],
    n_recordings: int,
    config: FusionTrainingConfig | ProjectorTrainingConfig,
    *,
    speech: Sequence[str] = ("EmoDB",),
    recorded: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Make the card before training; scores are added after it.

    n_recordings: of emotional speech, from the corpora named in `speech`. recorded: modality -> utterances of the
    corpora whose own recording contains it.
    Returns: JSON values; `learned` lists the modalities that the weights were trained on, which a bundle uses by
        default.
    """
    data = corpora_table(corpora)
    limits = []
    if n_recordings:
        licence = "; ".join(SPEECH_LICENCES[name] for name in speech)
        data["speech"] = {"recordings": n_recordings, "licence": licence}
        limits.append(PAIRED_VOICE if tuple(speech) == ("EmoDB",) else OTHER_VOICE.format(", ".join(speech)))
    own = {modality: n for modality, n in (recorded or {}).items() if n}
    if own:
        data["recordings"] = own
        limits += [RECORDED.format(modality.capitalize(), n) for modality, n in own.items()]
    if not n_recordings and "audio" not in own:
        limits.append(NO_VOICE)
    limits += [limit for modality, limit in SIMULATED.items() if modality not in own]
    limits += LIMITS
    heard, seen = bool(n_recordings) or "audio" in own, "scene" in own
    learned = ["text", *(["audio"] if heard else []), "face", *(["scene"] if seen else [])]
    if unseen := unseen_note(corpora[config.stages[-1].corpora[0]]):
        limits.insert(0, unseen)
    return {
        "preset": preset,
        "data": data,
        "training": asdict(config),
        "learned": learned,
        "limits": limits,
        "scores": {},
    }


def split_scores(
    labelled: Sequence[LabelledConversation],
    scored: Sequence[ScoredConversation],
    decision: DecisionConfig,
    modalities: str = "text",
) -> dict[str, Any]:
    """Score a split for the card.

    scored: the network's scores of `labelled`, in the same order. modalities: those the scores were computed from.
    """
    pairs, labels = {}, {}
    for one, s in zip(labelled, scored, strict=True):
        decided = decide(s.emotion_logits, s.pair_logits, decision)
        ids = [u.id for u in one.conversation.utterances]
        names = [None if label < 0 else EMOTIONS[label] for label in decided.labels]
        labels[one.conversation.id] = names
        pairs[one.conversation.id] = [Pair(ids[i], str(names[i]), ids[j], p) for i, j, p in decided.pairs]
    pair_scores, emotion_scores = score_pairs(labelled, pairs), score_emotions(labelled, labels)
    return {
        "modalities": modalities,
        "weighted_f1": round(pair_scores.weighted.f1, 4),
        "micro_f1": round(pair_scores.micro.f1, 4),
        "f1": {emotion: round(score.f1, 4) for emotion, score in pair_scores.per_emotion.items()},
        "emotion_accuracy": round(emotion_scores.accuracy, 4),
        "emotion_weighted_f1": round(emotion_scores.weighted_f1, 4),
        "calibration_error": {
            "emotion_before": round(expected_calibration_error(scored, DecisionConfig()), 4),
            "emotion": round(expected_calibration_error(scored, decision), 4),
            "cause": round(cause_calibration_error(scored, decision), 4),
        },
    }
