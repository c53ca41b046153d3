"""Who may see the page, and what browsers are told of it: all under /page passes here."""

import hmac
import secrets
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.config import PAGE, is_page
from salmonrun.runtime.server.gate import check_key, sent_key
from salmonrun.runtime.server.page.markup import login
from salmonrun.runtime.server.service import Service

COOKIE = "salmonrun_page"
LOGIN = f"{PAGE}/login"
# The browser itself sees to it that nothing comes from elsewhere, and nothing goes there. Gradio's scripts are inline,
# and compile templates; recordings are played from blobs.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        *(f"{kind}-src 'self' data: blob:" for kind in ("img", "font", "media", "connect", "worker")),
        "frame-ancestors 'self'",
        "form-action 'self'",
    ]
)
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class Door:
    """Of one server: with API keys, visitors show one, and get a cookie that is good until the server ends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._pass = secrets.token_urlsafe(32)

    def check(self, scope: Scope) -> None:
        """Whether a request or a socket may come in.

        Raises:
            ApiError: 401, without a key; 403, a page from elsewhere asks.
        """
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(403, "foreign_origin", f"pages from {origin} may not ask this one: open {PAGE} itself")
        given = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if not hmac.compare_digest(given.encode(), self._pass.encode()):
            check_key(self._service.config.api_keys, sent_key(scope))

    def routes(self) -> APIRouter:
        """Where keys are shown."""
        router = APIRouter(include_in_schema=False)

        @router.get("/")
        async def front() -> Response:
            """The page is all that there is to see here."""
            return RedirectResponse(PAGE)

        @router.get(LOGIN)
        async def ask() -> Response:
            """A form."""
            return HTMLResponse(login(""))

        @router.post(LOGIN)
        async def answer(request: Request, key: Annotated[str, Form()] = "") -> Response:
            """The cookie, or the form again."""
            try:
                check_key(self._service.config.api_keys, key.strip())
            except ApiError as error:
                return HTMLResponse(login(error.message.partition(":")[0]), error.status)
            response = RedirectResponse(PAGE, 303)
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, self._pass, path=PAGE, httponly=True, samesite="lax", secure=secure)
            return response

        return router


class DoorMiddleware:
    """In front of the app, behind the gate.

    Raises:
        ApiError: as of `Door.check`; 503, the server cannot answer.
    """

    def __init__(self, app: ASGIApp, service: Service, door: Door) -> None:
        self._app = app
        self._service = service
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request of the page; sockets see for themselves, and anything else is none of its business."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["path"] != LOGIN:
            try:
                self._door.check(scope)
            except ApiError as error:
                if error.status != 401 or scope["method"] != "GET" or scope["path"].rstrip("/") != PAGE:
                    raise
                await RedirectResponse(LOGIN, 303)(scope, receive, guarded)
                return
        assert self._service.engine
        await self._app(scope, receive, guarded)
