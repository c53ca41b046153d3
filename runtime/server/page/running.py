"""Work of the engine for a visitor of the page: it waits for its turn as requests do, and a view of it grows."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Generic, Self, TypeVar

from salmonrun.runtime.server.api_error import ApiError, ClientGoneError, as_api_error
from salmonrun.runtime.server.job import Work
from salmonrun.runtime.server.log import REQUESTS, log_fields
from salmonrun.runtime.server.metrics import Metrics
from salmonrun.runtime.server.service import Service

PAUSE_S = 0.06  # between two views that are sent; eyes are no faster


class View(ABC):
    """What a visitor sees of some work. It does not change: with each piece of news there is a new one."""

    @abstractmethod
    def told(self, item: Any) -> Self:
        """With what the work has yielded."""

    @abstractmethod
    def ended(self, queued_s: float) -> Self:
        """The work is over; before it began it waited so long for its turn."""

    @abstractmethod
    def stopped(self) -> Self:
        """The visitor wanted no more of it."""

    @abstractmethod
    def failed(self, message: str) -> Self:
        """It could not be done, or not to its end."""

    @abstractmethod
    def note(self, metrics: Metrics, queued_s: float) -> dict[str, Any]:
        """Tell the metrics what it cost; fields for the log, without text."""


V = TypeVar("V", bound=View)


class Running(Generic[V]):
    """One visitor's work, which comes to its end whether its views are read or not.

    Args:
        service: whose queue, threads and limits hold for it.
        view: before the work has yielded anything.
        work: as that of a request.
    """

    def __init__(self, service: Service, view: V, work: Work[Any]) -> None:
        self._service = service
        self._view = view
        self._over = False
        self._news = asyncio.Event()
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run(work))

    def stop(self) -> None:
        """Nobody wants it any more: within one token it is over."""
        self._stop.set()

    async def views(self) -> AsyncIterator[V]:
        """The view as it grows; the last one is whole. Who stops reading stops the work."""
        try:
            while not self._over:
                yield self._view
                await asyncio.sleep(PAUSE_S)
                await self._news.wait()
                self._news.clear()
            yield self._view
        finally:
            self.stop()

    async def _run(self, work: Work[Any]) -> None:
        self._service.active += 1
        try:
            with self._service.tracing.work("page"):
                self._show(await self._worked(work))
        except ClientGoneError:
            self._show(self._view.stopped())
        except Exception as error:
            told = as_api_error(error)
            if told.status >= 500 and not isinstance(error, ApiError):
                REQUESTS.exception("an answer on the page broke off")
            self._show(self._view.failed(told.message))
        finally:
            self._service.active -= 1
            self._over = True
            self._news.set()

    async def _worked(self, work: Work[Any]) -> V:
        timeout_s = self._service.config.timeout_s
        job = self._service.job_until(self._stop.wait, work)
        try:
            async with asyncio.timeout(timeout_s):
                async for item in job:
                    self._show(self._view.told(item))
        except TimeoutError as error:
            raise ApiError(504, "timeout", f"this took longer than {timeout_s:g} s: ask about less at once") from error
        finally:
            job.close()
        view = self._view.ended(job.queued_s)
        log_fields("page", queued_s=round(job.queued_s, 4), **view.note(self._service.metrics, job.queued_s))
        return view

    def _show(self, view: V) -> None:
        self._view = view
        self._news.set()
