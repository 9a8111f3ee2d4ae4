"""Make the sample conversation: three flatmates, fourteen turns, every one of the seven emotions.

Writes `conversation.mp4`, `conversation.srt` and `conversation.json` beside this file. The script, the faces and the
annotation are this project's own; the voices are espeak-ng's. Nobody needs espeak-ng to use the sample: the results
are in the repository. Run it with the `media` extra installed:

    python sample/make_sample.py
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from drawing import EXPRESSIONS, Expression, Figure, draw_figure, draw_room, draw_table
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 22050
"""Of espeak-ng's output, in Hz."""
FRAMES_PER_SECOND = 20
WIDTH, HEIGHT = 640, 360
LEAD_S, TAIL_S = 0.6, 1.0


@dataclass(frozen=True)
class Person:
    """A speaker: a place at the table (the middle of the head, as a share of the width), a look and a voice.

    pitch: espeak-ng's, 0 to 99. speed_wpm: words per minute.
    """

    x: float
    figure: Figure
    voice: str
    pitch: int
    speed_wpm: int


PEOPLE: dict[str, Person] = {
    "Omar": Person(
        0.2,
        Figure((198, 146, 108), (38, 28, 26), (66, 98, 140), (70, 44, 28), "short", beard=True),
        "en-us+m3",
        36,
        168,
    ),
    "Lena": Person(
        0.5, Figure((242, 204, 178), (142, 66, 38), (86, 124, 92), (62, 104, 110), "bob"), "en-gb+f2", 52, 172
    ),
    "Pia": Person(
        0.8, Figure((140, 92, 66), (34, 24, 24), (196, 108, 66), (50, 32, 22), "curls"), "en-gb-scotland+f5", 74, 176
    ),
}


@dataclass(frozen=True)
class Turn:
    """One utterance: speaker, words, emotion, the turns that caused it (from 1), and the pause before it."""

    speaker: str
    text: str
    emotion: str
    causes: tuple[int, ...] = ()
    pause_s: float = 0.3


STORY: tuple[Turn, ...] = (
    Turn("Omar", "The hospital just called. I got the job! I start in May!", "joy", (1,)),
    Turn("Lena", "What? I didn't even know you had applied!", "surprise", (1,)),
    Turn("Pia", "Oh, Omar, that's wonderful! You worked so hard for this.", "joy", (1,)),
    Turn("Omar", "There is one thing. The hospital is in Bergen.", "neutral", pause_s=0.6),
    Turn("Lena", "Bergen? In Norway?", "surprise", (4,)),
    Turn("Lena", "We signed the lease last week, and you said nothing! That is so unfair!", "anger", (4, 6)),
    Turn("Omar", "I know. I feel awful about it. I should have told you.", "sadness", (6, 7), 0.5),
    Turn("Pia", "But who pays the rent now? I'm scared we'll lose the flat.", "fear", (4, 8)),
    Turn("Omar", "My sister takes my room. She paid until June.", "neutral"),
    Turn("Lena", "Wait, Noor is moving in? Here, with us?", "surprise", (9,)),
    Turn("Pia", "Oh, what a relief! She is the best cook I know!", "joy", (9, 11)),
    Turn("Lena", "I'm sorry that I shouted. We will miss you.", "sadness", (4, 6), 0.5),
    Turn("Omar", "Then come and visit! I'll make you waffles with brown cheese!", "joy", (12, 13)),
    Turn("Pia", "Brown cheese? Ugh, that stuff is disgusting.", "disgust", (13,)),
)


@dataclass(frozen=True)
class Delivery:
    """Changes of a voice with an emotion: factors on pitch and speed, loudness, and the range of the melody (SSML)."""

    pitch: float
    speed: float
    amplitude: int
    melody: str


DELIVERIES: dict[str, Delivery] = {
    "neutral": Delivery(1.0, 1.0, 95, "100%"),
    "anger": Delivery(1.15, 1.12, 160, "160%"),
    "disgust": Delivery(0.8, 0.86, 105, "140%"),
    "fear": Delivery(1.3, 1.14, 85, "90%"),
    "joy": Delivery(1.28, 1.08, 130, "190%"),
    "sadness": Delivery(0.82, 0.8, 75, "45%"),
    "surprise": Delivery(1.4, 1.06, 135, "200%"),
}

Samples = NDArray[np.float32]


def speak(turn: Turn) -> Samples:
    """One turn as float32 (n_samples,) in [-1, 1], mono, without the silence around it."""
    person, delivery = PEOPLE[turn.speaker], DELIVERIES[turn.emotion]
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        sys.exit("espeak-ng is not installed: apt-get install espeak-ng")
    command = [espeak, "-m", "--stdout", "-v", person.voice]
    command += ["-p", str(min(round(person.pitch * delivery.pitch), 99)), "-a", str(delivery.amplitude)]
    command += ["-s", str(round(person.speed_wpm * delivery.speed))]
    words = f'<speak><prosody range="{delivery.melody}">{turn.text}</prosody></speak>'
    spoken = subprocess.run([*command, words], check=True, capture_output=True).stdout  # noqa: S603 (our own arguments, no shell)
    # A streamed WAV header carries no true length: `wave` is told to read what is there.
    with wave.open(io.BytesIO(spoken)) as recording:
        data = recording.readframes(len(spoken))
    samples = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2").astype(np.float32) / 32768.0
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1]


def record() -> tuple[Samples, list[tuple[float, float]]]:
    """All turns one after the other, and each one's start and end in seconds, on whole milliseconds."""
    pieces, times, n_samples = [], [], 0

    def add(samples: Samples) -> None:
        nonlocal n_samples
        pieces.append(samples)
        n_samples += len(samples)

    add(np.zeros(round(LEAD_S * SAMPLE_RATE), dtype=np.float32))
    for index, turn in enumerate(STORY):
        if index:
            add(np.zeros(round(turn.pause_s * SAMPLE_RATE), dtype=np.float32))
        start = n_samples / SAMPLE_RATE
        add(speak(turn))
        times.append((round(start, 3), round(n_samples / SAMPLE_RATE, 3)))
    add(np.zeros(round(TAIL_S * SAMPLE_RATE), dtype=np.float32))
    samples = np.concatenate(pieces)
    # A room is never silent: a whisper of noise keeps level meters and speech models out of exact zeros.
    samples += np.random.default_rng(2).normal(0.0, 0.0008, len(samples)).astype(np.float32)
    return (samples / max(1.0, float(np.abs(samples).max()) / 0.9)).astype(np.float32), times


class Stage:
    """The persons at a moment: speakers lean in and act, listeners watch the speaker and react."""

    def __init__(self, samples: Samples, times: list[tuple[float, float]]) -> None:
        self.times = times
        self.room = draw_room(WIDTH, HEIGHT)
        self.table = draw_table(WIDTH, HEIGHT)
        self.n_frames = int(len(samples) / SAMPLE_RATE * FRAMES_PER_SECOND)
        self.voice = self._loudness(samples)
        self.face = {name: Expression() for name in PEOPLE}
        self.lean = dict.fromkeys(PEOPLE, 0.0)
        self.gaze = dict.fromkeys(PEOPLE, 0.0)
        self.chance = np.random.default_rng(5)
        self.next_blink = {name: int(self.chance.integers(10, 70)) for name in PEOPLE}

    def _loudness(self, samples: Samples) -> Samples:
        """Openness of the mouth per frame from the voice's loudness: float32 (n_frames,) in [0, 1]."""
        hop = SAMPLE_RATE // FRAMES_PER_SECOND
        frames = samples[: self.n_frames * hop].reshape(self.n_frames, hop)
        level = np.sqrt((frames**2).mean(axis=1))
        open_: Samples = np.clip(level / 0.16, 0.0, 1.0) ** 0.7
        open_[level < 0.012] = 0.0
        return open_

    def frame(self, index: int) -> Image.Image:
        """The picture of frame `index`; frames must be asked for in order, since faces move smoothly."""
        second = index / FRAMES_PER_SECOND
        said = [n for n, (start, _) in enumerate(self.times) if start <= second + 0.15]
        turn = STORY[said[-1]] if said else None
        speaking = said[-1] if said and second <= self.times[said[-1]][1] + 0.1 else None
        picture = self.room.copy()
        for name in PEOPLE:
            self._move(name, turn, [STORY[n] for n in said])
        # Whoever leans in most is drawn last, in front of the others.
        for name in sorted(PEOPLE, key=lambda n: self.lean[n]):
            active = speaking is not None and STORY[speaking].speaker == name
            self._draw(picture, name, float(self.voice[index]) if active else 0.0, index)
        picture.paste(self.table, (0, 0), self.table)
        return picture

    def _move(self, name: str, turn: Turn | None, said: list[Turn]) -> None:
        mine = [t for t in said if t.speaker == name]
        active = turn is not None and turn.speaker == name
        mood = EXPRESSIONS[mine[-1].emotion] if mine else Expression()
        # Listeners keep a trace of their own last mood, without its tears and open mouth.
        trace = Expression().towards(mood, 0.3)
        rest = Expression(trace.brow_inner, trace.brow_outer, trace.eye_open, trace.mouth_curve, blush=trace.blush)
        self.face[name] = self.face[name].towards(mood if active else rest, 0.38)
        self.lean[name] += 0.3 * ((1.0 if active else 0.0) - self.lean[name])
        target = 0.0
        if turn is not None and not active:
            target = 1.0 if PEOPLE[turn.speaker].x > PEOPLE[name].x else -1.0
        self.gaze[name] += 0.35 * (target - self.gaze[name])

    def _draw(self, picture: Image.Image, name: str, speech: float, index: int) -> None:
        person = PEOPLE[name]
        blink = self.next_blink[name] <= index < self.next_blink[name] + 3
        if index >= self.next_blink[name] + 3:
            self.next_blink[name] = index + int(self.chance.integers(45, 100))
        size = round((210 + 80 * self.lean[name]) / 6) * 6
        sway = 2.0 * np.sin(index / 9.0 + 7.0 * person.x)
        nod = -5.0 * speech * self.lean[name]
        figure = draw_figure(
            person.figure, self.face[name], speech=speech, gaze=self.gaze[name], blink=blink, size=size
        )
        # Shoulders stay behind the table: the bottom of the figure is fixed, the head comes up and forward.
        where = (round(person.x * WIDTH - size / 2 + sway), round(HEIGHT - 30 - size + nod))
        picture.paste(figure, where, figure)


def encode(samples: Samples, stage: Stage, path: Path) -> None:
    """Write H.264 and AAC into an mp4 whose index comes first, so that it plays while it loads."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            options={"crf": "25", "preset": "slow", "tune": "animation", "threads": "1"},
        )
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        n_written = 0
        for index in range(stage.n_frames):
            picture = av.VideoFrame.from_ndarray(np.asarray(stage.frame(index)), format="rgb24")
            container.mux(video.encode(picture))
            # Sound goes in beside the pictures it belongs to, so that players need not seek.
            upto = min(len(samples), (index + 1) * SAMPLE_RATE // FRAMES_PER_SECOND)
            chunk = av.AudioFrame.from_ndarray(samples[None, n_written:upto], format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = SAMPLE_RATE, n_written, Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(chunk))
            n_written = upto
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def write_transcripts(times: list[tuple[float, float]], srt: Path, annotated: Path) -> None:
    """Write the subtitles ("Speaker: text") and the annotation in the form of ECF and SemEval-2024 Task 3."""

    def stamp(second: float) -> str:
        ms = round(second * 1000)
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    blocks = [
        f"{number}\n{stamp(start)} --> {stamp(end)}\n{turn.speaker}: {turn.text}\n"
        for number, (turn, (start, end)) in enumerate(zip(STORY, times, strict=True), start=1)
    ]
    srt.write_text("\n".join(blocks), encoding="utf-8")
    utterances = [
        {"utterance_ID": number, "text": turn.text, "speaker": turn.speaker, "emotion": turn.emotion}
        for number, turn in enumerate(STORY, start=1)
    ]
    pairs = [
        [f"{number}_{turn.emotion}", str(cause)] for number, turn in enumerate(STORY, start=1) for cause in turn.causes
    ]
    conversation = {"conversation_ID": 1, "conversation": utterances, "emotion-cause_pairs": pairs}
    annotated.write_text(json.dumps([conversation], indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Speak, draw, encode, and write the transcripts."""
    samples, times = record()
    write_transcripts(times, HERE / "conversation.srt", HERE / "conversation.json")
    encode(samples, Stage(samples, times), HERE / "conversation.mp4")


if __name__ == "__main__":
    main()
