"""Make one stage of an engine slower on purpose, to see that it shows there and nowhere else."""

from collections.abc import Callable, Sequence
from typing import Any

from salmonrun.runtime import Engine
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.decoder import Chunk


def slow_down(engine: Engine, stage: str, seconds: float, sleep: Callable[[float], None]) -> None:
    """Have the engine sleep so long whenever it runs this stage; `decode` at every token."""
    model = engine.model
    if stage in ("prefill", "decode"):
        _slow_rounds(model.decoder, stage, lambda: sleep(seconds))
        return
    owner, name = {
        "prompt": (model, "inputs_embeds"),
        "audio": (model, "load_audio"),
        "features": (model.encoder, "features"),
        "whisper": (model.encoder, "whisper"),
        "audio_encoder": (model.encoder, "audio_encoder"),
        "qformer": (model.encoder, "qformer"),
    }[stage]
    plain = getattr(owner, name)

    def slowed(*arguments: Any, **options: Any) -> Any:
        sleep(seconds)
        return plain(*arguments, **options)

    setattr(owner, name, slowed)


def _slow_rounds(decoder: Any, stage: str, sleep: Callable[[], None]) -> None:
    plain = decoder.forward

    def slowed(chunks: Sequence[Chunk[Any]]) -> list[F32]:
        last = any(len(chunk.inputs) > 1 and chunk.wanted for chunk in chunks)  # piece of a prompt: once for each
        if last if stage == "prefill" else all(len(chunk.inputs) == 1 for chunk in chunks):
            sleep()
        logits: list[F32] = plain(chunks)
        return logits

    decoder.forward = slowed
