"""Spans of requests and live streams, in memory and over OTLP."""

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from salmonrun.runtime import Engine  # noqa: E402
from salmonrun.runtime.errors import ConfigError  # noqa: E402
from salmonrun.runtime.server.exporting import tracer_provider  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402
from tests.helpers.waiting import until  # noqa: E402
from tests.runtime.server.test_realtime import appends, pcm16, receive, send, session, socket  # noqa: E402
from tests.runtime.server.test_server import SAID, SHOPPING, get, held, metric  # noqa: E402, F401

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STAGES = {"audio", "features", "whisper", "audio_encoder", "qformer", "prefill", "decode"}


@dataclass(frozen=True)
class Ended:
    """A span, with all that it must have."""

    name: str
    kind: SpanKind
    trace: str
    id: str
    parent: str | None
    begin: int  # ns
    end: int
    told: dict[str, Any]
    error: bool


def ended(span: ReadableSpan) -> Ended:
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.context
    parent = f"{span.parent.span_id:016x}" if span.parent else None
    trace, own = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
    error = span.status.status_code is StatusCode.ERROR
    told: dict[str, Any] = dict(span.attributes or {})
    return Ended(span.name, span.kind, trace, own, parent, span.start_time, span.end_time, told, error)


class Traced:
    """A server, and the spans that have ended."""

    def __init__(self, running: Running, spans: InMemorySpanExporter) -> None:
        self.running = running
        self.client = OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0)
        self._spans = spans

    def spans(self, name: str) -> tuple[Ended, list[Ended]]:
        """The server's span of that name, when it has ended, and its children."""
        until(lambda: any(span.name == name for span in self._spans.get_finished_spans()))
        spans = [ended(span) for span in self._spans.get_finished_spans()]
        server = next(span for span in spans if span.name == name)
        assert server.kind is SpanKind.SERVER
        return server, [span for span in spans if span.parent == server.id]


@pytest.fixture
def traced(demo_engine: Engine) -> Iterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(demo_engine, spans=provider, api_keys=("secret",), max_running=1, timeout_s=30.0) as running:
        yield Traced(running, exporter)
    for span in exporter.get_finished_spans():
        said = str(span.to_json())
        assert not any(word in said for word in (SAID, "candles", "Write down", "secret")), (
            "spans have no text, no keys"
        )
        assert ended(span).begin <= ended(span).end


def test_a_completion(traced: Traced) -> None:
    """It goes on a trace of the client's; its stages follow each other within it."""
    data = base64.b64encode(SHOPPING.read_bytes()).decode()
    content: Any = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    content.append({"type": "text", "text": "Write down what is said."})
    answer = traced.client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": content}],
        seed=3,
        extra_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    server, children = traced.spans("POST /v1/chat/completions")
    assert (server.trace, server.parent) == (TRACE, PARENT)
    assert answer.usage
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "server.port": traced.running.port,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "demo",
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": answer.id,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
    }
    assert {name: server.told[name] for name in expected} == expected
    assert 0 < server.told["gen_ai.response.time_to_first_chunk"] < (server.end - server.begin) / 1e9
    assert {span.name for span in children} >= {"queue", "prompt", *STAGES}
    stages = sorted((span for span in children if span.name != "queue"), key=lambda span: span.begin)
    assert all(before.end <= after.begin + 1000 for before, after in pairwise(stages))
    assert server.begin <= stages[0].begin
    assert stages[-1].end <= server.end


@pytest.mark.parametrize("stream", [False, True])
def test_a_transcription(traced: Traced, stream: bool) -> None:
    answer: Any = traced.client.audio.transcriptions.create(file=SHOPPING, model="demo", stream=stream)
    if stream:
        list(answer)
    server, children = traced.spans("POST /v1/audio/transcriptions")
    assert (server.told["gen_ai.operation.name"], server.told["gen_ai.usage.output_tokens"]) == ("transcribe", 11)
    assert server.told["salmonrun.audio.duration"] == pytest.approx(soundfile.info(SHOPPING).duration)
    assert {span.name for span in children} >= {"queue", "audio", "whisper", "audio_encoder", "qformer", "decode"}


def test_who_waits_and_who_is_refused(traced: Traced, held: threading.Event) -> None:  # noqa: F811
    """A request that waited has a long span for it; an error of the client's is none of the server's."""
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(traced.client.audio.transcriptions.create, file=SHOPPING, model="demo")
        until(lambda: metric(traced.running, "num_requests_running") == 1)
        with pytest.raises(openai.APITimeoutError):
            traced.client.with_options(timeout=0.3).chat.completions.create(
                model="demo", messages=_messages(), extra_body={"task": "asr"}
            )
        server, (waited,) = traced.spans("POST /v1/chat/completions")
        assert (waited.name, server.told["error.type"]) == ("queue", "client_disconnected")
        assert waited.end - waited.begin > 0.1e9
        held.set()
        first.result()
    with pytest.raises(openai.NotFoundError):
        traced.client.models.retrieve("other")
    server, _ = traced.spans("GET /v1/models/{name:path}")
    assert server.told["http.response.status_code"] == 404
    assert not server.error


def _messages() -> Any:
    data = base64.b64encode(SHOPPING.read_bytes()).decode()
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}]


def test_a_live_stream(traced: Traced) -> None:
    pcm = pcm16(soundfile.read(SHOPPING)[0])
    headers = {"Authorization": "Bearer secret", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    with socket(traced.running, additional_headers=headers) as client:
        commit, clear = ({"type": f"input_audio_buffer.{what}"} for what in ("commit", "clear"))
        send(client, session(turn_detection=None), *appends(pcm), commit, *appends(pcm), clear)
        receive(client, 1, "input_audio_buffer.cleared")
    server, items = traced.spans("GET /v1/realtime")
    assert (server.trace, server.told["http.response.status_code"]) == (TRACE, 101)
    assert server.told["salmonrun.audio.duration"] == pytest.approx(2 * len(pcm) / 48_000, abs=0.01)
    heard, cleared = (span.told for span in items)
    assert heard["salmonrun.audio.duration"] == pytest.approx(len(pcm) / 48_000, abs=0.01)
    assert heard["gen_ai.response.time_to_first_chunk"] > 0
    assert "salmonrun.audio.duration" not in cleared


class Collector(BaseHTTPRequestHandler):
    """Takes what an OTLP exporter sends."""

    taken: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        self.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_otlp(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment alone, to a collector over HTTP; /health is no trace."""
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    provider: Any = tracer_provider(environment)
    with serving(demo_engine, spans=provider) as running:
        get(f"{running.url}/health")
        OpenAI(base_url=f"{running.url}/v1", api_key="none").audio.transcriptions.create(file=SHOPPING, model="demo")
    provider.shutdown()
    collector.shutdown()
    collector.server_close()
    (resource,) = [spans for request in Collector.taken for spans in request.resource_spans]
    resources = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (resources["service.name"], resources["deployment.environment.name"]) == ("salmonrun", "test")
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert "decode" in names
    assert [name for name in names if "/" in name] == ["POST /v1/audio/transcriptions"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=str,
)
def test_nobody_has_asked(environment: dict[str, str]) -> None:
    assert tracer_provider(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'; expected 'otlp' or 'none'"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; expected 'http/protobuf'",
        ),
    ],
    ids=str,
)
def test_what_is_not_known_here(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tracer_provider(environment)


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'salmonrun\[otel\]'"):
        tracer_provider({"OTEL_TRACES_EXPORTER": "otlp"})


def test_the_docs_name_every_span() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    assert all(f"`{name}`" in page for name in {"queue", "item", "prompt", "wait", *STAGES})
