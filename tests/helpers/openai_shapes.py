"""What OpenAI's own types say of an answer of ours."""

from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from openai.types.realtime import RealtimeServerEvent
from openai.types.realtime.realtime_transcription_session_create_response import (
    RealtimeTranscriptionSessionCreateResponse,
)
from pydantic import BaseModel, TypeAdapter

M = TypeVar("M", bound=BaseModel)
EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


def unknown_fields(model: BaseModel, where: str = "") -> Iterator[str]:
    """Paths of what the types do not know: they let everything pass."""
    yield from (f"{where}{name}" for name in model.model_extra or {})
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from unknown_fields(one, f"{where}{name}.")


def parsed(event: dict[str, Any]) -> Any:
    """An event as the client sees it: strictly, of the type that it names, with no field that is not OpenAI's."""
    model = EVENTS.validate_python(event, strict=True)
    (name,) = get_args(type(model).model_fields["type"].annotation)
    assert name == event["type"]
    unknown = set(unknown_fields(model))
    if "session" in event:  # the events have the type of what a client asks for, which has no id
        own = RealtimeTranscriptionSessionCreateResponse.model_validate(event["session"], strict=True)
        assert not list(unknown_fields(own)), event
        unknown -= {"session.id", "session.object"}
    assert not unknown, event
    return model


def whole(kind: type[M], answer: BaseModel, ours: set[str] | None = None) -> M:
    """An answer, strictly of a type of OpenAI's; `ours`: the fields that it has beyond that."""
    model = kind.model_validate(answer.to_dict(), strict=True)  # type: ignore[attr-defined]
    assert set(unknown_fields(model)) == (ours or set())
    return model
