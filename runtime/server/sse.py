"""Server-sent events, as OpenAI's clients read them."""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from salmonrun.runtime.server.api_error import ClientGoneError, as_api_error
from salmonrun.runtime.server.log import REQUESTS

DONE = b"data: [DONE]\n\n"


def sse(events: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """An answer that grows. An error that comes too late for a status is an event."""
    return StreamingResponse(_lines(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield _line(event)
    except ClientGoneError:
        return
    except Exception as error:
        told = as_api_error(error)
        if told.status >= 500:
            REQUESTS.exception("an answer broke off")
        yield _line({"error": told.as_dict()})
    yield DONE


def _line(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
