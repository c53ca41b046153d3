"""What a client sends as audio: PCM16 or G.711, in base64, becomes int16 samples."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.server.api_error import ApiError

I16 = npt.NDArray[np.int16]


@dataclass(frozen=True)
class AudioFormat:
    """A format of a session."""

    type: str  # as the protocol names it
    rate: int  # Hz
    decode: Callable[[bytes], I16]

    def seconds(self, characters: int) -> float:
        """Of so much base64."""
        return characters * 3 / 4 / (self.rate * (2 if self.type == "audio/pcm" else 1))

    def as_dict(self) -> dict[str, Any]:
        """As the protocol describes it: G.711 has one rate, which is not told."""
        return {"type": self.type, "rate": self.rate} if self.type == "audio/pcm" else {"type": self.type}

    def samples(self, encoded: Any) -> I16:
        """The samples of an `input_audio_buffer.append`.

        Raises:
            ApiError: no base64, or no whole samples.
        """
        if not isinstance(encoded, str):
            raise ApiError(400, "invalid_audio", f"audio is missing; expected {self.type} in base64", "audio")
        try:
            return self.decode(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, "invalid_audio", f"audio is no {self.type} in base64: {error}", "audio") from error


def _pcm16(data: bytes) -> I16:
    if len(data) % 2:
        raise ValueError(f"{len(data)} bytes; expected whole samples of 2 bytes")
    return np.frombuffer(data, "<i2").astype(np.int16)


def _mu_law() -> I16:
    """The samples of all bytes: ITU-T G.711, table 2a."""
    code = ~np.arange(256, dtype=np.uint8)
    magnitude = (((code & 15).astype(np.int32) << 3) + 132 << (code >> 4 & 7).astype(np.int32)) - 132
    return np.where(code & 128, -magnitude, magnitude).astype(np.int16)


def _a_law() -> I16:
    """The samples of all bytes: ITU-T G.711, table 1a."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent = (code >> 4 & 7).astype(np.int32)
    mantissa = ((code & 15).astype(np.int32) << 4) + 8
    magnitude = np.where(exponent > 0, mantissa + 256 << np.maximum(exponent - 1, 0), mantissa)
    return np.where(code & 128, magnitude, -magnitude).astype(np.int16)


def _by(table: I16) -> Callable[[bytes], I16]:
    return lambda data: table[np.frombuffer(data, np.uint8)]


FORMATS = {
    ("audio/pcm", 24_000): AudioFormat("audio/pcm", 24_000, _pcm16),
    ("audio/pcm", 16_000): AudioFormat("audio/pcm", 16_000, _pcm16),
    ("audio/pcmu", 8000): AudioFormat("audio/pcmu", 8000, _by(_mu_law())),
    ("audio/pcma", 8000): AudioFormat("audio/pcma", 8000, _by(_a_law())),
}
RATES = range(8000, 192_001)  # Hz, of microphones
_RATES = {"audio/pcm": 24_000, "audio/pcmu": 8000, "audio/pcma": 8000}  # where none is said
DEFAULT = FORMATS["audio/pcm", 24_000]


def pcm16(rate: int) -> AudioFormat:
    """PCM16 at the rate of any microphone, which is more than the protocol offers.

    Raises:
        ApiError: there is no such rate.
    """
    if rate not in RATES:
        what = f"rate is {rate} Hz; expected {RATES.start} to {RATES.stop - 1}"
        raise ApiError(400, "invalid_value", what, "rate")
    return AudioFormat("audio/pcm", rate, _pcm16)


def audio_format(kind: str | None, rate: int | None) -> AudioFormat:
    """The format of a type, and a rate if one is said.

    Raises:
        ApiError: there is no such format.
    """
    kind = kind or "audio/pcm"
    rate = _RATES.get(kind) if rate is None else rate
    for known in FORMATS.values():
        if (known.type, known.rate) == (kind, rate):
            return known
    names = ", ".join(f"{known.type} at {known.rate}" for known in FORMATS.values())
    what = f"audio.input.format is {kind} at {rate} Hz; expected one of {names} Hz"
    raise ApiError(400, "invalid_value", what, "session.audio.input.format")
