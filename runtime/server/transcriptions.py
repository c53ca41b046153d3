"""POST /v1/audio/transcriptions and /translations: recordings of any length."""

import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.longform.transcribe import TranscriptInfo
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.server.answers import TRANSCRIPTIONS
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.job import Job, Work
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.sse import sse
from salmonrun.runtime.server.tracing import AUDIO_S, FIRST_CHUNK, OUTPUT_TOKENS, answered, asked
from salmonrun.runtime.server.vllm_chunks import chunks
from salmonrun.runtime.transcript import FORMATS, Transcript, of_segments

TRANSLATION = "translation"  # the task of a bundle that translates into English
_Item = TranscriptInfo | str | Segment  # of a job: what is known at first, then text and segments
_Text = str | SkipJsonSchema[None]  # a form has no null: a field is left out
_TEXTS = {"text": "txt", "srt": "srt", "vtt": "vtt"}  # response_format -> format of a transcript


class TranscriptionForm(BaseModel):
    """Fields of OpenAI's form that have a meaning here, and some of our own."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    model: _Text = None
    language: _Text = None  # what the client knows: it is told again, the model hears for itself
    prompt: _Text = None  # an instruction, instead of the task's
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=2)
    stream: bool = False
    granularities: list[Literal["segment"]] = Field(default=["segment"], alias="timestamp_granularities[]")
    task: _Text = None
    question: _Text = None
    num_beams: int = Field(1, json_schema_extra={"minimum": 1})
    # Of each window.
    max_new_tokens: int = Field(GenerationConfig.max_new_tokens, json_schema_extra={"minimum": 1})
    seed: int | SkipJsonSchema[None] = None
    priority: int = Field(0, ge=0)  # who has less goes first

    # vLLM's names, which its clients send.
    max_completion_tokens: int | SkipJsonSchema[None] = Field(None, json_schema_extra={"minimum": 1})
    stream_include_usage: bool | SkipJsonSchema[None] = None
    stream_continuous_usage_stats: bool | SkipJsonSchema[None] = None

    @property
    def speaks_vllm(self) -> bool:
        """Whether the client knows options that are vLLM's alone: then it expects chunks as vLLM sends them."""
        return self.stream_include_usage is not None or self.stream_continuous_usage_stats is not None

    def generation(self) -> GenerationConfig:
        """How tokens are chosen; a temperature of 0 is greedy."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            num_beams=self.num_beams,
            seed=self.seed,
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
        )


def transcriptions(service: Service) -> APIRouter:
    """The two routes."""
    router = APIRouter(prefix="/v1/audio")

    @router.post("/transcriptions", responses=TRANSCRIPTIONS)
    async def transcribe(
        request: Request, form: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """What is said."""
        return await _answer(service, request, form)

    @router.post("/translations", responses=TRANSCRIPTIONS)
    async def translate(
        request: Request, form: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """The same, by the bundle's task for translations, or by an instruction."""
        if form.task is None and form.prompt is None:
            form.task = TRANSLATION
        return await _answer(service, request, form)

    return router


async def _answer(service: Service, request: Request, form: TranscriptionForm) -> Response:
    service.check_model(form.model)
    asked("transcribe", form.model, form.generation(), form.stream)
    started = time.perf_counter()
    work = _work(service.engine, form, service.config.max_audio_s)
    job: Job[_Item] = service.job(request, work, form.priority)
    info = await anext(job)  # an error up to here is a status
    assert isinstance(info, TranscriptInfo)
    items = _noted(service, request, job, info)
    if form.stream and form.speaks_vllm:
        return sse(chunks(items, form.model or service.model_names[0], bool(form.stream_include_usage)))
    if form.stream:
        return sse(_events(items))
    segments = [item async for item in items if isinstance(item, Segment)]
    transcript = of_segments("", segments, info, time.perf_counter() - started, None)
    return _formatted(transcript, segments, form)


def _work(engine: Engine, form: TranscriptionForm, max_audio_s: float) -> Work[_Item]:
    def work(cancel: threading.Event) -> Iterator[_Item]:
        items, info = engine.transcribe_iter(
            form.file.file,
            task=form.task,
            prompt=form.prompt,
            question=form.question,
            generation=form.generation(),
            cancel=cancel,
            priority=form.priority,
        )
        check_length(info, max_audio_s)
        yield info
        yield from items

    return work


def check_length(info: TranscriptInfo, max_audio_s: float) -> None:
    """Whether a recording is one of those that are transcribed here.

    Raises:
        ApiError: 413, it is too long.
    """
    if info.duration_s > max_audio_s:
        what = f"the recording has {info.duration_s:.0f} s, the limit is {max_audio_s:g} s: send it in parts"
        raise ApiError(413, "audio_too_long", what, "file")


async def _noted(
    service: Service, request: Request, job: Job[_Item], info: TranscriptInfo
) -> AsyncIterator[str | Segment]:
    """Text and segments; what they cost goes into metrics and the log."""
    metrics, started, tokens, first_s = service.metrics, time.perf_counter(), 0, 0.0
    metrics.queue_time.observe(job.queued_s)
    async for item in job:
        assert isinstance(item, str | Segment)
        if not first_s:
            first_s = time.perf_counter() - started
            metrics.first_token.observe(first_s)
        tokens += len(item.token_ids) if isinstance(item, Segment) else 0
        yield item
    took_s = time.perf_counter() - started
    metrics.tokens.inc(tokens)
    metrics.audio.inc(info.duration_s)
    metrics.factor.observe(took_s / info.duration_s)
    answered({OUTPUT_TOKENS: tokens, AUDIO_S: info.duration_s, FIRST_CHUNK: first_s})
    request.state.log = {"audio_s": round(info.duration_s, 3), "tokens": tokens, "queued_s": round(job.queued_s, 4)}


async def _events(items: AsyncIterator[str | Segment]) -> AsyncIterator[dict[str, Any]]:
    """Deltas, as text becomes certain, which add up to the text that ends them."""
    text = ""
    async for item in items:
        if isinstance(item, str):
            text += item
            yield {"type": "transcript.text.delta", "delta": item}
    yield {"type": "transcript.text.done", "text": text}


def _formatted(transcript: Transcript, segments: list[Segment], form: TranscriptionForm) -> Response:
    if form.response_format in _TEXTS:
        return PlainTextResponse(FORMATS[_TEXTS[form.response_format]](transcript))
    seconds = transcript.timings["audio_s"]
    answer: dict[str, Any] = {"text": transcript.text, "usage": {"type": "duration", "seconds": seconds}}
    if form.response_format == "verbose_json":
        answer |= {"task": form.task or "transcribe", "language": form.language or "und", "duration": seconds}
        answer |= {"segments": [_verbose(i, one, form) for i, one in enumerate(segments)], "notes": transcript.notes}
    return JSONResponse(answer)


def _verbose(number: int, segment: Segment, form: TranscriptionForm) -> dict[str, Any]:
    """A segment, as openai/whisper describes them."""
    encoded = segment.text.encode()
    return {
        "id": number,
        "seek": round(100 * segment.start),  # in frames of 10 ms
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.token_ids,
        "temperature": form.temperature,
        "avg_logprob": segment.score or 0.0,  # of no tokens, none
        "compression_ratio": len(encoded) / len(zlib.compress(encoded)),
        "no_speech_prob": 0.0,  # what held no speech has no segment
    }
