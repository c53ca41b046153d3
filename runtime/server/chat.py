"""POST /v1/chat/completions: a question about one recording, which the message holds."""

import base64
import binascii
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.result import Result
from salmonrun.runtime.server.answers import COMPLETIONS
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.job import Job, Work
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.sse import sse
from salmonrun.runtime.server.tracing import AUDIO_S, FIRST_CHUNK, OUTPUT_TOKENS, answered, asked

Usage = dict[str, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputAudio(_Strict):
    """A file in base64."""

    data: str
    format: str = "wav"  # the file says for itself what it is


class AudioPart(_Strict):
    """The recording."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class TextPart(_Strict):
    """A part of the instruction."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """Of the conversation, which is one question."""

    role: Literal["system", "developer", "user"]
    content: str | list[Annotated[AudioPart | TextPart, Field(discriminator="type")]]
    name: str | None = None

    def parts(self) -> list[AudioPart | TextPart]:
        """What it holds."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)


class StreamOptions(_Strict):
    """Of an answer that grows."""

    include_usage: bool = False


class ChatRequest(_Strict):
    """Fields of OpenAI's request that have a meaning here, and some of our own."""

    messages: list[Message]
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Literal[1] = 1
    modalities: list[Literal["text"]] = Field(default=["text"])
    user: str | None = None
    task: str | None = None  # instead of text
    num_beams: int = Field(1, json_schema_extra={"minimum": 1})
    priority: int = Field(0, ge=0)  # who has less goes first

    def generation(self) -> GenerationConfig:
        """How tokens are chosen; a temperature of 0 is greedy."""
        given = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerationConfig(
            max_new_tokens=GenerationConfig.max_new_tokens if given is None else given,
            num_beams=self.num_beams,
            stop_strings=stop,
            seed=self.seed,
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            top_p=self.top_p if self.temperature else 1.0,
        )

    def prompt(self) -> str | None:
        """The instruction; None: the task's."""
        texts = [part.text for message in self.messages for part in message.parts() if isinstance(part, TextPart)]
        return "\n".join(texts) or None

    def recording(self) -> bytes:
        """The bytes of the recording's file.

        Raises:
            ApiError: not exactly one, or not in base64.
        """
        parts = [part for message in self.messages for part in message.parts() if isinstance(part, AudioPart)]
        if len(parts) != 1:
            what = f"the messages hold {len(parts)} input_audio parts; this model answers about exactly one recording"
            raise ApiError(400, "invalid_audio", what, "messages")
        try:
            return base64.b64decode(parts[0].input_audio.data, validate=True)
        except (binascii.Error, ValueError) as error:
            what = f"input_audio.data is not base64 ({error}); expected a whole audio file in it"
            raise ApiError(400, "invalid_audio", what, "messages") from error


def chat(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=COMPLETIONS)
    async def complete(request: Request, body: ChatRequest) -> Response:
        """The answer."""
        service.check_model(body.model)
        asked("chat", body.model, body.generation(), body.stream)
        job = service.job(request, _work(service.engine, body, body.recording()), body.priority)
        prompt_tokens = await anext(job)  # an error up to here is a status
        assert isinstance(prompt_tokens, int)
        completion = _Completion(service, request, body, prompt_tokens)
        if body.stream:
            return sse(completion.chunks(job))
        return JSONResponse(await completion.whole(job))

    return router


def _work(engine: Engine, body: ChatRequest, recording: bytes) -> Work[int | str | Result]:
    """Tokens of the prompt, pieces of text, and what is known of the answer."""

    def work(cancel: threading.Event) -> Iterator[int | str | Result]:
        prompt, config = body.prompt(), body.generation()
        asked = engine.model.request(body.task, prompt, None, config)
        audio = engine.model.load_audio(recording, None)
        pieces = engine.generate_iter(
            audio, task=body.task, prompt=prompt, config=config, cancel=cancel, priority=body.priority
        )
        yield engine.model.positions(asked, len(audio.pcm)) - config.max_new_tokens
        result = yield from pieces
        yield result

    return work


class _Completion:
    """One answer, in OpenAI's words."""

    def __init__(self, service: Service, request: Request, body: ChatRequest, prompt_tokens: int) -> None:
        self._service = service
        self._request = request
        self._body = body
        self._prompt_tokens = prompt_tokens
        self._common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model or service.model_names[0],
        }

    async def whole(self, job: Job[int | str | Result]) -> dict[str, Any]:
        """At once."""
        result = [item async for item in job][-1]
        assert isinstance(result, Result)
        self._note(job, result)
        message = {"role": "assistant", "content": result.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(result), "logprobs": None}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": self._usage(result)}

    async def chunks(self, job: Job[int | str | Result]) -> AsyncIterator[dict[str, Any]]:
        """As it is decoded."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for item in job:
            if isinstance(item, str):
                yield self._chunk({"content": item})
            elif isinstance(item, Result):
                self._note(job, item)
                yield self._chunk({}, _finish_reason(item))
                if self._body.stream_options.include_usage:
                    yield {**self._chunk({}), "choices": [], "usage": self._usage(item)}

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self, result: Result) -> Usage:
        prompt, answer = self._prompt_tokens, len(result.token_ids)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _note(self, job: Job[int | str | Result], result: Result) -> None:
        timings = result.timings
        self._service.metrics.answered(timings, job.queued_s)
        answered(
            {
                "gen_ai.response.id": self._common["id"],
                "gen_ai.response.model": self._common["model"],
                "gen_ai.response.finish_reasons": [_finish_reason(result)],
                "gen_ai.usage.input_tokens": self._prompt_tokens,
                OUTPUT_TOKENS: timings.tokens,
                FIRST_CHUNK: timings.ttft_s,
                AUDIO_S: timings.audio_s,
            }
        )
        self._request.state.log = {
            "audio_s": round(timings.audio_s, 3),
            "tokens": timings.tokens,
            "queued_s": round(job.queued_s, 4),
        }


def _finish_reason(result: Result) -> str:
    """Of those that OpenAI's clients know; the log of the engine has the others."""
    return "length" if result.finish_reason == "length" else "stop"
