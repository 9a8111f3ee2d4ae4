"""What readers of corpora return beside `LabelledConversation`. It reads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SpeechRecording:
    """One recording of emotional speech."""

    path: Path
    speaker: str
    emotion: str
