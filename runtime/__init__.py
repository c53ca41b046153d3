"""The lean engine: runs a bundle. `from runtime import Engine`."""

import os

# onnxruntime's Linux wheels report usage home by default; this must be set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from runtime.audio import Audio, load_audio
from runtime.config import GenerationConfig, Limits
from runtime.engine import Engine, Heard, Result
from runtime.errors import (
    AudioError,
    BundleError,
    CapacityError,
    ConfigError,
    DeviceError,
    PromptError,
    SalmonrunError,
)

__version__ = "0.1.0"

__all__ = [
    "Audio",
    "AudioError",
    "BundleError",
    "CapacityError",
    "ConfigError",
    "DeviceError",
    "Engine",
    "GenerationConfig",
    "Heard",
    "Limits",
    "PromptError",
    "Result",
    "SalmonrunError",
    "load_audio",
]
