"""Made-up analyses for looking at and for testing what people see. Not results of any model."""

from __future__ import annotations

import random

from mechm_runtime.types import EMOTIONS, Analysis, Pair, UtteranceAnalysis

Turn = tuple[str, str, "float | None", "float | None", str, float]


def made_up(
    conversation_id: str,
    turns: list[Turn],
    causes: list[tuple[int, int, float]],
    *,
    modalities: tuple[str, ...] = ("text", "audio"),
    missing: dict[int, dict[str, str]] | None = None,
    unsure: tuple[int, ...] = (),
    seed: int = 0,
) -> Analysis:
    """turns: (speaker, text, start, end, emotion, probability); causes: (emotion utterance, cause, probability)."""
    chance = random.Random(seed)  # noqa: S311 - colours for a picture, not a secret
    utterances = []
    for number, (speaker, text, start, end, emotion, probability) in enumerate(turns, start=1):
        rest = [chance.expovariate(1.0) * (3.0 if label == "neutral" else 1.0) for label in EMOTIONS]
        rest[EMOTIONS.index(emotion)] = 0.0
        shares = {
            label: probability if label == emotion else (1.0 - probability) * rest[index] / sum(rest)
            for index, label in enumerate(EMOTIONS)
        }
        gone = (missing or {}).get(number, {})
        utterances.append(
            UtteranceAnalysis(
                id=number,
                speaker=speaker,
                text=text,
                start_s=start,
                end_s=end,
                emotion=None if number in unsure else emotion,
                probabilities=shares,
                modalities=tuple(m for m in modalities if m not in gone),
                missing=gone,
            )
        )
    pairs = tuple(Pair(effect, turns[effect - 1][4], cause, p) for effect, cause, p in sorted(causes))
    timings = {"decode": 41.2, "text": 18.4, "audio": 96.0, "vision": 0.0, "fusion": 3.1, "total": 161.7}
    return Analysis(conversation_id, tuple(utterances), pairs, timings, "small-int8-3f9c2a71d0b4")


def phone_call() -> Analysis:
    """Two people on the telephone, 13 short turns, times in a recording, no picture."""
    turns: list[Turn] = [
        ("Nora", "Hello?", 6.68, 7.16, "neutral", 0.81),
        ("Ines", "Hello?", 7.63, 8.16, "neutral", 0.77),
        ("Nora", "Oh, hello.", 8.44, 8.88, "surprise", 0.63),
        ("Nora", "I had no idea you had picked up.", 8.92, 9.80, "surprise", 0.86),
        ("Ines", "Me neither!", 9.84, 10.78, "joy", 0.47),
        ("Nora", "Right, so I thought, you know, that was only the beep.", 10.78, 12.54, "neutral", 0.52),
        ("Nora", "This is Nora, over in Leeds.", 12.54, 14.18, "neutral", 0.90),
        ("Ines", "And I'm Ines in Cardiff, though I grew up in Hull.", 14.44, 17.77, "neutral", 0.84),
        ("Nora", "Oh, I grew up in Hull as well.", 17.79, 20.11, "surprise", 0.79),
        ("Nora", "These days I'm in Leeds, of course.", 20.17, 21.48, "neutral", 0.73),
        ("Ines", "Well, that is not so far away.", 21.94, 23.98, "neutral", 0.66),
        ("Ines", "At least nobody there calls you the northerner. What can I say?", 24.06, 28.43, "disgust", 0.38),
        ("Nora", "Ha, no, I never hear that in Leeds.", 28.45, 29.99, "joy", 0.58),
    ]
    causes = [(3, 2, 0.71), (4, 4, 0.55), (4, 2, 0.48), (5, 4, 0.62), (9, 8, 0.91), (12, 12, 0.44), (13, 12, 0.57)]
    gone = {n: {"face": "the recording has no video track"} for n in range(1, 14)}
    return made_up("phone_call", turns, causes, missing=gone, unsure=(12,))


def scene() -> Analysis:
    """Three people, 12 turns, strong feelings, text only and without times."""
    turns: list[Turn] = [
        ("Mara", "Has anyone seen the blue folder? The one with the tickets?", None, None, "fear", 0.58),
        ("Tom", "It was on the table this morning.", None, None, "neutral", 0.88),
        ("Joan", "Oh no. I took the recycling out at nine.", None, None, "fear", 0.71),
        ("Mara", "You threw away our tickets?!", None, None, "anger", 0.84),
        ("Joan", "I am so sorry. I thought it was old paper.", None, None, "sadness", 0.77),
        ("Tom", "Urgh, and the bin smells like a dead fish.", None, None, "disgust", 0.81),
        ("Mara", "We saved up for a whole year for this.", None, None, "sadness", 0.69),
        ("Tom", "Hang on. What is this under the sofa?", None, None, "surprise", 0.54),
        ("Mara", "That's the folder! That is the blue folder!", None, None, "surprise", 0.92),
        ("Joan", "Oh, thank goodness. I could cry.", None, None, "joy", 0.66),
        ("Mara", "Sorry I shouted at you, Joan.", None, None, "sadness", 0.49),
        ("Joan", "Forget it. We are going to the island!", None, None, "joy", 0.94),
    ]
    causes = [
        (1, 1, 0.63),
        (3, 1, 0.82),
        (3, 3, 0.51),
        (4, 3, 0.93),
        (5, 4, 0.74),
        (5, 3, 0.41),
        (6, 6, 0.88),
        (7, 3, 0.47),
        (7, 7, 0.60),
        (8, 8, 0.58),
        (9, 8, 0.77),
        (9, 9, 0.52),
        (10, 9, 0.86),
        (11, 4, 0.64),
        (12, 9, 0.72),
        (12, 12, 0.45),
    ]
    return made_up("the blue folder", turns, causes, modalities=("text",), seed=3)


def meeting(n_utterances: int = 60, seed: int = 7) -> Analysis:
    """A long meeting of four people with times, voices, faces and a few broken cameras."""
    chance = random.Random(seed)  # noqa: S311 - colours for a picture, not a secret
    lines = [
        ("neutral", "So the next point is the timetable for the spring term."),
        ("neutral", "I put the numbers in the sheet, second tab."),
        ("joy", "That is so much better than I hoped!"),
        ("surprise", "Wait, we already spent all of it?"),
        ("anger", "I said in March that this would happen, and nobody listened."),
        ("sadness", "I really thought we would keep the workshop."),
        ("fear", "If the roof isn't done by October we can't open at all."),
        ("disgust", "Honestly, the way they wrote that letter is revolting."),
        ("neutral", "Mm-hm."),
        ("neutral", "Yes, go on, take your time; we have the room until five and nobody needs it after us."),
    ]
    weights = [18, 14, 8, 6, 6, 5, 4, 2, 12, 10]
    now, turns, causes = 3.0, [], []
    for number in range(1, n_utterances + 1):
        emotion, text = chance.choices(lines, weights)[0]
        length = 0.5 + len(text) / 16 + chance.random()
        speaker = chance.choice(["Alice", "Benedikt", "Chiara", "Dev"])
        turns.append((speaker, text, now, now + length, emotion, chance.uniform(0.4, 0.97)))
        now += length + chance.expovariate(2.0)
        if emotion != "neutral":
            cause = max(1, number - chance.choice([0, 0, 0, 1, 1, 2, 3, 7]))
            causes.append((number, cause, chance.uniform(0.4, 0.95)))
    gone = {n: {"face": "no face was found in its frames"} for n in range(5, n_utterances, 9)}
    return made_up(
        "spring meeting", turns, causes, modalities=("text", "audio", "face", "scene"), missing=gone, unsure=(11, 30)
    )
