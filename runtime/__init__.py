"""The lean engine: runs a bundle. `from runtime import Engine`."""

import os

# onnxruntime's Linux wheels report usage home by default; this must be set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from salmonrun.runtime.audio import Audio, load_audio
from salmonrun.runtime.config import GenerationConfig, Limits
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import (
    AudioError,
    BundleError,
    CapacityError,
    ConfigError,
    DeviceError,
    PromptError,
    SalmonrunError,
)
from salmonrun.runtime.heard import Heard
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.longform.transcribe import TranscriptInfo
from salmonrun.runtime.result import Result
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.streaming.config import EndpointConfig, StreamConfig
from salmonrun.runtime.streaming.stream import Stream, Update

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioError",
    "BundleError",
    "CapacityError",
    "ConfigError",
    "DeviceError",
    "EndpointConfig",
    "Engine",
    "GenerationConfig",
    "Heard",
    "Limits",
    "PromptError",
    "Result",
    "SalmonrunError",
    "Segment",
    "Stream",
    "StreamConfig",
    "TranscribeConfig",
    "TranscriptInfo",
    "Update",
    "load_audio",
]

if __name__ == "runtime":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
