"""A transcription that grows, in vLLM's dialect: chunks as those of chat completions."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from salmonrun.runtime.segment import Segment


async def chunks(items: AsyncIterator[str | Segment], model: str, usage: bool) -> AsyncIterator[dict[str, Any]]:
    """Text as it becomes certain, then the end; `usage`: and how many tokens that was, of the answer alone."""
    chunk = {"id": f"trsc-{uuid.uuid4().hex}", "object": "transcription.chunk", "created": int(time.time())}
    chunk["model"] = model
    tokens = 0
    async for item in items:
        if isinstance(item, Segment):
            tokens += len(item.token_ids)
        else:
            yield {**chunk, "choices": [{"delta": {"content": item}, "finish_reason": None, "stop_reason": None}]}
    yield {**chunk, "choices": [{"delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}]}
    if usage:
        yield {**chunk, "choices": [], "usage": {"completion_tokens": tokens}}
