"""What a client has agreed with a session: `session.update` and what is told of it."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from salmonrun.runtime.server.admission import LATE_S
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.realtime.audio import DEFAULT, AudioFormat, audio_format
from salmonrun.runtime.streaming.config import EndpointConfig, StreamConfig

PARTIAL = "item.input_audio_transcription.partial"  # in `include`: an extension of ours
THRESHOLD = 0.5  # of the voice detector; it has no other


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Format(_Strict):
    type: str = "audio/pcm"
    rate: int | None = None


class _Transcription(_Strict):
    model: str | None = None
    language: str | None = None  # what the client knows; the model hears for itself
    prompt: str | None = None  # an instruction, instead of the task's


class _TurnDetection(_Strict):
    type: Literal["server_vad"]
    threshold: float | None = Field(None, ge=THRESHOLD, le=THRESHOLD)
    prefix_padding_ms: int | None = Field(None, ge=0, le=5000)
    silence_duration_ms: int | None = Field(None, ge=100, le=10_000)
    create_response: Literal[False] | None = None
    interrupt_response: bool | None = None  # of responses, of which there are none


class _Input(_Strict):
    format: _Format | None = None
    transcription: _Transcription | None = None
    turn_detection: _TurnDetection | None = None
    noise_reduction: None = None


class _Audio(_Strict):
    input: _Input = _Input()


class _Update(_Strict):
    type: Literal["transcription"]
    audio: _Audio = _Audio()
    include: list[Literal["item.input_audio_transcription.partial"]] | None = None


@dataclass(frozen=True)
class TurnDetection:
    """When the server ends an utterance by itself."""

    prefix_padding_ms: int = 300  # kept in front of speech
    silence_duration_ms: int = 500  # that ends it


@dataclass(frozen=True)
class Session:
    """What holds for one socket."""

    model: str
    format: AudioFormat = DEFAULT
    turn_detection: TurnDetection | None = TurnDetection()  # None: the client commits
    language: str | None = None
    prompt: str | None = None
    partial: bool = False  # whether the unstable tail is sent

    def updated(self, given: Any) -> "Session":
        """With what a `session.update` says; what it does not name stays.

        Raises:
            ApiError: it says what is no session of ours.
        """
        try:
            update = _Update.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["session", *map(str, first["loc"])])
            raise ApiError(400, "invalid_value", f"{where}: {first['msg']}", where) from error
        session, heard = self, update.audio.input
        if heard.format:
            session = replace(session, format=audio_format(heard.format.type, heard.format.rate))
        if heard.transcription:
            spoken = heard.transcription
            session = replace(session, language=spoken.language, prompt=spoken.prompt)
            session = replace(session, model=spoken.model or self.model)
        if "turn_detection" in heard.model_fields_set:
            session = replace(session, turn_detection=_turn_detection(heard.turn_detection))
        if "include" in update.model_fields_set:
            session = replace(session, partial=PARTIAL in (update.include or ()))
        return session

    def stream_config(self) -> StreamConfig:
        """How its audio is heard. A stream that is late leaves out updates, not audio."""
        turns = self.turn_detection
        if turns is None:
            return StreamConfig(endpoint=None, max_lag_s=LATE_S)
        pause_s, margin_s = turns.silence_duration_ms / 1000, turns.prefix_padding_ms / 1000
        endpoint = EndpointConfig(silence_s=pause_s, pause_s=pause_s, margin_s=margin_s)
        return StreamConfig(endpoint=endpoint, max_lag_s=LATE_S)

    def as_dict(self, session_id: str) -> dict[str, Any]:
        """As the protocol describes it."""
        turns = self.turn_detection
        detection = turns and {"type": "server_vad", "threshold": THRESHOLD, **vars(turns)}
        heard = {
            "format": self.format.as_dict(),
            "transcription": {"model": self.model, "language": self.language, "prompt": self.prompt},
            "turn_detection": detection,
            "noise_reduction": None,
        }
        include = [PARTIAL] if self.partial else None
        what = {"type": "transcription", "object": "realtime.transcription_session", "id": session_id}
        return {**what, "audio": {"input": heard}, "include": include}


def _turn_detection(given: _TurnDetection | None) -> TurnDetection | None:
    if given is None:
        return None
    named = given.model_dump(include={"prefix_padding_ms", "silence_duration_ms"}, exclude_none=True)
    return TurnDetection(**named)
