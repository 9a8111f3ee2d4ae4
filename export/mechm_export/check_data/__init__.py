"""A few annotated conversations on which an exported bundle's answers are compared with torch's.

`conversations.json` holds 12 everyday conversations in ECF / SemEval-2024 Task 3 form: family, work, a doctor's call,
customer service, friends, school, neighbours, travel, a night line, a restaurant, siblings, camping. They were written
for this project and annotated after ECF's guidelines (Xia and Wang's emotion-cause pairs, causes as utterances), copy
nothing and are dedicated to the public domain (CC0 1.0).

`conversation.mp4` is the recording of `sample/`, for the encoders of audio and pictures: three speakers with their
faces in 47 seconds. Its voices are synthetic and its faces drawn.

They are for exports without an annotated corpus: precisions of one bundle are compared with torch, and with each other,
label by label and pair by pair. About 130 utterances are far too few to measure the accuracy of a model; that takes a
corpus and its `test` split.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from mechm_runtime.readers import read_labelled, read_transcript
from mechm_runtime.types import Conversation, LabelledConversation

__all__ = ["check_conversations", "check_recordings"]

RECORDING = "conversation.mp4"
TRANSCRIPT = "conversation.srt"


def check_conversations() -> tuple[LabelledConversation, ...]:
    """The conversations with their annotation, text only."""
    with resources.as_file(resources.files(__name__) / "conversations.json") as path:
        return read_labelled(path)


def check_recordings() -> tuple[Conversation, ...]:
    """The recording, with its transcript."""
    here = Path(__file__).parent
    # A wheel carries a copy here; in a checkout it lies where the sample does.
    folder = here if (here / RECORDING).exists() else here.parents[2] / "sample"
    return read_transcript(folder / TRANSCRIPT, media=folder / RECORDING)
