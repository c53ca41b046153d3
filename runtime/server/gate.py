"""What every request passes first: its id, its key, its size, its time, its line in the log."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from salmonrun.runtime.server.api_error import GONE, ApiError
from salmonrun.runtime.server.config import is_page
from salmonrun.runtime.server.log import REQUESTS, log_fields
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.tracing import finished

# After an early refusal: a socket that is closed while its client still sends is reset, and the answer lost on the way.
LINGER_S = 30.0  # for the rest of the body, which is thrown away
SILENT_S = 5.0  # for each piece of it; both as nginx's lingering_time and lingering_timeout
GUARDED = "/v1/"  # what needs a key, and is refused while the server cannot answer


class Gate:
    """In front of the app; `/health` and `/metrics` pass without a key."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An HTTP request; anything else is none of its business."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "GET" and is_page(scope["path"]):  # files of the page, and what stays open while it does
            await self._pass(scope, receive, send)
            return
        answer, receive = _Answer(send), _Inlet(receive)
        started = time.perf_counter()
        self._service.active += 1
        try:
            if scope["path"].startswith(GUARDED):
                with self._service.tracing.request(scope) as span:
                    try:
                        await self._answer(scope, receive, answer)
                    finally:
                        finished(span, scope["method"], _route(scope), None if answer.gone else answer.status)
            else:
                await self._answer(scope, receive, answer)
        finally:
            self._service.active -= 1
            self._note(scope, answer, time.perf_counter() - started)
        await answer.end(receive)

    async def _answer(self, scope: Scope, receive: "_Inlet", answer: "_Answer") -> None:
        config = self._service.config
        try:
            async with asyncio.timeout(config.timeout_s):
                if scope["path"].startswith(GUARDED):
                    check_key(config.api_keys, sent_key(scope))
                body = _Body(scope, receive, config.max_body_mib * 2**20, answer.left)
                await self._app(scope, body, answer)
        except TimeoutError:
            slow = ApiError(504, "timeout", f"the request took longer than {config.timeout_s:g} s: send less at once")
            await answer.fail(slow)
        except ApiError as error:
            await answer.fail(error)
        except Exception:
            REQUESTS.exception("a request failed", extra={"fields": {"request_id": answer.request_id}})
            failed = ApiError(500, "internal_error", "the server failed to answer; its log says why")
            await answer.fail(failed)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    def _note(self, scope: Scope, answer: "_Answer", took_s: float) -> None:
        endpoint = _route(scope) or "other"  # not what was asked for: that could be anything
        metrics, status = self._service.metrics, GONE if answer.gone else answer.status or GONE
        metrics.requests.labels(endpoint, status).inc()
        metrics.latency.labels(endpoint).observe(took_s)
        if REQUESTS.isEnabledFor(logging.INFO):
            log_fields(
                "request",
                request_id=answer.request_id,
                method=scope["method"],
                endpoint=endpoint,
                status=status,
                took_s=round(took_s, 4),
                **scope.get("state", {}).get("log", {}),
            )


def _route(scope: Scope) -> str | None:
    """The path, as the app has it."""
    return getattr(scope.get("route"), "path", None)


class _Answer:
    """Passes an answer on, with the request's id, and remembers whether there is one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id = f"req_{uuid.uuid4().hex}"
        self.status: int | None = None
        self._complete = False
        self._lingers = False  # whether all is sent but the end
        self.gone = False  # whether the client went away before it had all

    async def __call__(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def left(self) -> None:
        """The client is not there any more; behind a whole answer that is no news."""
        self.gone |= not self._complete

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, all but its `end`. An answer that has begun is cut off, which its reader can tell."""
        if self._complete:
            return
        if self.status is not None:
            raise error
        response = error.response()
        response.headers["Connection"] = "close"  # no further request: what follows may be the rest of the body
        await self({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await self({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        self._complete = self._lingers = True

    async def end(self, inlet: "_Inlet") -> None:
        """Let the connection close, if it is to be, when the client has sent what it sends."""
        if self._lingers:
            await inlet.drain()
            await self._send({"type": "http.response.body"})


class _Inlet:
    """Passes a body on, and knows whether there is more of it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def __call__(self) -> Message:
        """A part of the body."""
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Throw the rest away, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._more:
                    async with asyncio.timeout(SILENT_S):  # wait_for would take what has come for the end of both
                        await self()


class _Body:
    """Passes a body on, up to its limit, and says when the client goes away.

    Raises:
        ApiError: 413, the body is larger; at once, where its header says so.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, left: Callable[[], object]) -> None:
        self._receive = receive
        self._left = left
        self._limit = limit
        self._read = 0
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        self._check(int(claimed) if claimed.isdigit() else 0)

    async def __call__(self) -> Message:
        """A part of the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._left()
        self._read += len(message.get("body", b""))
        self._check(self._read)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            most = self._limit // 2**20
            raise ApiError(413, "body_too_large", f"the body has more than {most} MiB: send less, or FLAC for WAV")


def sent_key(scope: Scope) -> str:
    """The key that a client sent; empty if none."""
    header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    kind, _, key = header.partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def check_key(keys: Sequence[str], sent: str) -> None:
    """Whether a client may ask; all keys are compared, so that time says nothing about them.

    Raises:
        ApiError: 401, it may not.
    """
    given = sent.encode()
    if keys and True not in [hmac.compare_digest(given, key.encode()) for key in keys]:
        what = "this API key is not known" if sent else "an API key is missing"
        raise ApiError(401, "invalid_api_key", f"{what}: expected the header Authorization: Bearer KEY")
