"""A session's view as bytes, to survive a restart or move to another process, and back.

    32 bytes    sha256 of all that follows
    a message   in the form of `media.protocol`: a JSON header, then raw arrays

It holds what was said, so keep it as you keep conversations. The Llama's memory is not in it: that is read again when
the next utterance comes. Nothing is unpickled; shapes are held against the bundle's before memory is taken.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mechm_runtime.bundle.config import FusionWindows
from mechm_runtime.errors import InputError, TranscriptError
from mechm_runtime.fusion.inputs import FusionInputs, speaker_numbers
from mechm_runtime.llm.scorer import LlamaScores, SoftTokens
from mechm_runtime.media.protocol import ArraySpec, ProtocolError, array_spec, read_exactly, read_header, write_message
from mechm_runtime.session.config import SessionConfig
from mechm_runtime.session.history import View
from mechm_runtime.types import EMOTIONS, MODALITIES, Utterance

FORMAT = 1
MAX_HEADER_BYTES = 16 << 20
MAX_TURNS = 4096
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a session is made of. bundle_id: of the bundle whose encoders filled the view."""

    bundle_id: str
    conversation_id: str
    config: SessionConfig
    view: View


def to_bytes(snapshot: Snapshot) -> bytes:
    """The snapshot in the form above."""
    view = snapshot.view
    header = {
        "format": FORMAT,
        "bundle_id": snapshot.bundle_id,
        "conversation_id": snapshot.conversation_id,
        "config": asdict(snapshot.config),
        "first": view.first,
        "llm_first": view.llm_first,
        "utterances": [[u.id, u.speaker, u.text, u.start_s, u.end_s] for u in view.utterances],
        "missing": [dict(missing) for missing in view.missing],
        "n_tokens": view.n_tokens.tolist(),
        "told": [[emotion, list(causes)] for emotion, causes in view.told],
    }
    stream = io.BytesIO()
    arrays = [] if not len(view) else [_sent(array) for array in _arrays(view).values()]
    write_message(stream, header, arrays)
    body = stream.getvalue()
    return hashlib.sha256(body).digest() + body


def from_bytes(data: bytes, bundle_id: str, sizes: FusionWindows, soft_shape: tuple[int, int] | None) -> Snapshot:
    """The snapshot in some bytes.

    bundle_id, sizes, soft_shape: of the bundle that is to go on with it.
    Raises: InputError: it is damaged, of another version, or of another bundle.
    """
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise InputError("the snapshot is damaged or none at all", hint="use the bytes that session.snapshot() gave")
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
                hint="what another bundle's encoders found means nothing to this one's",
            )
        view = _view(header, stream, sizes, soft_shape)
        return Snapshot(bundle_id, str(header["conversation_id"]), SessionConfig(**header["config"]), view)
    except (ProtocolError, TranscriptError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the snapshot is not one: {error}", hint="use the bytes that session.snapshot() gave"
        ) from error


def _arrays(view: View) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a view, by name; `speaker_ids` and counts follow from the rest or travel in the header."""
    names = [name for name in FusionInputs.__slots__ if name != "speaker_ids"]
    arrays = {name: getattr(view.inputs, name) for name in names}
    arrays |= {"asked": view.answers.asked, "emotions": view.answers.emotions, "causes": view.answers.causes}
    if view.soft is not None:
        arrays |= {"soft": view.soft.tokens, "soft_evident": view.soft.evident}
    return arrays


def _sent(array: npt.NDArray[Any]) -> tuple[ArraySpec, list[bytes]]:
    raw = array.astype(np.uint8) if array.dtype == np.bool_ else array.astype("<f4")
    return ArraySpec("uint8" if raw.dtype == np.uint8 else "float32", raw.shape), [raw.tobytes()]


def _view(
    header: Mapping[str, Any], stream: io.BytesIO, sizes: FusionWindows, soft_shape: tuple[int, int] | None
) -> View:
    utterances = tuple(_utterance(*listed) for listed in header["utterances"])
    n = len(utterances)
    counted = {key: list(header[key]) for key in ("missing", "n_tokens", "told")}
    if n > MAX_TURNS or any(len(values) != n for values in counted.values()):
        raise ValueError("its lists differ in length")
    if any(later.id <= earlier.id for earlier, later in pairwise(utterances)):
        raise ValueError("its utterances are out of order")
    # Arrays to be filled: of the shapes that this bundle wants, so that nothing else can come in.
    empty = View.empty(sizes, soft_shape)
    inputs = FusionInputs.absent(utterances, sizes)
    soft = None if soft_shape is None else SoftTokens(np.zeros((n, *soft_shape), np.float32), np.zeros(n, bool))
    view = View(
        first=_count(header["first"]),
        llm_first=_count(header["llm_first"]),
        utterances=utterances,
        inputs=inputs,
        missing=tuple(_reasons(missing) for missing in counted["missing"]),
        n_tokens=np.array([_count(value) for value in counted["n_tokens"]], np.int64),
        soft=soft,
        answers=LlamaScores.unasked(n),
        told=tuple(_told(*listed) for listed in counted["told"]),
    )
    if view.llm_first > view.first + n:
        raise ValueError("the Llama's view begins behind the session's")
    if n:
        _fill(_arrays(view), list(header["arrays"]), stream)
    view.inputs.speaker_ids[:] = speaker_numbers(utterances)
    if stream.read(1):
        raise ValueError("there is more behind its end")
    return view if n else empty


def _fill(arrays: Mapping[str, npt.NDArray[Any]], listed: list[object], stream: io.BytesIO) -> None:
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
        raise ValueError("an utterance whose words are none")
    start, end = (None if value is None else float(value) for value in (start_s, end_s))
    return Utterance(_count(number), speaker, text, start, end)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.40} where a count is expected")
    return value


def _reasons(missing: object) -> dict[str, str]:
    if not isinstance(missing, dict) or not set(missing) <= {*MODALITIES, "llm"}:
        raise ValueError("reasons for something unknown to be missing")
    return {str(modality): str(reason) for modality, reason in missing.items()}


def _told(emotion: object, causes: object) -> tuple[str | None, tuple[int, ...]]:
    if not (emotion is None or emotion in EMOTIONS) or not isinstance(causes, list):
        raise ValueError("an unknown emotion")
    return None if emotion is None else str(emotion), tuple(_count(cause) for cause in causes)
