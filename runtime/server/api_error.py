"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status."""

from typing import Any

from fastapi.responses import JSONResponse

from salmonrun.runtime.errors import (
    AudioError,
    AudioTooLongError,
    BusyError,
    CapacityError,
    ConfigError,
    DeadlineError,
    PromptError,
    SalmonrunError,
    UnknownTaskError,
)

GONE = 499  # nginx's status of a client that went away; it is logged and counted, there is nobody to send it to
RETRY_S = 5  # until memory may be free that others keep
# What a client may have asked for wrongly -> its code; the first that fits. Any other error of ours is the server's.
_CODES: tuple[tuple[type[SalmonrunError], str], ...] = (
    (AudioTooLongError, "audio_too_long"),
    (AudioError, "invalid_audio"),
    (UnknownTaskError, "unknown_task"),
    (PromptError, "invalid_prompt"),
    (CapacityError, "context_length_exceeded"),
    (ConfigError, "invalid_value"),
)


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s  # when to ask again; None: that is no help

    @property
    def type(self) -> str:
        """The kind of error, by its status."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def as_dict(self) -> dict[str, Any]:
        """The error itself."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"error": self.as_dict()}, self.status, self.headers)


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; of a bug, nothing but that there was one."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(503, "engine_overloaded", str(error), retry_after_s=RETRY_S)
    if isinstance(error, DeadlineError):
        return ApiError(504, "timeout", str(error))
    for kind, code in _CODES:
        if isinstance(error, kind):
            return ApiError(400, code, str(error))
    return ApiError(500, "internal_error", "the server failed to answer; its log says why")


def unknown_model(name: str, known: tuple[str, ...]) -> ApiError:
    """A model that is not served here."""
    return ApiError(404, "model_not_found", f"model {name!r} is not served here; known: {', '.join(known)}", "model")
