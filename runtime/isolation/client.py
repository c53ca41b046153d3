"""The engine's side of decoding elsewhere: `IsolatedFile` is read as a file that is decoded here."""

import atexit
import contextlib
import functools
import json
import os
import socket
import subprocess
import threading

import numpy as np

from salmonrun import child
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.exhausted import resources
from salmonrun.runtime.isolation.wire import ORDER, REQUEST, Kind, receive
from salmonrun.runtime.sound_file import F64

_LARGEST_TEXT = 1 << 20  # bytes of a header or a reason
_MEMORY = 1 << 29  # bytes that a decoder may take beside one block of samples
# An answer that computing does not hold up, on a machine that is as busy as can be: beyond that the process is stopped,
# or waits for what never comes.
_PATIENCE = 30.0  # seconds, and so many times what it may compute for
_BUSY = 10


class IsolatedFile:
    """An open file that is decoded in a process of its own; see `OpenSound`.

    Args:
        source: a path, or the bytes of a file.
        cpu_s: seconds of computing after which the header, or a block, is not waited for any more.
        largest_block: bytes of samples that are asked for at once.

    Raises:
        AudioError: libsndfile does not take it, or has crashed or hung on it; the message is the reason alone.
    """

    def __init__(self, source: str | bytes, cpu_s: float, largest_block: int) -> None:
        self._largest_block = largest_block
        self._answers = decoding_server().decode(source, cpu_s, _MEMORY + largest_block)
        self._answers.settimeout(_PATIENCE + _BUSY * cpu_s)
        try:
            header = json.loads(self._receive(Kind.HEADER, _LARGEST_TEXT))
        except BaseException:
            self.close()
            raise
        self.rate, self.channels, self.frames = (int(header[name]) for name in ("rate", "channels", "frames"))
        self.log = str(header["log"])

    def read(self, frames: int) -> F64:
        """See `OpenSound.read`."""
        with contextlib.suppress(OSError):  # it has ended, and said why
            self._answers.sendall(REQUEST.pack(frames))
        samples = np.frombuffer(self._receive(Kind.SAMPLES, self._largest_block), np.float64)
        return samples.reshape(-1, self.channels)

    def close(self) -> None:
        """Its process ends by itself."""
        self._answers.close()

    def _receive(self, expected: Kind, largest: int) -> bytearray:
        try:
            kind, content = receive(self._answers, max(largest, _LARGEST_TEXT))
        except TimeoutError as error:
            raise AudioError(f"the decoder has not answered for {self._answers.gettimeout():g} s") from error
        except (EOFError, ValueError) as error:
            raise AudioError(f"the decoder has ended: {error}") from error
        if kind is not expected:
            raise AudioError(content.decode(errors="replace"))
        return content


class DecodingServer:
    """The process that forks decoders. It ends with this one, however this one ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        atexit.register(self.close)

    def decode(self, source: str | bytes, cpu_s: float, memory: int) -> socket.socket:
        """Have a recording decoded: where the answers will come from.

        Raises:
            AudioError: the file cannot be opened.
            ResourceError: there are no files left for it.
        """
        with resources("no process can decode a recording"):
            return self._decode(source, cpu_s, memory)

    def _decode(self, source: str | bytes, cpu_s: float, memory: int) -> socket.socket:
        try:
            recording = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, str) else _in_memory(source)
        except OSError as error:
            raise AudioError(str(error.strerror or error)) from error
        try:
            ours, theirs = socket.socketpair()
            with theirs, self._lock:
                socket.send_fds(self._running(), [ORDER.pack(cpu_s, memory)], [theirs.fileno(), recording])
        finally:
            os.close(recording)
        return ours

    def close(self) -> None:
        """Let it end."""
        with self._lock:
            if self._orders and self._process:
                self._orders.close()
                self._process.wait()
            self._orders = self._process = None

    def _running(self) -> socket.socket:
        """Where it takes orders; it is started again if something has ended it."""
        if self._orders and self._process and self._process.poll() is None:
            return self._orders
        if self._orders:
            self._orders.close()
        # One message is one order, whoever else sends.
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                child.command("salmonrun.runtime.isolation.server", str(number)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
                env=child.environment(),
            )
        return self._orders


@functools.cache
def decoding_server() -> DecodingServer:
    """The one of this process."""
    return DecodingServer()


def _in_memory(content: bytes) -> int:
    """A descriptor of a file that is on no disk."""
    descriptor = os.memfd_create("recording", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
