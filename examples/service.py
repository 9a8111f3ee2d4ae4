"""A service: `pip install 'mechm[cpu,service]'`, then `uvicorn --app-dir examples service:app`.

POST /analyze takes {"utterances": [{"speaker": "Ana", "text": "I got the job!"}], "deadline_ms": 200}; the WebSocket
/session takes an utterance a message and answers what it changes. Nothing of what is said is kept or logged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from itertools import count
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field

from mechm_runtime import Conversation, InputError, Pipeline, Utterance


class Turn(BaseModel):
    speaker: str = Field("", max_length=200)
    text: str = Field(max_length=5000)


class Talk(BaseModel):
    utterances: Annotated[list[Turn], Field(min_length=1, max_length=500)]
    deadline_ms: float | None = Field(None, gt=0)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with Pipeline.from_bundle() as app.state.pipeline:  # what MECHM_BUNDLE names, or `make demo` built
        yield


app = FastAPI(title="MECHM", lifespan=lifespan)


@app.post("/analyze")
async def analyze(talk: Talk, request: Request) -> dict[str, Any]:
    turns = tuple(Utterance(n, turn.speaker, turn.text) for n, turn in enumerate(talk.utterances, start=1))
    pipeline, conversation = request.app.state.pipeline, Conversation("request", turns)
    try:
        return asdict(await pipeline.analyze_async(conversation, deadline_ms=talk.deadline_ms))
    except InputError as error:
        raise HTTPException(422, f"{error} ({error.hint})") from error


@app.websocket("/session")
async def session(socket: WebSocket) -> None:
    await socket.accept()
    going_on = socket.app.state.pipeline.open_session()
    with suppress(WebSocketDisconnect):
        for number in count(1):
            turn = Turn.model_validate(await socket.receive_json())
            await socket.send_json(asdict(await going_on.append_async(Utterance(number, turn.speaker, turn.text))))
