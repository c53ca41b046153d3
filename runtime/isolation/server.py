"""`python -m salmonrun.runtime.isolation.server SOCKET`: forks a process for each recording, in milliseconds.

It has imported what decoding needs and has one thread, so a fork is cheap and safe. It never looks at a recording
itself; it waits for the processes that do, and says what has ended one. All end with the engine.
"""

import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.isolation.wire import ORDER, REQUEST, Kind, receive_exactly, send
from salmonrun.runtime.sound_file import SoundFile


def main() -> None:
    """Until the engine's process lets go of its end."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine, which may want to read to the end
    quiet = os.open(os.devnull, os.O_RDWR)  # libsndfile and its decoders print
    for standard in range(3):
        os.dup2(quiet, standard)
    gc.freeze()  # a collection in a fork would copy every page
    with selectors.DefaultSelector() as waiting:
        waiting.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.data:
                    waiting.unregister(key.fd)
                    _ended(key.fd, *key.data)
                elif not _take(orders, waiting):
                    return


def _take(orders: socket.socket, waiting: selectors.BaseSelector) -> bool:
    """Have one more recording decoded; False if there will be none any more."""
    order, descriptors, _, _ = socket.recv_fds(orders, ORDER.size, 2)
    if not order:
        return False
    (cpu_s, memory), (answers, recording) = ORDER.unpack(order), descriptors
    engine = socket.socket(fileno=answers)
    pid = os.fork()
    if pid == 0:
        _close_all_but(engine.fileno(), recording)  # other recordings are none of its business
        _decode(engine, recording, cpu_s, memory)
    os.close(recording)
    waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, engine, cpu_s))
    return True


def _ended(descriptor: int, pid: int, engine: socket.socket, cpu_s: float) -> None:
    """Say what has ended a process, if it did not end by itself."""
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    with engine, suppress(OSError):  # the engine need not listen any more, and it is not waited for
        engine.setblocking(False)
        if status:
            send(engine, Kind.KILLED, _cause(os.waitstatus_to_exitcode(status), cpu_s).encode())


def _cause(code: int, cpu_s: float) -> str:
    if code == -signal.SIGPROF:
        return f"no samples after {cpu_s:g} s of computing"
    return f"the decoder crashed with {signal.Signals(-code).name}" if code < 0 else f"the decoder ended with {code}"


def _decode(engine: socket.socket, recording: int, cpu_s: float, memory: int) -> NoReturn:
    """Answer until nobody asks."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory,) * 2)
        with suppress(EOFError, OSError):  # the engine has gone on
            _answer(engine, recording, cpu_s)
        code = 0
    finally:
        os._exit(code)


def _close_all_but(*kept: int) -> None:
    """Descriptors behind the standard ones."""
    first = 3
    for descriptor in (*sorted(kept), 2**20):
        os.closerange(first, descriptor)
        first = descriptor + 1


def _answer(engine: socket.socket, recording: int, cpu_s: float) -> None:
    try:
        # The timer ends the process, whatever libsndfile is at. It counts CPU time: a busy machine is nobody's fault.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        file = SoundFile(recording)
        signal.setitimer(signal.ITIMER_PROF, 0)
        header = {"rate": file.rate, "channels": file.channels, "frames": file.frames, "log": file.log}
        send(engine, Kind.HEADER, json.dumps(header).encode())
        while True:
            (frames,) = REQUEST.unpack(receive_exactly(engine, REQUEST.size))
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            block = file.read(frames)
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(engine, Kind.SAMPLES, block.data)
    except AudioError as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(engine, Kind.REFUSED, str(error).encode())


def _address_space() -> int:
    """Bytes that this process has mapped."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
