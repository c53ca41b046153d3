"""GET /v1/models, /health and /metrics."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from salmonrun.runtime.server.answers import HEALTH, KNOWING, METRICS, Model, ModelList
from salmonrun.runtime.server.service import Service


def status(service: Service) -> APIRouter:
    """What is served, and how it is doing."""
    router = APIRouter()

    def model(name: str) -> Model:
        return Model(id=name, object="model", created=service.created, owned_by="salmonrun")

    @router.get("/v1/models", responses=KNOWING)
    async def models() -> ModelList:
        """The names of the bundle."""
        assert service.engine
        return ModelList(object="list", data=[model(name) for name in service.model_names])

    @router.get("/v1/models/{name:path}", responses=KNOWING)
    async def one_model(name: str) -> Model:
        """One of them."""
        assert service.engine
        service.check_model(name)
        return model(name)

    @router.get("/health", responses=HEALTH)
    async def health() -> JSONResponse:
        """200 where a request would be answered; 503 while the engine is loaded, at the end, and when the bundle's
        files are not what was loaded.
        """
        state = service.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get("/metrics", responses=METRICS, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
