"""A socket of the Realtime protocol: who may open one, what it is sent, when it ends."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from salmonrun.runtime.errors import BusyError, SalmonrunError
from salmonrun.runtime.server.admission import LOST_S, Pace
from salmonrun.runtime.server.api_error import ApiError, as_api_error
from salmonrun.runtime.server.gate import check_key, sent_key
from salmonrun.runtime.server.log import REQUESTS, log_fields
from salmonrun.runtime.server.realtime import events, vllm
from salmonrun.runtime.server.realtime.audio import I16
from salmonrun.runtime.server.realtime.events import Event, event, new_id
from salmonrun.runtime.server.realtime.inbox import APPEND, Inbox, Received
from salmonrun.runtime.server.realtime.session import Session
from salmonrun.runtime.server.realtime.spans import ItemSpans
from salmonrun.runtime.server.realtime.turns import Turns
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.tracing import AUDIO_S, OUTPUT_TOKENS, answered, finished

IDLE_S = 60.0  # without an event, after which a socket makes room for others
SEND_S = 30.0  # for a client to take an event
PROTOCOL = "realtime"  # that browsers name, which cannot send headers; their key comes as one more
KEY_PREFIX = "openai-insecure-api-key."
DRAIN = {"type": "drain"}  # the server's own word, behind all that has come
SWITCHED = 101  # status of a handshake
_NORMAL, _GOING_AWAY, _BUG, _TRY_AGAIN = 1000, 1001, 1011, 1013  # RFC 6455, 7.4.1, and IANA's registry


def realtime(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.websocket("/v1/realtime")
    async def connect(socket: WebSocket, model: str | None = None) -> None:
        with service.tracing.request(socket.scope) as span:
            status = await serve(socket, model)
            finished(span, "GET", "/v1/realtime", status)

    async def serve(socket: WebSocket, model: str | None) -> int:
        try:
            check_key(service.config.api_keys, sent_key(socket.scope) or _offered_key(socket))
            engine = service.engine
            service.check_model(model)
            await hear(service, socket, Turns(engine, Session(model or service.model_names[0])))
        except ApiError as error:
            await socket.send_denial_response(error.response())
            return error.status
        return SWITCHED

    return router


async def hear(service: Service, socket: WebSocket, turns: Turns) -> None:
    """Speak the protocol with a socket that is not accepted yet, to its end.

    Raises:
        ApiError: 429, it is not let in; the socket is as it was.
    """
    try:
        pace = service.streams.enter()
    except ApiError:
        service.metrics.refused.inc()
        raise
    service.active += 1
    try:
        service.make_room()
        await _Connection(service, socket, turns, pace).run()
    finally:
        service.streams.leave(pace)
        service.active -= 1


def _offered_key(socket: WebSocket) -> str:
    offered: list[str] = socket.scope.get("subprotocols", [])
    return next((name.removeprefix(KEY_PREFIX) for name in offered if name.startswith(KEY_PREFIX)), "")


class _Connection:
    """One socket: one task reads, one has the engine hear and answers, in the order of what came."""

    def __init__(self, service: Service, socket: WebSocket, turns: Turns, pace: Pace) -> None:
        self._service = service
        self._socket = socket
        self._turns = turns
        self._pace = pace
        self._inbox = Inbox()
        self._id = new_id("sess")
        self._busy_s = 0.0
        self._given_up = False  # there is no room for it, or it will never catch up
        self._spans = ItemSpans(service.tracing)
        self._vllm = False  # whether its client speaks vLLM's dialect
        self._call: asyncio.Future[list[Event]] | None = None  # what a thread does

    async def run(self) -> None:
        """Until one of both goes away."""
        offered = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(PROTOCOL if PROTOCOL in offered else None)
        tasks = [asyncio.create_task(task) for task in (self._read(), self._work(), self._drain())]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._turns.cancel()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            if self._call:
                await asyncio.wait([self._call])  # within one token
            await self._service.in_thread(self._turns.close)
            self._spans.close()
            self._note(ended)
        await self._close(_NORMAL if not any(isinstance(one, Exception) for one in ended) else _BUG)

    async def _read(self) -> None:
        """All that comes, into the inbox; it ends when the client goes away, or says nothing for long."""
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._inbox.put(self._received(message.get("text") or ""))
        except TimeoutError:
            return

    def _received(self, text: str) -> Received:
        """An event; what is none, as an error to be told in its turn."""
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            return Received({"type": "no event"}, len(text))
        seconds = 0.0
        if given["type"] == APPEND:
            seconds = self._turns.session.format.seconds(len(text))
            self._pace.arrived(seconds, time.monotonic())
        return Received(given, len(text), seconds)

    async def _work(self) -> None:
        created = event("session.created", session=self._turns.session.as_dict(self._id))
        scope = self._socket.scope
        speaks_openai = scope["query_string"] or PROTOCOL in scope.get("subprotocols", [])
        await self._send(created if speaks_openai else vllm.greeting(created))
        while True:
            batch = await self._inbox.take()
            for told in await self._answer(batch):
                await self._send(told)
            if batch[0].event is DRAIN or self._given_up:
                await self._close(_TRY_AGAIN if self._given_up else _GOING_AWAY)
                return
            if self._turns.seconds > self._service.config.max_stream_s:
                for told in await self._expire():
                    await self._send(told)
                return

    async def _answer(self, batch: list[Received]) -> list[Event]:
        """Events about a batch of the inbox; what is wrong with it is one."""
        if batch[0].is_audio:
            return await self._hear(batch)
        given = batch[0].event
        try:
            return await (self._obey_vllm(given) if self._vllm or vllm.is_update(given) else self._obey(given))
        except (ApiError, SalmonrunError) as error:
            return [events.error(as_api_error(error), _id(given))]

    async def _hear(self, batch: list[Received]) -> list[Event]:
        told: list[Event] = []
        pieces: list[I16] = []
        for received in batch:
            try:
                pieces.append(self._turns.session.format.samples(received.event.get("audio")))
            except ApiError as error:
                told.append(events.error(error, _id(received.event)))
        if pieces:
            told += await self._hear_samples(np.concatenate(pieces))
        lag_s = self._pace.heard(sum(received.seconds for received in batch), time.monotonic())
        self._service.metrics.lag.observe(lag_s)
        if lag_s > LOST_S:
            told += await self._give_up(lag_s)
        return told

    async def _give_up(self, lag_s: float) -> list[Event]:
        """The text of what was heard; what was not is lost."""
        self._given_up = True
        self._service.metrics.given_up.inc()
        told = await self._commit() if self._turns.pending else []
        what = f"this stream is {lag_s:.0f} s behind real time, more than it would catch up with: open another later"
        return [*told, events.error(ApiError(503, "realtime_capacity_exceeded", what))]

    async def _hear_samples(self, pcm: I16) -> list[Event]:
        turns, metrics, started = self._turns, self._service.metrics, time.perf_counter()
        left_out = turns.left_out
        try:
            return await self._in_thread(lambda: turns.hear(pcm))
        except BusyError as error:
            self._given_up = True
            metrics.given_up.inc()
            return turns.fail(as_api_error(error))
        except SalmonrunError as error:
            return turns.fail(as_api_error(error))
        finally:
            self._busy_s += time.perf_counter() - started
            metrics.audio.inc(len(pcm) / turns.session.format.rate)
            metrics.left_out.inc(turns.left_out - left_out)

    async def _obey(self, given: dict[str, Any]) -> list[Event]:
        match given["type"]:
            case "input_audio_buffer.commit":
                return await self._commit()
            case "input_audio_buffer.clear":
                return await self._in_thread(self._turns.clear)
            case "session.update":
                return await self._update(given.get("session"))
            case "drain" if given is DRAIN:
                return await self._commit() if self._turns.pending else []
        what = "no event that is answered here; expected JSON of type input_audio_buffer.append, .commit or .clear, or"
        raise ApiError(400, "unknown_event", f"{given['type']!r} is {what} session.update", "type")

    async def _obey_vllm(self, given: dict[str, Any]) -> list[Event]:
        match given["type"]:
            case "session.update":
                self._vllm = True
                await self._agree(vllm.updated(self._turns.session, given))
                return []
            case "input_audio_buffer.commit" if vllm.begins(given):
                return []  # audio is heard as it comes
            case "input_audio_buffer.commit" if not self._turns.pending:
                return [events.completed(new_id("item"), "", 0.0)]  # of nothing
        return await self._obey(given)

    async def _commit(self) -> list[Event]:
        try:
            return await self._in_thread(self._turns.commit)
        except SalmonrunError as error:
            return self._turns.fail(as_api_error(error))

    async def _update(self, given: Any) -> list[Event]:
        session = self._turns.session.updated(given)
        await self._agree(session)
        return [event("session.updated", session=session.as_dict(self._id))]

    async def _agree(self, session: Session) -> None:
        self._service.check_model(session.model)
        if session.prompt != self._turns.session.prompt:
            self._service.engine.model.request(prompt=session.prompt)  # refuses, if it cannot be asked
        await self._service.in_thread(lambda: self._turns.update(session))

    async def _expire(self) -> list[Event]:
        limit = self._service.config.max_stream_s
        told = await self._commit() if self._turns.pending else []
        over = ApiError(400, "session_expired", f"a live stream ends after {limit:g} s of audio: open another")
        return [*told, events.error(over)]

    async def _drain(self) -> None:
        await self._service.draining.wait()
        await self._inbox.put(Received(DRAIN))

    async def _in_thread(self, call: Callable[[], list[Event]]) -> list[Event]:
        self._call = asyncio.ensure_future(self._service.in_thread(call))
        return await asyncio.shield(self._call)

    async def _send(self, told: Event) -> None:
        self._spans.told(told)
        said = vllm.translated(told) if self._vllm else told
        if said is not None:
            async with asyncio.timeout(SEND_S):
                await self._socket.send_text(json.dumps(said, ensure_ascii=False))

    async def _close(self, code: int) -> None:
        states = {self._socket.client_state, self._socket.application_state}
        if states == {WebSocketState.CONNECTED}:
            try:
                await asyncio.wait_for(self._socket.close(code), SEND_S)
            except (WebSocketDisconnect, RuntimeError, TimeoutError):
                return  # it went away first

    def _note(self, ended: list[Any]) -> None:
        metrics, seconds = self._service.metrics, self._turns.seconds
        metrics.tokens.inc(self._turns.tokens)
        answered(
            {AUDIO_S: seconds, OUTPUT_TOKENS: self._turns.tokens, "salmonrun.updates_left_out": self._turns.left_out}
        )
        if seconds:
            metrics.factor.observe(self._busy_s / seconds)
        gone = (WebSocketDisconnect, TimeoutError, asyncio.CancelledError)
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, gone):
                REQUESTS.error("a stream failed", exc_info=error, extra={"fields": {"session_id": self._id}})
        if REQUESTS.isEnabledFor(logging.INFO):
            fields = {"audio_s": round(seconds, 3), "busy_s": round(self._busy_s, 3), "tokens": self._turns.tokens}
            log_fields("stream", session_id=self._id, left_out=self._turns.left_out, **fields)


def _id(event: dict[str, Any]) -> str | None:
    """That the client gave an event."""
    given = event.get("event_id")
    return given if isinstance(given, str) else None
