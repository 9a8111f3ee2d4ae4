"""Reads SEMAINE: conversations with an operator who plays one of four characters, rated in valence and activation.

The Solid SAL part of the database (McKeown et al., IEEE Trans. Affective Computing 3, 2012), as its download unpacks:

    <folder>/Sessions/16/
        wordLevel_alignedTranscript_…_user         "---recording 3 turn 1---", then lines "start_ms end_ms WORD", then
        wordLevel_alignedTranscript_…_operator     "." at the turn's end; milliseconds from the session's start
        alignedTranscript_03.4Poppy.txt            the same turns with punctuation: lines "start end User<TAB>text"
        R1S16TUCPoDV.txt                           a FEELtrace: lines "seconds value", every 0.02 s, value in [-1, 1]
        …_User HeadMounted_Poppy.wav               16 kHz mono, one microphone per person

A trace's name consists of Rater, Session, Target (User or Operator), Character (Ob, Po, Pr, Sp) and Dimension (V
valence, A activation; others are ignored). A number at its end, or after the character, marks a repeated rating, of
which the largest number is used. Letters vary in the release (A for R, R for S).

`SemaineConfig` defines how traces become labels. Traces are averaged over the turn per rater, then over raters, so that
raters have equal weight whatever their sampling rate. Turns without traces or words are left out, and by default the
operator's. Causes are not annotated: `pairs` is empty.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm.data.corpora.files import count_media, count_utterances, read_text, why_unusable
from mechm.data.corpora.types import Corpus, CorpusReport, Probe, Problem
from mechm_runtime.errors import InputError, LabelError
from mechm_runtime.readers.text_file import clean_text, quote
from mechm_runtime.types import EMOTIONS, Conversation, LabelledConversation, Utterance

SPEAKERS = ("User", "Operator")

_TRACE = re.compile(r"([AR][0-9]+)[RS][0-9]+T([UO])C(?:Ob|Po|Pr|Sp)([0-9]*)D([VA])([0-9]*)\.txt")
_TURN = re.compile(r"---.*---")
_WORD = re.compile(r"([0-9]{1,8}) +([0-9]{1,8})(?: +(\S+))?")
_TRANSCRIPT_LINE = re.compile(r"\S+ +\S+ +(\w+) *\t(.*)")
_REMARK = re.compile(r"\([^()]*\)")

_LAYOUT_HINT = "give the folder that holds Sessions/1, Sessions/2 … of the SEMAINE download"


@dataclass(frozen=True, slots=True)
class SemaineConfig:
    """Mapping from mean valence and activation, both in [-1, 1], to one of `EMOTIONS`.

    Points within `neutral_radius` of the neutral point are neutral; others are labelled by quadrant. Quadrants follow
    the circumplex of affect (Russell, J. Personality and Social Psychology 39, 1980): pleasure at 0°, excitement 45°,
    arousal 90°, distress 135°, displeasure 180°, depression 225°, sleepiness 270°, relaxation 315°. Relaxation has no
    counterpart among `EMOTIONS` and becomes neutral by default. Fear and disgust share anger's quadrant, and surprise
    has no quadrant: two dimensions cannot distinguish them, so this mapping never returns those three.

    neutral_valence, neutral_activation: the neutral point. It is the origin in Russell; Amir et al. (FG 2015) found the
        word neutral used for speech of somewhat negative activation.
    neutral_radius: 0.15 is this library's choice; the literature gives no value. Tune it on your own labels.
    pleasant_active … pleasant_passive: the quadrants' labels; None leaves such turns out.
    reaction_lag_s: delay of the traces behind the speech. Raters lag by 1 to 6 s, and fixed delays of 1 to 3 s helped
        (Mariooryad and Busso, IEEE Trans. Affective Computing 6, 2015); 0 assumes no delay.
    min_raters: turns with fewer raters in either dimension are left out.
    speakers: some of `SPEAKERS`, whose turns are read. Every person has a separate microphone, so the recording is
        attached if one speaker is read, and none if both are.

    Raises: LabelError: a label outside `EMOTIONS`. InputError: a value out of range.
    """

    neutral_valence: float = 0.0
    neutral_activation: float = 0.0
    neutral_radius: float = 0.15
    pleasant_active: str | None = "joy"
    unpleasant_active: str | None = "anger"
    unpleasant_passive: str | None = "sadness"
    pleasant_passive: str | None = "neutral"
    reaction_lag_s: float = 0.0
    min_raters: int = 1
    speakers: tuple[str, ...] = ("User",)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith(("active", "passive")) and value is not None and value not in EMOTIONS:
                raise LabelError(f"{item.name}: unknown emotion {value!r}", hint=f"use one of {', '.join(EMOTIONS)}")
        for name, low, high in (
            ("neutral_valence", -1.0, 1.0),
            ("neutral_activation", -1.0, 1.0),
            ("neutral_radius", 0.0, 2.0),
            ("reaction_lag_s", 0.0, 10.0),
            ("min_raters", 1, 100),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}, not in {low}..{high}")
        if not self.speakers or not set(self.speakers) <= set(SPEAKERS):
            raise InputError(f"speakers are {self.speakers}", hint=f"use some of {', '.join(SPEAKERS)}")

    def label(self, valence: float, activation: float) -> str | None:
        """Return the label of a point; None leaves its turn out. Points on an axis count as pleasant or active."""
        valence, activation = valence - self.neutral_valence, activation - self.neutral_activation
        if math.hypot(valence, activation) <= self.neutral_radius:
            return "neutral"
        if activation >= 0:
            return self.pleasant_active if valence >= 0 else self.unpleasant_active
        return self.pleasant_passive if valence >= 0 else self.unpleasant_passive


def read_semaine_config(path: Path) -> SemaineConfig:
    """Read a `SemaineConfig` from a JSON object with some of its fields; the others keep their defaults.

    Raises: InputError, LabelError: it cannot be read, is not such an object, or has an invalid value.
    """
    known = {item.name: type(item.default) for item in fields(SemaineConfig)}
    hint = f"give an object with some of {', '.join(known)}"
    try:
        given = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: not JSON ({error})", hint=hint) from error
    if not isinstance(given, dict):
        raise InputError(f"{path.name}: not a JSON object", hint=hint)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{path.name}: unknown setting {quote(name)}", hint=hint)
        kind = known[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            (kind is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value))
            or (kind is str and (value is None or isinstance(value, str)))
            or (kind is int and number and isinstance(value, int))
            or (kind is float and number)
        )
        if not fits:
            raise InputError(f"{path.name}: {name} is {quote(value)}", hint="see the defaults: " + _defaults())
        values[name] = tuple(value) if kind is tuple else value
    return SemaineConfig(**values)


def _defaults() -> str:
    return json.dumps(asdict(SemaineConfig()))


def read_semaine(
    folder: Path, *, config: SemaineConfig | None = None, probe: Probe | None = None
) -> Corpus[LabelledConversation]:
    """Read the sessions with words and traces, each as a conversation whose id is the session's number.

    A malformed transcript excludes its session, and a malformed trace its rater; the report lists both.
    folder: contains `Sessions`, or the sessions' folders.
    config: None for the defaults.
    probe: opens each recording; None only checks that it exists and is not empty.
    Raises: InputError: no sessions, or none with words and traces.
    """
    config = config or SemaineConfig()
    problems: list[Problem] = []
    left_out: Counter[str] = Counter()
    labelled: list[LabelledConversation] = []
    for session in _sessions(folder):
        turns = _session_turns(session, config, problems)
        if not turns:
            left_out["sessions without a usable word-level transcript"] += 1
            continue
        one = _label_session(session, turns, config, probe, problems, left_out)
        if one is None:
            left_out["sessions without a labelled turn"] += 1
        else:
            labelled.append(one)
    if not labelled:
        why = "; ".join(
            [f"{count} {what}" for what, count in left_out.items()] + [f"{p.name}: {p.reason}" for p in problems[:1]]
        )
        raise InputError(f"{folder.name}: no session of SEMAINE can be used ({why})", hint=_LAYOUT_HINT)
    report = CorpusReport("SEMAINE", count_utterances(labelled), count_media(labelled), tuple(problems), dict(left_out))
    return Corpus(tuple(labelled), report)


@dataclass(frozen=True, slots=True)
class _Session:
    """A session's folder: file name -> path."""

    name: str
    files: Mapping[str, Path]

    def find(self, pattern: str) -> Path | None:
        """Return the first file whose name matches the pattern."""
        return next((path for name, path in self.files.items() if re.search(pattern, name)), None)

    def display_name(self, path: Path) -> str:
        """Return a file's name with the session's, for reports."""
        return f"{self.name}/{path.name}"


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn of one person; times in seconds from the session's start."""

    speaker: str
    text: str
    start_s: float
    end_s: float


def _sessions(folder: Path) -> Iterator[_Session]:
    root = folder / "Sessions"
    try:
        found = sorted(
            (path for path in (root if root.is_dir() else folder).iterdir() if path.name.isdecimal() and path.is_dir()),
            key=lambda path: int(path.name),
        )
        if not found:
            raise InputError(f"{folder.name}: no folders of sessions", hint=_LAYOUT_HINT)
        for path in found:
            yield _Session(path.name, {file.name: file for file in sorted(path.iterdir())})
    except OSError as error:
        raise InputError(f"{folder.name}: cannot be listed ({error.strerror})", hint=_LAYOUT_HINT) from error


def _session_turns(session: _Session, config: SemaineConfig, problems: list[Problem]) -> list[_Turn]:
    """Read the turns of the configured speakers, by start; empty without a usable transcript."""
    turns: list[_Turn] = []
    for speaker in config.speakers:
        path = session.find(rf"^wordLevel_alignedTranscript.*_{speaker.lower()}(\.txt)?$")
        if path is None:
            continue
        try:
            blocks = list(_word_blocks(path))
        except InputError as error:
            problems.append(Problem(session.display_name(path), str(error).removeprefix(f"{path.name}, ")))
            continue
        texts = _punctuated(session, speaker, len(blocks), problems)
        for number, words in enumerate(blocks):
            if words:
                text = texts[number] if texts else " ".join(word for _, _, word in words).lower()
                start_s, end_s = min(start for start, _, _ in words), max(end for _, end, _ in words)
                turns.append(_Turn(speaker, clean_text(text), start_s, end_s))
    return sorted(turns, key=lambda turn: turn.start_s)


def _word_blocks(path: Path) -> Iterator[list[tuple[float, float, str]]]:
    """Yield the turns of a word-level transcript, including empty ones, as lists of (start_s, end_s, word).

    Raises: InputError: a line has another format.
    """
    block: list[tuple[float, float, str]] | None = None
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if _TURN.fullmatch(line):
            if block is not None:
                yield block
            block = []
            continue
        if line in ("", "."):
            continue
        match = _WORD.fullmatch(line)
        if match is None or block is None or int(match[2]) < int(match[1]):
            raise InputError(f"{path.name}, line {number}: not a word with its start and end in ms")
        if match[3] is not None:  # two times alone are a pause
            block.append((int(match[1]) / 1000, int(match[2]) / 1000, match[3].strip("<>")))
    if block is not None:
        yield block


def _punctuated(session: _Session, speaker: str, n_turns: int, problems: list[Problem]) -> Sequence[str]:
    """Read the speaker's turns from the transcript with punctuation; empty where their number differs."""
    path = session.find(r"^alignedTranscript_.*\.txt$")
    if path is None:
        return ()
    try:
        matches = [_TRANSCRIPT_LINE.fullmatch(line.strip()) for line in read_text(path).split("\n")]
    except InputError as error:
        problems.append(Problem(session.display_name(path), str(error)))
        return ()
    # The operator is listed under that name or the character's.
    texts = [_REMARK.sub(" ", m[2]) for m in matches if m and (m[1].lower() == "user") == (speaker == "User")]
    if len(texts) == n_turns:
        return texts
    reason = f"{len(texts)} turns of the {speaker.lower()} and {n_turns} at word level; its words alone are used"
    problems.append(Problem(session.display_name(path), reason))
    return ()


def _label_session(
    session: _Session,
    turns: Sequence[_Turn],
    config: SemaineConfig,
    probe: Probe | None,
    problems: list[Problem],
    left_out: Counter[str],
) -> LabelledConversation | None:
    traces = {
        (speaker, dimension): list(_traces(session, speaker, dimension, problems))
        for speaker in config.speakers
        for dimension in "VA"
    }
    utterances: list[Utterance] = []
    emotions: list[str] = []
    for turn in turns:
        span = (turn.start_s + config.reaction_lag_s, turn.end_s + config.reaction_lag_s)
        valence = _mean(traces[turn.speaker, "V"], span, config.min_raters)
        activation = _mean(traces[turn.speaker, "A"], span, config.min_raters)
        emotion = None if valence is None or activation is None else config.label(valence, activation)
        if not turn.text:
            left_out["turns without words"] += 1
        elif valence is None or activation is None:
            left_out["turns without enough traces"] += 1
        elif emotion is None:
            left_out["turns in a quadrant without a label"] += 1
        else:
            number = len(utterances) + 1
            utterances.append(Utterance(number, turn.speaker, turn.text, turn.start_s, turn.end_s))
            emotions.append(emotion)
    if not utterances:
        return None
    media = _microphone(session, config.speakers, probe, problems)
    return LabelledConversation(Conversation(session.name, tuple(utterances), media), tuple(emotions), frozenset())


def _microphone(
    session: _Session, speakers: Sequence[str], probe: Probe | None, problems: list[Problem]
) -> Path | None:
    if len(speakers) > 1:
        return None
    path = session.find(rf"_{speakers[0]} HeadMounted.*\.wav$")
    reason = "missing" if path is None else why_unusable(path, probe)
    if reason is None:
        return path
    problems.append(
        Problem(f"{session.name}/{speakers[0]} HeadMounted" if path is None else session.display_name(path), reason)
    )
    return None


def _traces(
    session: _Session, speaker: str, dimension: str, problems: list[Problem]
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the traces of one dimension, one per rater: float64 (samples, 2), seconds and value."""
    last: dict[str, tuple[int, Path]] = {}
    for name, path in session.files.items():
        match = _TRACE.fullmatch(name)
        if match and match[2] == speaker[0] and match[4] == dimension:
            attempt = max(int(match[3] or 0), int(match[5] or 0))
            last[match[1]] = max(last.get(match[1], (attempt, path)), (attempt, path))
    for _, path in last.values():
        try:
            yield _read_trace(path)
        except InputError as error:
            problems.append(Problem(session.display_name(path), str(error).removeprefix(f"{path.name}, ")))


def _read_trace(path: Path) -> npt.NDArray[np.float64]:
    """Read a trace: float64 (samples, 2), ascending seconds and value in [-1, 1].

    Raises: InputError: a line that is not such a sample, or no samples.
    """
    text = read_text(path)
    rows = [columns for line in text.split("\n") if (columns := line.split())]
    try:
        samples = np.array(rows, np.float64)
    except ValueError:  # not numbers, or lines of several lengths
        samples = np.empty(0)
    sound = samples.ndim == 2 and samples.shape[1] == 2 and np.all(np.isfinite(samples))
    if not sound or np.any(np.abs(samples[:, 1]) > 1) or np.any(np.diff(samples[:, 0]) < 0):
        raise InputError(f"{path.name}, {_bad_line(text)}")
    return samples


def _bad_line(text: str) -> str:
    """Locate the error in a trace; slow, so only called for invalid traces."""
    before_s = -math.inf
    for number, line in enumerate(text.split("\n"), 1):
        columns = line.split()
        if not columns:
            continue
        try:
            seconds, value = (float(column) for column in columns)
        except ValueError:
            return f"line {number}: not a time and a value"
        if not (math.isfinite(seconds) and abs(value) <= 1):
            return f"line {number}: the time is not finite, or the value not in -1..1"
        if seconds < before_s:
            return f"line {number}: the time runs backwards"
        before_s = seconds
    return "no samples"


def _mean(traces: Sequence[npt.NDArray[np.float64]], span: tuple[float, float], min_raters: int) -> float | None:
    """Average the span's samples per rater, then over the raters who have any; None for too few raters."""
    means = []
    for trace in traces:
        first, last = np.searchsorted(trace[:, 0], span[0], "left"), np.searchsorted(trace[:, 0], span[1], "right")
        if first < last:
            means.append(float(trace[first:last, 1].mean()))
    return sum(means) / len(means) if len(means) >= min_raters else None
