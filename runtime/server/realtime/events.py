"""What the server says on a socket, by the names of OpenAI's Realtime protocol."""

import uuid
from typing import Any

from salmonrun.runtime.server.api_error import ApiError

Event = dict[str, Any]

_TRANSCRIPTION = "conversation.item.input_audio_transcription"
DELTA, PARTIAL, COMPLETED, FAILED = (f"{_TRANSCRIPTION}.{what}" for what in ("delta", "partial", "completed", "failed"))


def new_id(kind: str) -> str:
    """An id that no other has."""
    return f"{kind}_{uuid.uuid4().hex}"


def event(kind: str, **fields: Any) -> Event:
    """Any event."""
    return {"type": kind, "event_id": new_id("event"), **fields}


def error(problem: ApiError, client_event_id: str | None = None) -> Event:
    """What was wrong with what the client sent; the session goes on."""
    return event("error", error={**problem.as_dict(), "event_id": client_event_id})


def added(item_id: str, previous: str | None) -> Event:
    """An item is being heard."""
    return event("conversation.item.added", previous_item_id=previous, item=_item(item_id, "in_progress", None))


def done(item_id: str, previous: str | None, transcript: str) -> Event:
    """An item was heard to its end."""
    return event("conversation.item.done", previous_item_id=previous, item=_item(item_id, "completed", transcript))


def delta(item_id: str, text: str) -> Event:
    """Text of an item that will not change."""
    return event(DELTA, item_id=item_id, content_index=0, delta=text)


def partial(item_id: str, text: str, heard_ms: int) -> Event:
    """What follows the item's text for now, and how much of the session that is: ours, sent where it is asked for."""
    return event(PARTIAL, item_id=item_id, content_index=0, text=text, audio_end_ms=heard_ms)


def completed(item_id: str, transcript: str, seconds: float) -> Event:
    """An item's text: its deltas, joined."""
    usage = {"type": "duration", "seconds": seconds}
    return event(COMPLETED, item_id=item_id, content_index=0, transcript=transcript, usage=usage)


def failed(item_id: str, problem: ApiError) -> Event:
    """An item whose text could not be told."""
    return event(FAILED, item_id=item_id, content_index=0, error=problem.as_dict())


def _item(item_id: str, status: str, transcript: str | None) -> dict[str, Any]:
    content = {"type": "input_audio", "transcript": transcript}
    message = {"type": "message", "role": "user", "status": status, "content": [content]}
    return {"id": item_id, "object": "realtime.item", **message}
