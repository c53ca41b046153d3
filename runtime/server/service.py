"""What all connections of a server share: the engine, who may use it and when, the metrics."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

from fastapi import Request

from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import BundleIntegrityError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.model import Model
from salmonrun.runtime.server.admission import StreamAdmission, capacity
from salmonrun.runtime.server.api_error import ApiError, unknown_model
from salmonrun.runtime.server.config import ServerConfig
from salmonrun.runtime.server.job import Job, Work, left
from salmonrun.runtime.server.metrics import Metrics
from salmonrun.runtime.server.realtime_factor import real_time_factor
from salmonrun.runtime.server.request_queue import RequestQueue
from salmonrun.runtime.server.tracing import Tracing
from salmonrun.runtime.terms import NORMAL

T = TypeVar("T")
State = Literal["loading", "ready", "draining", "changed"]
SHORT = 0.5  # of --max-cache-mib, from which on memory is short


class Service:
    """Made before the engine is loaded, in the event loop that it serves."""

    def __init__(self, config: ServerConfig, tracing: Tracing) -> None:
        self.config = config
        self.tracing = tracing
        self.created = int(time.time())
        self.metrics = Metrics()
        self.streams = StreamAdmission(0)
        self.queue = RequestQueue(config.max_running, config.max_waiting, self._before_turn)
        self.draining = asyncio.Event()  # set: end what is under way, begin nothing
        self.active = 0  # requests and streams under way
        self.model_names = config.model_names
        self._engine: Engine | None = None
        self.beside: Engine | None = None  # another bundle, that the page asks too
        self.let_go: Callable[[], object] = lambda: None  # of memory that the page keeps for later
        # Requests and streams are counted before they come here: whoever has a turn has a thread.
        self._threads = ThreadPoolExecutor(max_workers=2**16, thread_name_prefix="salmonrun")
        self._watch()

    @property
    def state(self) -> State:
        """Whether it can answer."""
        if self.draining.is_set():
            return "draining"
        if self._changed():
            return "changed"
        return "ready" if self._engine else "loading"

    @property
    def engine(self) -> Engine:
        """What answers.

        Raises:
            ApiError: 503, it is not loaded yet, or about to go away, or its files are not what was loaded.
        """
        self._refuse_changed()
        if self._engine is None or self.draining.is_set():
            raise ApiError(503, self.state, f"the server is {self.state}: ask again later", retry_after_s=5)
        return self._engine

    async def load(self, load: Callable[[], Engine], load_beside: Callable[[], Engine] | None = None) -> None:
        """Load the engine, and measure how many streams it can hear at once."""
        engine = await self.in_thread(load)
        self.beside = await self.in_thread(load_beside) if load_beside else None
        self.model_names = self.model_names or (engine.bundle.manifest.provenance.model,)
        most = self.config.max_streams
        if most is None:
            factor = await self.in_thread(lambda: real_time_factor(engine))
            most = capacity(factor)
            LOGGER.info("a live stream takes %.3f of real time: at most %d at once", factor, most)
        self.streams = StreamAdmission(most)
        engine.model.rounds.watchers.append(self.metrics.round)
        self._engine = engine

    def check_model(self, name: str | None) -> None:
        """Whether a model that a client names is served.

        Raises:
            ApiError: 404, it is not.
        """
        if name and name not in self.model_names:
            raise unknown_model(name, self.model_names)

    def job(self, request: Request, work: Work[T], priority: int) -> Job[T]:
        """Have the engine work for a request, when it is its turn."""
        return Job(self.queue, self._threads, self.tracing, lambda: left(request), work, priority)

    def job_until(self, gone: Callable[[], Awaitable[object]], work: Work[T]) -> Job[T]:
        """The same for who is no request; `gone` comes back when nobody waits for it any more."""
        return Job(self.queue, self._threads, self.tracing, gone, work, NORMAL)

    def make_room(self) -> None:
        """Where memory for keys and values is short, do without what nobody needs now."""
        if self._engine and _cache_usage(self._engine.model) > SHORT:
            self.let_go()

    async def in_thread(self, call: Callable[[], T]) -> T:
        """The result of a call that takes its time; the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()
        if self._engine:
            self._engine.model.rounds.watchers.remove(self.metrics.round)

    async def _before_turn(self) -> None:
        self._refuse_changed()
        await self.streams.unhurried()
        self.make_room()

    def _refuse_changed(self) -> None:
        if changed := self._changed():
            raise ApiError(503, "bundle_changed", changed)

    def _changed(self) -> str:
        """What has become of a file that an engine maps; empty: nothing. A few system calls for each file."""
        try:
            for engine in filter(None, (self._engine, self.beside)):
                engine.check_files()
        except BundleIntegrityError as error:
            return str(error)
        return ""

    def _watch(self) -> None:
        watch = self.metrics.watch
        watch("num_requests_running", "Requests that are being answered.", lambda: self.queue.running)
        watch("num_requests_waiting", "Requests that wait for their turn.", lambda: self.queue.waiting)
        watch("num_realtime_streams", "Live streams that are open.", lambda: self.streams.open)
        watch("max_realtime_streams", "Live streams that there may be.", lambda: self.streams.capacity)
        watch("realtime_lag_max_seconds", "Of the live stream that is furthest behind.", lambda: self.streams.lag_s)
        self._watch_model("kv_cache_bytes", "Reserved for keys and values.", _cache_bytes)
        self._watch_model("kv_cache_usage_perc", "Share of --max-cache-mib that is promised, 1 is all.", _cache_usage)
        self._watch_model("num_searches_running", "Answers that are decoded.", lambda model: model.rounds.open_searches)
        self._watch_model("num_waiting_for_kv_cache", "Who waits for memory.", lambda model: model.rounds.waiting)
        self._watch_model("num_waiting_for_encoder", "Who waits to be encoded.", lambda model: model.encoding.waiting)

    def _watch_model(self, name: str, what: str, value: Callable[[Model], float]) -> None:
        self.metrics.watch(name, what, lambda: value(self._engine.model) if self._engine else 0)


def _cache_bytes(model: Model) -> float:
    return model.decoder.describe().cache_bytes


def _cache_usage(model: Model) -> float:
    return model.decoder.describe().cache_usage
