"""A session as bytes, to survive a restart or move to another process, and back.

    32 bytes    sha256 of all that follows
    a message   in the form of `media.protocol`: a JSON header, then raw arrays

The bytes contain the words of the conversation: protect them accordingly. The Llama's context is not among them: it is
computed again when the next utterance comes. Nothing is unpickled; shapes are compared with the bundle's before memory
is allocated.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.errors import InputError, TranscriptError
from mechm_runtime.fusion.inputs import FusionInputs, speaker_numbers
from mechm_runtime.llm.scorer import LlamaScores, SoftTokens
from mechm_runtime.media.protocol import ArraySpec, ProtocolError, array_spec, read_exactly, read_header, write_message
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import History
from mechm_runtime.system.arrays import Array
from mechm_runtime.types import EMOTIONS, MODALITIES, Utterance

FORMAT = 1
MAX_HEADER_BYTES = 16 << 20
MAX_TURNS = 4096
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a session. bundle_id: of the bundle whose encoders filled the history."""

    bundle_id: str
    conversation_id: str
    config: SessionConfig
    history: History


def to_bytes(snapshot: Snapshot) -> bytes:
    """Serialise a snapshot in the form above."""
    history = snapshot.history
    header = {
        "format": FORMAT,
        "bundle_id": snapshot.bundle_id,
        "conversation_id": snapshot.conversation_id,
        "config": asdict(snapshot.config),
        "first": history.first,
        "llm_first": history.llm_first,
        "utterances": [[u.id, u.speaker, u.text, u.start_s, u.end_s] for u in history.utterances],
        "missing": [dict(missing) for missing in history.missing],
        "n_tokens": history.n_tokens.tolist(),
        "told": [[emotion, list(causes)] for emotion, causes in history.last_reported],
    }
    stream = io.BytesIO()
    arrays = [] if not len(history) else [_sent(array) for array in _arrays(history).values()]
    write_message(stream, header, arrays)
    body = stream.getvalue()
    return hashlib.sha256(body).digest() + body


def from_bytes(data: bytes, bundle_id: str, sizes: FusionWindows, soft_shape: tuple[int, int] | None) -> Snapshot:
    """Read a snapshot.

    bundle_id, sizes, soft_shape: of the bundle that continues the session.
    Raises: InputError: it is damaged, of another version, or of another bundle.
    """
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise InputError("the snapshot is damaged, or no snapshot", hint="use the bytes that session.snapshot() gave")
    stream = io.BytesIO(body)
    try:
        header = read_header(stream, max_bytes=MAX_HEADER_BYTES)
        if header is None or header.get("format") != FORMAT:
            raise InputError(
                "the snapshot is of another version of this library", hint="restore it with the one that made it"
            )
        if header["bundle_id"] != bundle_id:
            raise InputError(
                f"the snapshot is of bundle {str(header['bundle_id'])[:80]}, not of {bundle_id}",
                hint="a session continues only with the bundle that it was begun with",
            )
        history = _history(header, stream, sizes, soft_shape)
        return Snapshot(bundle_id, str(header["conversation_id"]), SessionConfig(**header["config"]), history)
    except (ProtocolError, TranscriptError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the snapshot is not one: {error}", hint="use the bytes that session.snapshot() gave"
        ) from error


def _arrays(history: History) -> dict[str, Array]:
    """All arrays of a history, by name; `speaker_ids` is recomputed, counts are in the header."""
    names = [name for name in FusionInputs.__slots__ if name != "speaker_ids"]
    arrays = {name: getattr(history.inputs, name) for name in names}
    arrays |= {"asked": history.answers.asked, "emotions": history.answers.emotions, "causes": history.answers.causes}
    if history.soft is not None:
        arrays |= {"soft": history.soft.tokens, "soft_evident": history.soft.has_nonverbal}
    return arrays


def _sent(array: Array) -> tuple[ArraySpec, list[bytes]]:
    raw = array.astype(np.uint8) if array.dtype == np.bool_ else array.astype("<f4")
    return ArraySpec("uint8" if raw.dtype == np.uint8 else "float32", raw.shape), [raw.tobytes()]


def _history(
    header: Mapping[str, Any], stream: io.BytesIO, sizes: FusionWindows, soft_shape: tuple[int, int] | None
) -> History:
    utterances = tuple(_utterance(*listed) for listed in header["utterances"])
    n = len(utterances)
    counted = {key: list(header[key]) for key in ("missing", "n_tokens", "told")}
    if n > MAX_TURNS or any(len(values) != n for values in counted.values()):
        raise ValueError("its lists differ in length")
    if any(later.id <= earlier.id for earlier, later in pairwise(utterances)):
        raise ValueError("its utterances are out of order")
    # Arrays to be filled, of the shapes that this bundle needs: other shapes are refused.
    empty = History.empty(sizes, soft_shape)
    inputs = FusionInputs.absent(utterances, sizes)
    soft = None if soft_shape is None else SoftTokens(np.zeros((n, *soft_shape), np.float32), np.zeros(n, bool))
    history = History(
        first=_count(header["first"]),
        llm_first=_count(header["llm_first"]),
        utterances=utterances,
        inputs=inputs,
        missing=tuple(_reasons(missing) for missing in counted["missing"]),
        n_tokens=np.array([_count(value) for value in counted["n_tokens"]], np.int64),
        soft=soft,
        answers=LlamaScores.empty(n),
        last_reported=tuple(_reported(*listed) for listed in counted["told"]),
    )
    if history.llm_first > history.first + n:
        raise ValueError("the Llama's context begins behind the last utterance")
    if n:
        _fill(_arrays(history), list(header["arrays"]), stream)
    history.inputs.speaker_ids[:] = speaker_numbers(utterances)
    if stream.read(1):
        raise ValueError("there are bytes after its end")
    return history if n else empty


def _fill(arrays: Mapping[str, Array], listed: list[object], stream: io.BytesIO) -> None:
    for (name, array), one in zip(arrays.items(), listed, strict=True):
        is_mask = array.dtype == np.bool_
        spec = array_spec(one, dtype="uint8" if is_mask else "float32", max_shape=array.shape)
        if spec.shape != array.shape:
            raise ValueError(f"{name} of shape {spec.shape}, not {array.shape}")
        raw = np.empty(spec.shape, np.uint8 if is_mask else "<f4")
        read_exactly(stream, memoryview(raw.reshape(-1).view(np.uint8).data))
        if not np.isfinite(raw).all():
            raise ValueError(f"{name} is not finite")
        array[:] = raw


def _utterance(number: object, speaker: object, text: object, start_s: float | None, end_s: float | None) -> Utterance:
    if not (isinstance(speaker, str) and (text is None or isinstance(text, str))):
        raise ValueError("an utterance whose words are no text")
    start, end = (None if value is None else float(value) for value in (start_s, end_s))
    return Utterance(_count(number), speaker, text, start, end)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} where a count is expected")
    return value


def _reasons(missing: object) -> dict[str, str]:
    if not isinstance(missing, dict) or not set(missing) <= {*MODALITIES, "llm"}:
        raise ValueError("an unknown modality is missing")
    return {str(modality): str(reason) for modality, reason in missing.items()}


def _reported(emotion: object, causes: object) -> tuple[str | None, tuple[int, ...]]:
    if not (emotion is None or emotion in EMOTIONS) or not isinstance(causes, list):
        raise ValueError("an unknown emotion")
    return None if emotion is None else str(emotion), tuple(_count(cause) for cause in causes)
