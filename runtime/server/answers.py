"""The shapes of all answers, for /openapi.json: what is sent is made where it is known, and tests hold it to these."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Responses = dict[int | str, dict[str, Any]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Error(_Strict):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorAnswer(_Strict):
    """Any error."""

    error: Error


class Health(_Strict):
    """How the server is doing."""

    status: Literal["loading", "ready", "draining", "changed"]


class Model(_Strict):
    """A name that requests may have as `model`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Strict):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class Duration(_Strict):
    """What was used: audio."""

    type: Literal["duration"]
    seconds: float


class Transcription(_Strict):
    """`response_format` json."""

    text: str
    usage: Duration


class TranscriptionSegment(_Strict):
    """A segment, as openai/whisper describes them."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscription(Transcription):
    """`response_format` verbose_json."""

    task: str
    language: str
    duration: float
    segments: list[TranscriptionSegment]
    notes: list[str]


class Usage(_Strict):
    """Positions in the language model."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(_Strict):
    """What was answered."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(_Strict):
    """The answer, of which there is one."""

    index: Literal[0]
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Completion(_Strict):
    """The whole answer."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage


_RETRY = {"Retry-After": {"description": "Seconds until it is worth asking again.", "schema": {"type": "integer"}}}
_ERRORS = {
    400: "The request or the recording cannot be used.",
    401: "An API key is needed, or not known.",
    404: "There is no such path, or no such model.",
    405: "The path is not asked by this method.",
    413: "The body or the recording is too large.",
    429: "So many are answered or wait already.",
    500: "A bug, which the server's log tells.",
    503: "The server is loading, ending or out of memory for now.",
    504: "It took longer than the server's limit.",
}
_RETRIED = (429, 503)


def errors(*statuses: int) -> Responses:
    """Those that a route may be answered with, as its `responses`."""
    told: Responses = {status: {"model": ErrorAnswer, "description": _ERRORS[status]} for status in statuses}
    for status in set(_RETRIED) & set(statuses):
        told[status]["headers"] = _RETRY
    return told


_TEXT = {"text/plain": {"schema": {"type": "string"}}}
# Of each event: its data is JSON, or [DONE].
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_EVENTS = {"text/event-stream": {"schema": _EVENT}}

ASKING = errors(400, 401, 404, 405, 413, 429, 500, 503, 504)
KNOWING = errors(400, 401, 404, 405, 413, 500, 503, 504)
SEEN = errors(405, 413, 500, 504)
HEALTH: Responses = {
    **SEEN,
    200: {"model": Health, "description": "A request would be answered."},
    503: {"model": Health, "description": "The server is loading, or about to end; or its bundle has changed."},
}
METRICS: Responses = {**SEEN, 200: {"content": _TEXT, "description": "Prometheus' text format."}}
TRANSCRIPTIONS: Responses = {
    **ASKING,
    200: {
        "model": Transcription | VerboseTranscription,
        "content": {**_TEXT, **_EVENTS},
        "description": "JSON; text for text, srt and vtt; with `stream` transcript.text.delta and .done, as events.",
    },
}
COMPLETIONS: Responses = {
    **ASKING,
    200: {
        "model": Completion,
        "content": _EVENTS,
        "description": "The answer; with `stream` chunks of it, as events.",
    },
}
