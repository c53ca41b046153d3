"""A test hook: make one stage slower on purpose, to see that it shows there and nowhere else."""

import math
import time
from collections.abc import Callable
from typing import Any

from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import ConfigError


def slow_down(engine: Engine, stage: str, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Have the engine sleep so long whenever it runs this stage; `decode` at every token.

    Raises:
        ConfigError: there is no such stage.
    """
    places: dict[str, tuple[object, str]] = {
        "prompt": (engine, "stop_ids"),
        "audio": (engine, "load_audio"),
        "features": (engine.encoder, "features"),
        "whisper": (engine.encoder, "speech"),
        "audio_encoder": (engine.encoder, "sounds"),
        "qformer": (engine.encoder, "join"),
        "prefill": (engine.decoder, "prefill"),
        "decode": (engine.decoder, "step"),
    }
    if "audio_encoder" not in engine.encoder.graphs:
        del places["audio_encoder"]
    if stage not in places:
        raise ConfigError(f"there is no stage {stage!r}; expected one of {', '.join(places)}")
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"a stage cannot be {seconds:g} s slower; expected at least 0, and finite")
    owner, name = places[stage]
    plain = getattr(owner, name)

    def slowed(*arguments: Any, **options: Any) -> Any:
        sleep(seconds)
        return plain(*arguments, **options)

    setattr(owner, name, slowed)
