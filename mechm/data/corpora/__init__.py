"""Readers of annotated corpora, one module each.

Layouts are those of the public releases, described in each module. Labels are mapped to `EMOTIONS`; labels without a
counterpart are left out or refused, as documented by the reader. Readers of recordings return a `Corpus` whose report
names the files that could not be used, so that one unreadable clip among ten thousand does not stop the reading.
"""

from mechm.data.corpora.aesi import AESI_EMOTIONS, read_aesi
from mechm.data.corpora.ecf import read_ecf
from mechm.data.corpora.emodb import EMODB_EMOTIONS, read_emodb
from mechm.data.corpora.goemotions import read_goemotions
from mechm.data.corpora.meld import read_meld
from mechm.data.corpora.reccon import RECCON_EMOTIONS, read_reccon
from mechm.data.corpora.semaine import SemaineConfig, read_semaine, read_semaine_config
from mechm.data.corpora.types import Corpus, CorpusReport, Probe, Problem, SpeechRecording

__all__ = [
    "AESI_EMOTIONS",
    "EMODB_EMOTIONS",
    "RECCON_EMOTIONS",
    "Corpus",
    "CorpusReport",
    "Probe",
    "Problem",
    "SemaineConfig",
    "SpeechRecording",
    "read_aesi",
    "read_ecf",
    "read_emodb",
    "read_goemotions",
    "read_meld",
    "read_reccon",
    "read_semaine",
    "read_semaine_config",
]
