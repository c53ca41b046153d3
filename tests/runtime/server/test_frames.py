"""Frames of RFC 6455 by hand, against a server that runs: each wrong one ends its socket and no more.

The groups are those of Autobahn's suite: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, limits.
"""

import json
import logging
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("openai", reason="OpenAI's client is not installed")

from salmonrun.runtime.server.log import client_faults
from salmonrun.runtime.server.server import LARGEST_FRAME
from tests.helpers.servers import Running
from tests.helpers.waiting import until
from tests.runtime.server.test_server import SAID, metric, transcribe

HANDSHAKE = (
    b"GET /v1/realtime?intent=transcription HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
UNKNOWN = json.dumps({"type": "unknown"}).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A frame of a client."""
    size, key = len(payload), b"\1\2\3\4"
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if size < 126:
        head += bytes([mask << 7 | size])
    elif size < 2**16:
        head += bytes([mask << 7 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([mask << 7 | 127]) + struct.pack(">Q", size)
    if not mask:
        return head + payload
    keys = (key * (size // 4 + 1))[:size]
    return head + key + (int.from_bytes(payload) ^ int.from_bytes(keys)).to_bytes(size)


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason)


class Raw:
    """A client that sends what it likes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._file = connection.makefile("rb")
        while self._file.readline() != b"\r\n":
            pass

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and payload, until the server has closed."""
        while head := self._file.read(2):
            size = head[1] & 127
            assert head[0] & 0xF0 == 0x80, "the server's frames are whole"
            assert not head[1] & 128, "and not masked"
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8))
            yield head[0] & 15, self._file.read(size)

    def first(self, opcode: int) -> bytes:
        return next(payload for kind, payload in self.frames() if kind == opcode)

    def event(self, kind: str) -> Any:
        told = (json.loads(payload) for opcode, payload in self.frames() if opcode == TEXT)
        return next(event for event in told if event["type"] == kind)

    def close_code(self) -> int | None:
        """What the server closes with, after which nothing comes."""
        told = list(self.frames())
        code, reason = told[-1]
        assert code == CLOSE
        return int.from_bytes(reason[:2]) if reason else None


@contextmanager
def raw(server: Running) -> Iterator[Raw]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(HANDSHAKE)
        yield Raw(connection)


@pytest.fixture(autouse=True)
def nothing_is_left(server: Running, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Of sockets and memory; and nothing is told in the log that would be an error of the server's."""
    with caplog.at_level(logging.INFO):
        yield
        until(lambda: metric(server, "num_realtime_streams") == 0)
        assert metric(server, "kv_cache_bytes") == 0
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR and client_faults(record)]
    assert not errors


WRONG: dict[str, tuple[bytes, int]] = {
    **{f"reserved bits {bits}": (frame(TEXT, UNKNOWN, rsv=bits), 1002) for bits in range(1, 8)},
    **{f"opcode {code}": (frame(code, b"x"), 1002) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "not masked": (frame(TEXT, UNKNOWN, mask=False), 1002),
    "a ping of 126 bytes": (frame(PING, bytes(126)), 1002),
    "a ping in pieces": (frame(PING, b"x", fin=False), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a text in a text": (frame(TEXT, b"{", fin=False) + frame(TEXT, UNKNOWN), 1002),
    "no UTF-8": (frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80"), 1007),
    "no UTF-8, in pieces": (frame(TEXT, b"\xf4", fin=False) + frame(CONTINUATION, b"\x90\x80\x80"), 1007),
    "half a character": (frame(TEXT, b"\xe2\x82"), 1007),
    "too large": (b"\x81\xff" + struct.pack(">Q", LARGEST_FRAME + 1) + b"\1\2\3\4", 1009),
    "far too large": (b"\x81\xff" + struct.pack(">Q", 2**62) + b"\1\2\3\4", 1009),
    "too large, in pieces": (
        frame(TEXT, bytes(LARGEST_FRAME - 1), fin=False) + frame(CONTINUATION, bytes(2))[:6],
        1009,
    ),
    **{f"closed with {code}": (closing(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1100, 2999, 5000)},
    "closed with one byte": (frame(CLOSE, b"\3"), 1002),
    "closed with 126 bytes": (closing(1000, bytes(124)), 1002),
    "closed with no UTF-8": (closing(1000, b"\xff"), 1007),
}
RIGHT: dict[str, tuple[bytes, int | None]] = {
    "closed": (frame(CLOSE), None),
    **{f"closed with {code}": (closing(code), code) for code in (1000, 1001, 1003, 1011, 3000, 4999)},
    "closed with a reason": (closing(1000, "ade \u2014 bye".encode()), 1000),
    "closed with more behind it": (closing(1000) + frame(TEXT, UNKNOWN), 1000),
    "closed in a message": (frame(TEXT, b"{", fin=False) + closing(1000) + frame(CONTINUATION, b"}"), 1000),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_ends_the_socket(server: Running, case: str) -> None:
    sent, code = WRONG[case]
    with raw(server) as client:
        client.connection.sendall(sent)
        assert client.close_code() == code


@pytest.mark.parametrize("case", RIGHT)
def test_a_close_is_answered(server: Running, case: str) -> None:
    sent, code = RIGHT[case]
    with raw(server) as client:
        client.connection.sendall(sent)
        assert client.close_code() == code


def test_pings_are_answered_between_pieces(server: Running) -> None:
    """An event in pieces of a byte, with pings and pongs between them, is one event."""
    with raw(server) as client:
        client.connection.sendall(frame(PONG, b"unasked") + frame(TEXT, b"", fin=False))
        for at, byte in enumerate(UNKNOWN):
            client.connection.sendall(frame(PING, bytes([at])) + frame(CONTINUATION, bytes([byte]), fin=False))
        client.connection.sendall(frame(CONTINUATION) + frame(PING, bytes(125)))
        told = client.frames()
        seen: list[tuple[int, bytes]] = []
        while [kind for kind, _ in seen].count(PONG) < len(UNKNOWN) + 1 or len(seen) < len(UNKNOWN) + 3:
            seen.append(next(told))
    assert [payload for kind, payload in seen if kind == PONG] == [bytes([at]) for at in range(len(UNKNOWN))] + [
        bytes(125)
    ]
    events = [json.loads(payload) for kind, payload in seen if kind == TEXT]
    assert [event["type"] for event in events] == ["session.created", "error"]
    assert events[1]["error"]["code"] == "unknown_event"


def test_bytes_and_text_that_are_no_events(server: Running) -> None:
    with raw(server) as client:
        for opcode, payload in ((BINARY, bytes(1000)), (TEXT, b""), (BINARY, UNKNOWN), (TEXT, bytes(70_000))):
            client.connection.sendall(frame(opcode, payload))
            assert client.event("error")["error"]["code"] == "unknown_event"


def test_rubbish(server: Running) -> None:
    """Whatever bytes come, in pieces that end anywhere: other clients are answered as ever."""
    dice = random.Random(0)
    for _ in range(60):
        with raw(server) as client:
            good = [frame(TEXT, UNKNOWN), frame(PING, b"x"), frame(BINARY, dice.randbytes(dice.randrange(300)))]
            data = bytearray(b"".join(dice.choices(good, k=4)))
            for _ in range(dice.randrange(4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            cut = dice.randrange(len(data))
            client.connection.sendall(data[:cut])
            client.connection.sendall(data[cut:] if dice.random() < 0.7 else b"")
    assert transcribe(server) == SAID
