"""The application: routes, errors, and what every request passes first."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from salmonrun.runtime.errors import SalmonrunError
from salmonrun.runtime.server.api_error import GONE, ApiError, ClientGoneError, as_api_error
from salmonrun.runtime.server.chat import chat
from salmonrun.runtime.server.gate import GUARDED, Gate
from salmonrun.runtime.server.page.door import Door, DoorMiddleware
from salmonrun.runtime.server.page.live import live
from salmonrun.runtime.server.realtime.socket import realtime
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.status import status
from salmonrun.runtime.server.transcriptions import transcriptions
from salmonrun.version import __version__


def make_app(service: Service) -> FastAPI:
    """All that is answered. Its pages of documentation would load scripts from elsewhere: there are none."""
    app = _App(title="salmonrun", version=__version__, docs_url=None, redoc_url=None)
    app.needs_key = bool(service.config.api_keys)
    for router in (status(service), transcriptions(service), chat(service), realtime(service)):
        app.include_router(router)
    app.add_exception_handler(Exception, _failed)
    for kind in (ApiError, SalmonrunError, ClientGoneError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _failed)
    if service.config.page:
        door = Door(service)
        app.include_router(door.routes())
        app.include_router(live(service, door))
        app.add_middleware(DoorMiddleware, service=service, door=door)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Gate, service=service)
    return app


class _App(FastAPI):
    """With a schema of what is really answered."""

    needs_key = False

    def openapi(self) -> dict[str, Any]:
        """The schema. FastAPI declares 422 in its own words for what is here a 400 in OpenAI's."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            if self.needs_key:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if self.needs_key and path.startswith(GUARDED):
                        operation["security"] = [{"key": []}]
        assert self.openapi_schema
        return self.openapi_schema


async def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, ClientGoneError):
        return Response(status_code=GONE)
    if isinstance(error, RequestValidationError):
        return _invalid(error).response()
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, ApiError):  # of the body, where FastAPI read it
            return error.__cause__.response()
        told = ApiError(error.status_code, "invalid_request", str(error.detail)).response()
        told.headers.update(error.headers or {})  # what is allowed instead
        return told
    return as_api_error(error).response()


def _invalid(error: RequestValidationError) -> ApiError:
    """What is wrong with a request: where one of several forms could be meant, of that which it fits furthest."""
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    where = ".".join(str(part) for part in first["loc"][1:])
    return ApiError(400, "invalid_request", f"{where}: {first['msg']}" if where else str(first["msg"]), where or None)
