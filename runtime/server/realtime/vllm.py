"""vLLM's dialect of the Realtime protocol, for its clients: 16 kHz, the client commits, other names for what is told.

Such a client says nothing of itself when it connects; what it sends first, a `session.update` with the model beside the
type and no session, shows what it is. Before that it reads the session's id from `session.created`.
"""

import time
from dataclasses import replace

from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.realtime import events
from salmonrun.runtime.server.realtime.audio import FORMATS
from salmonrun.runtime.server.realtime.events import Event
from salmonrun.runtime.server.realtime.session import Session


def greeting(created: Event) -> Event:
    """A `session.created` that both kinds of clients understand."""
    return {**created, "id": created["session"]["id"], "created": int(time.time())}


def is_update(given: Event) -> bool:
    """Whether only a client of vLLM sends such a `session.update`."""
    return "model" in given and "session" not in given


def updated(session: Session, given: Event) -> Session:
    """A session as vLLM has it, of the model that an event names.

    Raises:
        ApiError: it names none.
    """
    model = given.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "invalid_event", "model is missing; expected the name of a model that is served", "model")
    return replace(session, model=model, format=FORMATS["audio/pcm", 16_000], turn_detection=None)


def begins(given: Event) -> bool:
    """Whether an `input_audio_buffer.commit` says that audio is about to come, and not that it was the last."""
    return not given.get("final")


def translated(told: Event) -> Event | None:
    """An event in vLLM's words; None: it has none for that.

    What the prompts of a stream cost is not counted, so no usage is told.
    """
    match told["type"]:
        case events.DELTA:
            return {"type": "transcription.delta", "delta": told["delta"]}
        case events.COMPLETED:
            return {"type": "transcription.done", "text": told["transcript"], "usage": None}
        case "error" | events.FAILED:
            return {"type": "error", "error": told["error"]["message"], "code": told["error"]["code"]}
    return None
