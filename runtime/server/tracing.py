"""Spans of OpenTelemetry: one for each request and live stream, with children for where its time goes.

Names are those of the semantic conventions: http of servers, and gen_ai where there is one. No audio, no text, no keys.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from starlette.types import Scope

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.stopwatch import telling_laps
from salmonrun.version import __version__

Attributes = Mapping[str, str | bool | int | float | list[str]]

# gen_ai.*: https://github.com/open-telemetry/semantic-conventions-genai
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"  # seconds
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
AUDIO_S = "salmonrun.audio.duration"  # seconds


class Tracing:
    """Makes spans; without a provider, such as nobody sees.

    Args:
        provider: where spans go.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = (provider or trace.NoOpTracerProvider()).get_tracer("salmonrun", __version__)

    @contextmanager
    def request(self, scope: Scope) -> Iterator[Span]:
        """The span of a request, which is the current one within; it goes on a trace that the client has begun."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope.get("method", "GET")  # that of a websocket's handshake
        host, port = scope.get("server") or ("", 0)
        told = {
            "http.request.method": method,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "network.protocol.version": scope["http_version"],
            "server.address": host,
            "server.port": port or 0,
            "user_agent.original": headers.get("user-agent", ""),
        }
        span = self._tracer.start_span(method, propagate.extract(headers), SpanKind.SERVER, told)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield span

    @contextmanager
    def work(self, name: str) -> Iterator[None]:
        """The span of work that no request waits for, which is the current one within."""
        with self._tracer.start_as_current_span(name, Context(), SpanKind.INTERNAL):
            yield

    def begin(self, name: str, parent: Context | None = None) -> Span:
        """A child of the current span, or of another; it ends when it is told to."""
        return self._tracer.start_span(name, parent)

    @contextmanager
    def stages(self, parent: Context) -> Iterator[None]:
        """Within it, each stage of the engine's work in this thread is a span."""
        if not trace.get_current_span(parent).is_recording():
            yield
            return
        to_epoch_ns = time.time_ns() - time.perf_counter_ns()

        def lap(stage: str, begin: float, end: float) -> None:
            child = self._tracer.start_span(stage, parent, start_time=to_epoch_ns + round(begin * 1e9))
            child.end(to_epoch_ns + round(end * 1e9))

        with telling_laps(lap):
            yield


def finished(span: Span, method: str, route: str | None, status: int | None) -> None:
    """What is known of a request in the end; no status: the client went away before there was one."""
    if route:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    if status is None:
        span.set_attribute("error.type", "client_disconnected")
        return
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))


def asked(operation: str, model: str | None, config: GenerationConfig, stream: bool) -> None:
    """What the current request wants of the model."""
    told: dict[str, str | bool | int | float | list[str]] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "salmonrun",
        "gen_ai.request.max_tokens": config.max_new_tokens,
        "gen_ai.request.temperature": config.temperature if config.do_sample else 0.0,
        "gen_ai.request.stream": stream,
    }
    if model:
        told["gen_ai.request.model"] = model
    if config.seed is not None:
        told["gen_ai.request.seed"] = config.seed
    answered(told)


def answered(told: Attributes) -> None:
    """What is known of the current request's answer."""
    trace.get_current_span().set_attributes(told)
