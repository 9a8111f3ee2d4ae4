"""Readers of annotated corpora, one module each.

Layouts are those of the public releases; each reader says what it expects. Labels are mapped to `EMOTIONS`; what has no
counterpart there is left out or refused, as the reader says. ECF's text alone is read by `mechm_runtime.readers`.
"""

from mechm.data.corpora.emodb import EMODB_EMOTIONS, read_emodb
from mechm.data.corpora.goemotions import read_goemotions
from mechm.data.corpora.reccon import RECCON_EMOTIONS, read_reccon
from mechm.data.corpora.types import SpeechRecording

__all__ = [
    "EMODB_EMOTIONS",
    "RECCON_EMOTIONS",
    "SpeechRecording",
    "read_emodb",
    "read_goemotions",
    "read_reccon",
]
