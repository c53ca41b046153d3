"""Settings of a server. Each default lives here; nothing here needs FastAPI."""

import sys
from dataclasses import dataclass

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.errors import ConfigError

PAGE = "/page"  # where the page to try a bundle is
KEYS = "SALMONRUN_API_KEYS"  # environment variable: on a command line, other users of the machine may read keys
# `Limits.isolate_decoding` of the engine: what clients send is not trusted. Elsewhere it cannot be had.
ISOLATE_DECODING = sys.platform == "linux"
# Fields that must be above 0.
_POSITIVE = ("max_running", "max_body_mib", "max_audio_s", "max_stream_s", "timeout_s")


def is_page(path: str) -> bool:
    """Whether a request's path is under it."""
    return path == PAGE or path.startswith(f"{PAGE}/")


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, who may ask, and what is refused."""

    host: str = "127.0.0.1"  # 0.0.0.0: all of the machine's addresses
    port: int = 8000  # 0: any that is free
    model_names: tuple[str, ...] = ()  # that clients may ask for, the first is listed; none: the bundle's own
    api_keys: tuple[str, ...] = ()  # of which clients must send one; none: anybody may ask
    cors_origins: tuple[str, ...] = ()  # pages of these origins may ask from a browser; "*": of any
    max_running: int = 4  # requests that are answered at once
    max_waiting: int = 32  # requests that wait for one of those to end; what is more is refused
    max_streams: int | None = None  # live streams at once; None: as many as are measured to keep up with real time
    max_body_mib: int = 100  # of a request
    max_audio_s: float = 4 * 3600.0  # of a recording
    max_stream_s: float = 3600.0  # of audio that one live stream may bring
    timeout_s: float = 600.0  # of a request, from its first byte to the last one of the answer
    page: bool = False  # whether there is a page to try the bundle in a browser
    drain_s: float = 30.0  # that requests and streams have to end, once the server was told to

    def __post_init__(self) -> None:
        check_types(self)
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("max_waiting", "drain_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"port is {self.port}; expected 0 (any that is free) to 65535")
        if self.max_streams is not None and self.max_streams < 0:
            raise ConfigError(f"max_streams is {self.max_streams}; it must not be negative (0: no live streams)")
        for name in ("model_names", "api_keys", "cors_origins"):
            if any(not value.strip() for value in getattr(self, name)):
                raise ConfigError(f"{name} has an empty value; leave it out")


def keys_in(listed: str) -> tuple[str, ...]:
    """Keys, as `SALMONRUN_API_KEYS` has them: with commas."""
    return tuple(filter(None, listed.split(",")))
