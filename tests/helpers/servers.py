"""A real server on a port of loopback, in a thread of the test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

from salmonrun.runtime import Engine
from salmonrun.runtime.server.config import ServerConfig
from salmonrun.runtime.server.server import Server

START_S = 60  # on a busy machine


class Running:
    """A server that answers at `url`."""

    def __init__(self, server: Server, thread: threading.Thread, url: str) -> None:
        self.server = server
        self.thread = thread
        self.url = url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def serving(
    load: Engine | Callable[[], Engine], spans: Any = None, beside: Engine | None = None, **config: object
) -> Iterator[Running]:
    """Serve an engine until the context ends; streams are not measured, unless `max_streams` is None."""
    settings = ServerConfig(**{"port": 0, "max_streams": 8, "drain_s": 10.0, **config})  # type: ignore[arg-type]
    ready: Queue[str | BaseException] = Queue()
    make: Callable[[], Engine] = (lambda: load) if isinstance(load, Engine) else load
    server = Server(make, settings, ready.put, spans, (lambda: beside) if beside else None)

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        address = ready.get(timeout=START_S)
        if isinstance(address, BaseException):
            raise address
        yield Running(server, thread, address)
    finally:
        server.drain()
        thread.join(START_S)
    assert not thread.is_alive()
