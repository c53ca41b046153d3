"""A server from its first to its last moment: loading, full, left alone, told to end."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from fastapi import FastAPI  # noqa: E402
from openai import OpenAI  # noqa: E402
from openai.types import Model  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from salmonrun.runtime import Engine  # noqa: E402
from salmonrun.runtime.decoder import Chunk  # noqa: E402
from salmonrun.runtime.errors import BundleError, ConfigError  # noqa: E402
from salmonrun.runtime.server import server as server_module  # noqa: E402
from tests.helpers.openai_shapes import whole  # noqa: E402
from tests.helpers.processes import children, command_of  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402
from tests.helpers.streams import before_steps  # noqa: E402
from tests.helpers.waiting import until  # noqa: E402
from tests.runtime.server.test_realtime import appends, of, pcm16, receive, send, session  # noqa: E402

ROOT = Path(__file__).parents[3]
SHOPPING = ROOT / "demo" / "recordings" / "shopping.flac"
SAID = "add paper and candles to the list"


def get(url: str, **headers: str) -> tuple[int, str, Any]:
    """Status, body, headers."""
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except HTTPError as error:
        return error.code, error.read().decode(), error.headers


def metric(server: Running, name: str) -> float:
    lines = get(f"{server.url}/metrics")[1].splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"salmonrun_{name}")), 0))


def transcribe(server: Running, **options: Any) -> str:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    return client.audio.transcriptions.create(file=SHOPPING, model="demo", **options).text


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, demo_engine: Engine) -> Iterator[threading.Event]:
    """The decoder takes no step before this is set."""
    go = threading.Event()

    def wait() -> None:
        go.wait(60)

    before_steps(monkeypatch, demo_engine, wait)
    yield go
    go.set()


def test_while_it_loads(demo_engine: Engine) -> None:
    """It says so, and answers nothing else; then it does."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen: list[tuple[int, str, Any]] = []

    def load() -> Engine:
        seen.extend(get(f"http://127.0.0.1:{port}/{path}") for path in ("health", "v1/models", "v1/nothing"))
        return demo_engine

    with serving(load, port=port) as running:
        assert get(f"{running.url}/health")[:2] == (200, '{"status":"ready"}')
        assert get(f"{running.url}/v1/models")[0] == 200
    assert [answer[0] for answer in seen] == [503, 503, 404]
    assert seen[0][1] == '{"status":"loading"}'
    assert json.loads(seen[1][1])["error"]["code"] == "loading"
    assert int(seen[1][2]["Retry-After"]) > 0


def test_a_bundle_that_cannot_be_loaded_ends_it() -> None:
    def load() -> Engine:
        raise BundleError("no bundle")

    with pytest.raises(BundleError, match="no bundle"), serving(load):
        pass


def test_a_port_that_is_taken(server: Running, demo_engine: Engine) -> None:
    taken = pytest.raises(ConfigError, match=f"port {server.port} cannot be listened on: Address already in use")
    with taken, serving(demo_engine, port=server.port):
        pass


def test_models(client: OpenAI, demo_engine: Engine) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert whole(Model, client.models.retrieve("demo")).owned_by == "salmonrun"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.models.retrieve("other")
    with serving(demo_engine, model_names=("mine", "whisper-1")) as running:
        own = OpenAI(base_url=f"{running.url}/v1", api_key="none")
        assert [model.id for model in own.models.list()] == ["mine", "whisper-1"]
        assert own.audio.transcriptions.create(file=SHOPPING, model="whisper-1").text == SAID


def test_idle_connections_are_closed_by_clients(client: OpenAI) -> None:
    """Closed by the server first, one may just have been chosen for the next request, which is reset then."""
    kept_s = client._client._transport._pool._keepalive_expiry  # type: ignore[attr-defined]
    assert server_module._uvicorn_config(FastAPI()).timeout_keep_alive > 10 * kept_s


def test_keys_are_for_v1(demo_engine: Engine) -> None:
    with serving(demo_engine, api_keys=("secret", "other")) as running:
        for key in ("", "no", "secre"):
            status, body, _ = get(f"{running.url}/v1/models", Authorization=f"Bearer {key}")
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
        assert get(f"{running.url}/v1/models", Authorization="Bearer other")[0] == 200
        assert {get(f"{running.url}/{path}")[0] for path in ("health", "metrics")} == {200}


def test_other_origins_only_where_it_is_said(server: Running, demo_engine: Engine) -> None:
    def allowed(running: Running) -> str | None:
        header: str | None = get(f"{running.url}/v1/models", Origin="https://a.example")[2][
            "Access-Control-Allow-Origin"
        ]
        return header

    assert allowed(server) is None
    with serving(demo_engine, cors_origins=("https://a.example",)) as running:
        assert allowed(running) == "https://a.example"


def test_metrics(server: Running) -> None:
    """The names that dashboards of language models ask for, and what was just done."""
    before = metric(server, "generation_tokens_total")
    assert transcribe(server) == SAID
    text = get(f"{server.url}/metrics")[1]
    for name in (
        *("time_to_first_token_seconds", "time_per_output_token_seconds", "e2e_request_latency_seconds"),
        *("request_queue_time_seconds", "num_requests_running", "num_requests_waiting", "real_time_factor"),
        *("num_realtime_streams", "realtime_lag_seconds", "kv_cache_bytes", "audio_seconds_total"),
    ):
        assert f"# TYPE salmonrun_{name.removesuffix('_total')}" in text or f"# TYPE salmonrun_{name}" in text, name
    assert metric(server, "generation_tokens_total") == before + 11
    assert 'salmonrun_requests_total{endpoint="/v1/audio/transcriptions",status="200"}' in text


def test_metrics_are_cheap(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is read for them: the system's list of what is mapped takes it tens of milliseconds."""

    def refuse(path: Path, *_: object, **__: object) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    status, text, _ = get(f"{server.url}/metrics")
    assert status == 200
    assert "salmonrun_kv_cache_bytes 0.0" in text


def test_a_full_queue(demo_engine: Engine, held: threading.Event) -> None:
    with serving(demo_engine, max_running=1, max_waiting=1) as running, ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(transcribe, running)]
        until(lambda: metric(running, "num_requests_running") == 1)
        answers.append(threads.submit(transcribe, running))
        until(lambda: metric(running, "num_requests_waiting") == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are being answered and 1 wait") as refused:
            transcribe(running)
        assert int(refused.value.response.headers["Retry-After"]) > 0
        held.set()
        assert [answer.result() for answer in answers] == [SAID] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_stops_within_one_token(
    demo_engine: Engine, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    steps: list[int] = []
    go = threading.Event()

    def wait() -> None:
        steps.append(1)
        if len(steps) == 3:
            go.wait(60)

    before_steps(monkeypatch, demo_engine, wait)
    with serving(demo_engine) as running:
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + SHOPPING.read_bytes()
            + f'\r\n--b\r\nContent-Disposition: form-data; name="stream"\r\n\r\n{stream}\r\n--b--\r\n'.encode()
        )
        head = (
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        client = socket.create_connection(("127.0.0.1", running.port))
        client.sendall(head.encode() + body)
        until(lambda: len(steps) == 3)
        client.close()
        gone = 'requests_total{endpoint="/v1/audio/transcriptions",status="499"}'
        until(lambda: metric(running, gone) == 1)
        go.set()
        until(lambda: metric(running, "num_requests_running") == 0)
    assert len(steps) == 3


def test_who_goes_away_while_waiting_leaves_the_queue(demo_engine: Engine, held: threading.Event) -> None:
    with serving(demo_engine, max_running=1) as running, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(transcribe, running)
        until(lambda: metric(running, "num_requests_running") == 1)
        with pytest.raises(openai.APITimeoutError):
            transcribe(running, timeout=0.2)
        until(lambda: metric(running, "num_requests_waiting") == 0)
        held.set()
        assert answer.result() == SAID


def test_a_request_that_takes_too_long(demo_engine: Engine, held: threading.Event) -> None:
    with serving(demo_engine, timeout_s=0.3) as running:
        with pytest.raises(openai.InternalServerError, match=r"took longer than 0\.3 s") as late:
            transcribe(running)
        assert late.value.status_code == 504
        held.set()
        until(lambda: metric(running, "num_requests_running") == 0)


def test_it_drains(demo_engine: Engine, held: threading.Event) -> None:
    """What is under way is answered; what comes is refused; then the server ends."""
    with serving(demo_engine, drain_s=60.0) as running, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(transcribe, running)
        until(lambda: metric(running, "num_requests_running") == 1)
        running.server.drain()
        until(lambda: get(f"{running.url}/health")[1] == '{"status":"draining"}')
        with pytest.raises(openai.InternalServerError, match="the server is draining: ask again later") as refused:
            transcribe(running)
        assert refused.value.status_code == 503
        held.set()
        assert answer.result() == SAID
        running.thread.join(60)
        assert not running.thread.is_alive()


def test_an_end_that_does_not_wait_for_ever(demo_engine: Engine, held: threading.Event) -> None:
    with serving(demo_engine, drain_s=0.0) as running, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(transcribe, running)
        until(lambda: metric(running, "num_requests_running") == 1)
        running.server.drain()
        with pytest.raises(openai.APIError):
            answer.result()
        held.set()


def test_sigterm_loses_nothing_that_was_said(demo_bundle: Path, tmp_path: Path) -> None:
    """A process of its own: the stream's text is told, the status is 0, the log has lines of JSON and no text."""
    import soundfile

    log = tmp_path / "log"
    command = [sys.executable, "-m", "salmonrun", "serve", str(demo_bundle), "--port", "0", "--max-streams", "1"]
    environment = {**os.environ, "SALMONRUN_API_KEYS": "secret"}
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT, env=environment)
    assert process.stdout
    url = process.stdout.readline().strip().removeprefix("ready: http")
    key = {"Authorization": "Bearer secret"}
    with pytest.raises(openai.BadRequestError, match="is not audio that libsndfile can read"):
        OpenAI(base_url=f"http{url}", api_key="secret").audio.transcriptions.create(file=b"RIFF", model="demo")
    assert any("isolation.server" in command_of(child) for child in children(process.pid))  # it was not read here
    with connect(f"ws{url}/realtime", additional_headers=key) as client:
        sentence = soundfile.read(SHOPPING)[0]
        send(client, session(turn_detection=None), *appends(pcm16(sentence)), {"type": "unknown"})
        receive(client, 1, "error")  # all in front of it has been read
        process.send_signal(signal.SIGTERM)
        events = receive(client, 1)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=60)
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1001
    assert of(events, ".completed")[0]["transcript"] == SAID
    assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (stream,) = [line for line in lines if line["message"] == "stream"]
    assert stream["audio_s"] == pytest.approx(len(sentence) / 16_000, abs=0.01)
    assert SAID not in log.read_text()
    assert "secret" not in log.read_text()


def test_the_log_has_no_text(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "salmonrun"):
        assert transcribe(server, prompt="Write down what is said.") == SAID
        until(lambda: any(record.name == "salmonrun.requests" for record in caplog.records))
    fields = next(vars(record)["fields"] for record in caplog.records if record.name == "salmonrun.requests")
    assert (fields["endpoint"], fields["status"], fields["tokens"]) == ("/v1/audio/transcriptions", 200, 11)
    assert not any(SAID in str(vars(record)) or "Write down" in str(vars(record)) for record in caplog.records)


def test_a_reader_that_does_not_read_holds_nothing(demo_engine: Engine) -> None:
    with serving(demo_engine, max_running=1) as running:
        slow = OpenAI(base_url=f"{running.url}/v1", api_key="none")
        stream = slow.audio.transcriptions.create(file=SHOPPING, model="demo", stream=True)
        assert transcribe(running) == SAID  # it has the only turn, while that answer was not read
        assert list(stream)[-1].type == "transcript.text.done"


def test_chunks(monkeypatch: pytest.MonkeyPatch, demo_engine: Engine) -> None:
    """`before_steps` above counts what it should: a token for each step."""
    steps: list[Sequence[Chunk[Any]]] = []
    before_steps(monkeypatch, demo_engine, lambda: steps.append(()))
    result = demo_engine.generate(SHOPPING)
    assert len(steps) == len(result.token_ids) - 1
