"""A Ray Serve application: replicas of the server of one machine, each with an engine of its own.

`serve run salmonrun.runtime.server.ray.app:build bundle=...`, or `import_path` and `args` of a Serve config.
"""

import os
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from salmonrun.runtime.config import Limits
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.server.app import make_app
from salmonrun.runtime.server.config import ISOLATE_DECODING, KEYS, ServerConfig, keys_in
from salmonrun.runtime.server.exporting import tracer_provider
from salmonrun.runtime.server.log import show_json_log
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.server.tracing import Tracing
from salmonrun.runtime.server.watchdog import Watchdog

NAME = "salmonrun"  # of the deployment, by which a Serve config overrides what `build` says of it
_NOT_SERVER = {"bundle", "device", "threads", "max_cache_mib", "isolate_decoding", "min_replicas", "max_replicas"}


class Arguments(BaseModel):
    """What `args` of a Serve config may say. Address and port are Serve's, and so is the end: `drain_s` has no use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str  # a folder that every node has
    device: Literal["auto", "cpu", "cuda"] = "auto"  # cuda: a GPU for each replica
    threads: Annotated[int, Field(ge=1)] = 1  # and CPUs that a replica takes of its node
    max_cache_mib: int | None = None
    isolate_decoding: bool = ISOLATE_DECODING
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    model_names: tuple[str, ...] = ServerConfig.model_names
    api_keys: tuple[str, ...] = ServerConfig.api_keys
    cors_origins: tuple[str, ...] = ServerConfig.cors_origins
    max_running: int = ServerConfig.max_running  # of each replica, as all that follows; one more replica from there on
    max_waiting: int = ServerConfig.max_waiting
    max_streams: int | None = ServerConfig.max_streams
    max_body_mib: int = ServerConfig.max_body_mib
    max_audio_s: float = ServerConfig.max_audio_s
    max_stream_s: float = ServerConfig.max_stream_s
    timeout_s: float = ServerConfig.timeout_s

    def server(self) -> ServerConfig:
        """What the server of each replica is told.

        Raises:
            ConfigError: one of the settings cannot be.
        """
        return ServerConfig(**self.model_dump(exclude=_NOT_SERVER))


class Replica:
    """What Serve runs: the server's own application, in the event loop of an actor."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Serve awaits it
        show_json_log(0)
        limits = Limits(max_cache_mib=arguments.max_cache_mib, isolate_decoding=arguments.isolate_decoding)
        self._service = Service(arguments.server(), Tracing(tracer_provider(os.environ)))
        await self._service.load(
            lambda: Engine.load(arguments.bundle, device=arguments.device, threads=arguments.threads, limits=limits)
        )
        self._watchdog = Watchdog(self._service.engine.model.rounds)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What answers; Serve asks for it when the engine is loaded."""
        return make_app(self._service)

    def check_health(self) -> None:
        """Serve asks now and then, and replaces a replica that fails.

        Raises:
            RuntimeError: answers do not get on.
        """
        if stalled_s := self._watchdog.stalled_s():
            raise RuntimeError(f"no round of the decoder for {stalled_s:.0f} s, though answers are open")


def build(arguments: Arguments) -> Application:
    """The application.

    Replicas come and go between `min_replicas` and `max_replicas`, so that each answers `max_running` requests or
    streams. One that must go is sent nothing more, and has `timeout_s` for what it answers.

    Raises:
        ConfigError: one of the settings cannot be.
    """
    keys = (*arguments.api_keys, *keys_in(os.environ.get(KEYS, "")))
    arguments = arguments.model_copy(update={"api_keys": keys})
    server = arguments.server()
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": int(arguments.device == "cuda")},
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": server.max_running,
        },
        max_ongoing_requests=server.max_running + server.max_waiting,
        max_queued_requests=server.max_waiting,
        graceful_shutdown_timeout_s=server.timeout_s,
    )
    return deployment(serve.ingress()(Replica)).bind(arguments)
