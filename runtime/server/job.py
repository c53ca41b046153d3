"""Work of the engine in a thread, its results in the event loop; who goes away stops it within one token."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from opentelemetry.context import get_current

from salmonrun.runtime.server.api_error import ClientGoneError
from salmonrun.runtime.server.request_queue import RequestQueue
from salmonrun.runtime.server.tracing import Tracing

T = TypeVar("T")
Work = Callable[[threading.Event], Iterator[T]]  # ends soon after the event is set


@dataclass(frozen=True)
class _End:
    error: Exception | None = None


class Job(Generic[T]):
    """What one request asks of the engine: an asynchronous iterator over what `work` yields.

    The thread does not wait for who reads: a slow reader holds no slot of the decoder, and what it has not read yet is
    text.

    Args:
        queue: where it waits for its turn.
        threads: what it runs in.
        tracing: what makes spans of its time, under the current one.
        gone: awaited beside it; comes back when nobody waits for the answer any more.
        work: what yields.
        priority: who has less goes first.
    """

    def __init__(
        self,
        queue: RequestQueue,
        threads: Executor,
        tracing: Tracing,
        gone: Callable[[], Awaitable[object]],
        work: Work[T],
        priority: int,
    ) -> None:
        self._queue = queue
        self._tracing = tracing
        self._context = get_current()  # with the request's span
        self._threads = threads
        self._work = work
        self._priority = priority
        self._cancel = threading.Event()
        self._items: asyncio.Queue[T | _End] = asyncio.Queue()
        self._running = False
        self.queued_s = 0.0  # that it waited for its turn
        self._task = asyncio.create_task(self._take_turn())
        self._watcher = asyncio.create_task(self._watch(gone))

    def __aiter__(self) -> "Job[T]":
        return self

    async def __anext__(self) -> T:
        try:
            item = await self._items.get()
        except BaseException:
            self.close()
            raise
        if not isinstance(item, _End):
            return item
        self.close()
        raise item.error or StopAsyncIteration

    def close(self) -> None:
        """Stop it, if it has not ended."""
        self._cancel.set()
        self._watcher.cancel()
        if not self._running:  # else the thread comes to its end by itself, and has its turn until then
            self._task.cancel()

    async def _take_turn(self) -> None:
        started, waiting = time.perf_counter(), self._tracing.begin("queue")
        try:
            async with self._queue.turn(self._priority):
                waiting.end()
                self.queued_s = time.perf_counter() - started
                self._running = True
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, self._run, loop)
        except Exception as error:
            self._items.put_nowait(_End(error))
        finally:
            if waiting.is_recording():  # it never was its turn
                waiting.end()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        end = _End()
        try:
            with self._tracing.stages(self._context):
                for item in self._work(self._cancel):
                    loop.call_soon_threadsafe(self._items.put_nowait, item)
        except Exception as error:
            end = _End(error)
        loop.call_soon_threadsafe(self._items.put_nowait, end)

    async def _watch(self, gone: Callable[[], Awaitable[object]]) -> None:
        await gone()
        self._items.put_nowait(_End(ClientGoneError()))
        self.close()


async def left(request: Request) -> None:
    """Until its client goes away. The body was read: that is all that can still come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
