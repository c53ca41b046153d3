"""A server from start to end: it listens at once, loads, answers, and drains when it is told to."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress

import uvicorn
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider

from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.server.app import make_app
from salmonrun.runtime.server.closing import ClosableProtocol
from salmonrun.runtime.server.config import ServerConfig
from salmonrun.runtime.server.page.mount import open_page
from salmonrun.runtime.server.patience import ImpatientProtocol
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.tracing import Tracing

CLOSE_S = 1  # for connections to close, after all was answered or the time is up
# Of an idle connection. OpenAI's clients keep theirs for 5 s, as uvicorn does unless it is told: the client must be the
# first to close, or a request that is on its way is reset.
KEEP_S = 75
LARGEST_FRAME = 4 * 2**20  # bytes of a message on a websocket: a minute of audio


class Server:
    """One bundle behind HTTP; `run` serves it.

    Args:
        load: makes the engine; it is called when the server listens already.
        config: where, for whom, how much.
        ready: called with the address once requests are answered.
        spans: where OpenTelemetry's spans go; None: there are none.
        load_beside: makes the engine of another bundle, which the page asks too.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        config: ServerConfig,
        ready: Callable[[str], object],
        spans: TracerProvider | None = None,
        load_beside: Callable[[], Engine] | None = None,
    ) -> None:
        self._tracing = Tracing(spans)
        self._load = load
        self._load_beside = load_beside
        self._config = config
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._uvicorn: uvicorn.Server | None = None

    def run(self) -> None:
        """Until it has drained.

        Raises:
            SalmonrunError: the address cannot be had, or the engine not be loaded.
        """
        asyncio.run(self._serve())

    def drain(self) -> None:
        """From any thread: refuse what comes, finish what is under way, end. A second time: end now."""
        if self._loop:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        assert self._service
        if self._service.draining.is_set() and self._uvicorn:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._service.draining.set()

    async def _serve(self) -> None:
        self._loop, self._service = asyncio.get_running_loop(), Service(self._config, self._tracing)
        listening = _listen(self._config)
        address = "http://{}:{}".format(*listening.getsockname()[:2])
        app = make_app(self._service)
        self._uvicorn = _Uvicorn(_uvicorn_config(app))
        serving = asyncio.create_task(self._uvicorn.serve([listening]))
        try:
            with _signals(self._drain):
                await self._load_and_drain(app, self._service, address)
        finally:
            self._uvicorn.should_exit = True
            await serving
            self._service.close()

    async def _load_and_drain(self, app: FastAPI, service: Service, address: str) -> None:
        draining = asyncio.create_task(service.draining.wait())
        loading = asyncio.create_task(service.load(self._load, self._load_beside))
        await asyncio.wait({draining, loading}, return_when=asyncio.FIRST_COMPLETED)
        async with AsyncExitStack() as page:
            if not draining.done():
                await loading  # raises, if it failed
                if self._config.page:
                    await page.enter_async_context(open_page(app, service))
                LOGGER.info("serving %s at %s", service.model_names[0], address)
                self._ready(address)
            await draining
            await self._finish(service)

    async def _finish(self, service: Service) -> None:
        """What is under way, as long as there is time."""
        LOGGER.info("draining: %d requests and streams are under way", service.active)
        deadline = asyncio.get_running_loop().time() + self._config.drain_s
        while service.active and asyncio.get_running_loop().time() < deadline and not self._forced:
            await asyncio.sleep(0.05)

    @property
    def _forced(self) -> bool:
        return self._uvicorn is not None and self._uvicorn.force_exit


class _Uvicorn(uvicorn.Server):
    """It leaves signals to us: there is work to be finished first."""

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()


def _uvicorn_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws=ClosableProtocol,
        ws_max_size=LARGEST_FRAME,
        ws_ping_timeout=120,  # a stream that waits for room does not read pongs
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CLOSE_S,
        timeout_keep_alive=KEEP_S,
    )


def _listen(config: ServerConfig) -> socket.socket:
    try:
        return socket.create_server((config.host, config.port), family=_family(config.host), backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"host {config.host!r}, port {config.port} cannot be listened on: {error.strerror or error}; "
            "choose another, or port 0 for any that is free"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def _signals(handle: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C drain; only the main thread is told of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.getsignal(number)
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
