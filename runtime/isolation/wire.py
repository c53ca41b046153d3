"""What the engine's process and a decoding one say to each other, over a socket for each recording.

The engine's asks for so many frames, 8 bytes; every answer is a kind, a length, and that many bytes. Nothing in it is
code: what a taken decoder could say is a header, samples or a text.
"""

import socket
import struct
from enum import Enum

ORDER = struct.Struct("<dq")  # CPU seconds for one answer, bytes of memory; beside it a socket and the recording
REQUEST = struct.Struct("<q")
_HEAD = struct.Struct("<cq")


class Kind(Enum):
    """Of an answer."""

    HEADER = b"H"  # JSON of rate, channels, frames, log
    SAMPLES = b"S"  # float64 [N, C]
    REFUSED = b"R"  # a reason
    KILLED = b"K"  # what has ended the process


def send(to: socket.socket, kind: Kind, content: bytes | memoryview) -> None:
    """One answer."""
    to.sendall(_HEAD.pack(kind.value, memoryview(content).nbytes))
    to.sendall(content)


def receive(of: socket.socket, largest: int) -> tuple[Kind, bytearray]:
    """The next answer, of at most `largest` bytes.

    Raises:
        EOFError: there is none.
        ValueError: it is not one.
    """
    letter, length = _HEAD.unpack(receive_exactly(of, _HEAD.size))
    if not 0 <= length <= largest:
        raise ValueError(f"an answer of {length} bytes; expected at most {largest}")
    return Kind(letter), receive_exactly(of, length)


def receive_exactly(of: socket.socket, length: int) -> bytearray:
    """So many bytes.

    Raises:
        EOFError: it ends before.
    """
    content = bytearray(length)
    view = memoryview(content)
    while view:
        try:
            count = of.recv_into(view)
        except ConnectionError as error:
            raise EOFError(str(error)) from error
        if not count:
            raise EOFError("the other side has gone")
        view = view[count:]
    return content
