"""Clients that mean no good, beside others, who get the same answers as without them."""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from salmonrun.runtime import Engine  # noqa: E402
from salmonrun.runtime.server import gate, patience  # noqa: E402
from salmonrun.runtime.server.realtime import socket as realtime_socket  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402
from tests.helpers.waiting import until  # noqa: E402
from tests.runtime.server.test_frames import CLOSE, CONTINUATION, HANDSHAKE, PING, TEXT, frame  # noqa: E402
from tests.runtime.server.test_realtime import appends, of, pcm16, receive, send, session  # noqa: E402
from tests.runtime.server.test_realtime import socket as live  # noqa: E402
from tests.runtime.server.test_server import SAID, SHOPPING, metric, transcribe  # noqa: E402

COMMIT = {"type": "input_audio_buffer.commit"}


def hostile(server: Running, kind: int) -> socket.socket:
    """A client that means no good."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    upload = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    live = (
        b"GET /v1/realtime HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    said: Sequence[bytes] = (
        b"",  # nothing
        os.urandom(1000),
        b"GET /health HTTP/1.1\r\nHost: ",  # half a head
        upload + b"Content-Length: 1000000\r\n\r\n--b\r\n",  # a body that never comes
        upload + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        upload + b"Content-Length: 99999999999\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        live + os.urandom(1000),  # frames that are none
        live,  # a stream that says nothing
        upload + b"Content-Length: 5\r\n\r\n--b--",
    )
    client.sendall(said[kind % len(said)])
    return client


def vandal(server: Running, kind: int) -> socket.socket:
    """One that opens a live stream first."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(HANDSHAKE)
    loud = frame(TEXT, json.dumps(next(appends(bytes(48_000), 48_000))).encode())
    said: Sequence[bytes] = (
        b"",  # stalls
        os.urandom(3000),
        loud[: len(loud) // 2],  # half an event
        loud * 5,  # audio, and nobody who reads
        frame(TEXT, b"{" * 50_000) * 5,
        frame(TEXT, loud, fin=False) + frame(CONTINUATION, b"x", fin=False) * 500,
        frame(PING, b"x") * 2000,
        frame(CLOSE) + loud,
        frame(TEXT, json.dumps(COMMIT).encode()) * 500,
        loud + frame(TEXT, b"\xff"),
    )
    with suppress(ConnectionError):  # it may be thrown out in the middle
        client.sendall(said[kind % len(said)])
    return client


def vanish(client: socket.socket) -> None:
    """Without a word: the connection is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def spoken(server: Running, pace_s: float) -> str:
    """A good stream, piece by piece."""
    with live(server) as client:
        send(client, session(turn_detection=None))
        for event in appends(pcm16(soundfile.read(SHOPPING)[0])):
            send(client, event)
            time.sleep(pace_s)
        send(client, COMMIT)
        transcript: str = of(receive(client, 1), ".completed")[0]["transcript"]
        return transcript


def nothing_is_left(server: Running) -> None:
    until(lambda: metric(server, "num_realtime_streams") == 0)
    until(lambda: metric(server, "num_requests_running") == metric(server, "num_requests_waiting") == 0)
    assert metric(server, "kv_cache_bytes") == 0


def test_fifty_clients_that_mean_no_good(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They connect, send garbage, stall and vanish, while a stream speaks and requests are answered."""
    monkeypatch.setattr(patience, "HEAD_S", 0.5)
    with (
        serving(demo_engine, max_running=2, max_streams=60, max_waiting=100) as running,
        ThreadPoolExecutor(3) as threads,
    ):
        stream = threads.submit(spoken, running, 0.03)
        requests = [threads.submit(transcribe, running) for _ in range(4)]
        clients = [hostile(running, kind) if kind % 2 else vandal(running, kind // 2) for kind in range(50)]
        silent = hostile(running, 0)
        assert silent.recv(1) == b""  # who says nothing is left alone after a while
        for number, client in enumerate(clients):
            vanish(client) if number % 2 else client.close()
        assert [request.result() for request in requests] == [SAID] * 4
        assert stream.result() == SAID
        nothing_is_left(running)
        assert transcribe(running) == SAID


def test_fifty_times_the_same_door(demo_engine: Engine) -> None:
    """Connections that come and go in a hurry leave no stream behind, whatever moment they chose."""
    with serving(demo_engine, max_streams=60) as running:
        for number in range(50):
            client = vandal(running, number)
            if number % 3:
                time.sleep(0.002 * (number % 7))
            vanish(client)
        assert spoken(running, 0.0) == SAID
        nothing_is_left(running)


def test_who_does_not_read_is_left_alone(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that nobody takes are not collected: the stream ends, its connection is cut, and nobody waited for it."""
    monkeypatch.setattr(realtime_socket, "SEND_S", 1.0)
    monkeypatch.setattr(patience, "TAKE_S", 1.0)
    unknown = json.dumps({"type": "x" * 60_000}).encode()  # which the error repeats
    with serving(demo_engine) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(HANDSHAKE)
        client.settimeout(60)
        stuck = threading.Thread(target=send_until_closed, args=(client, frame(TEXT, unknown)))
        stuck.start()
        assert spoken(running, 0.0) == SAID
        until(lambda: metric(running, "num_realtime_streams") == 0)
        stuck.join(30)
        assert not stuck.is_alive(), "the connection is closed, although there was more to be sent"


def send_until_closed(client: socket.socket, data: bytes) -> int:
    """Bytes that were sent."""
    sent = 0
    with suppress(OSError):
        while True:
            client.sendall(data)
            sent += len(data)
    return sent


@pytest.mark.parametrize(("key", "status"), [("wrong", 401), ("secret", 413)])
def test_a_refusal_reaches_who_sends_all_of_it_first(demo_engine: Engine, key: str, status: int) -> None:
    """Most clients read nothing before that, and a connection that is reset would take the answer with it."""
    body = bytes(8 * 2**20)
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n"
    with serving(demo_engine, api_keys=("secret",), max_body_mib=1) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
            for start in range(0, len(body), 2**20):
                time.sleep(0.02)  # the server has refused it by now
                client.sendall(body[start : start + 2**20])
            answer = b""
            while piece := client.recv(2**16):
                answer += piece
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b'"error"' in answer


def test_who_sends_for_ever_is_left(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never pauses: what has come at each moment must not keep its time from being over."""
    monkeypatch.setattr(gate, "LINGER_S", 0.5)
    size = 10**10
    with serving(demo_engine, max_body_mib=1) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            client.sendall(head.encode())
            sent = send_until_closed(client, bytes(2**16))
        assert sent < size


def test_a_body_that_does_not_say_how_large_it_is(demo_engine: Engine) -> None:
    """It is cut off where it is too large, and was not collected."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with serving(demo_engine, max_body_mib=1) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
            client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            piece = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
            client.sendall(piece * 17)
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")
        assert transcribe(running) == SAID
