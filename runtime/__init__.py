"""The lean engine: runs a bundle. `from salmonrun import Engine`."""

import os
from typing import TYPE_CHECKING

from salmonrun.version import __version__ as __version__

if TYPE_CHECKING:
    from salmonrun.runtime.audio import Audio as Audio
    from salmonrun.runtime.audio import load_audio as load_audio
    from salmonrun.runtime.config import GenerationConfig as GenerationConfig
    from salmonrun.runtime.config import Limits as Limits
    from salmonrun.runtime.engine import Engine as Engine
    from salmonrun.runtime.errors import AudioError as AudioError
    from salmonrun.runtime.errors import BundleError as BundleError
    from salmonrun.runtime.errors import BusyError as BusyError
    from salmonrun.runtime.errors import CapacityError as CapacityError
    from salmonrun.runtime.errors import ConfigError as ConfigError
    from salmonrun.runtime.errors import DeadlineError as DeadlineError
    from salmonrun.runtime.errors import DeviceError as DeviceError
    from salmonrun.runtime.errors import HubError as HubError
    from salmonrun.runtime.errors import PromptError as PromptError
    from salmonrun.runtime.errors import SalmonrunError as SalmonrunError
    from salmonrun.runtime.heard import Heard as Heard
    from salmonrun.runtime.longform.config import TranscribeConfig as TranscribeConfig
    from salmonrun.runtime.longform.transcribe import TranscriptInfo as TranscriptInfo
    from salmonrun.runtime.result import Result as Result
    from salmonrun.runtime.segment import Segment as Segment
    from salmonrun.runtime.streaming.config import EndpointConfig as EndpointConfig
    from salmonrun.runtime.streaming.config import StreamConfig as StreamConfig
    from salmonrun.runtime.streaming.stream import Stream as Stream
    from salmonrun.runtime.streaming.stream import Update as Update
else:
    from salmonrun.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "audio": ["Audio", "load_audio"],
            "config": ["GenerationConfig", "Limits"],
            "engine": ["Engine"],
            "errors": [
                "AudioError",
                "BundleError",
                "BusyError",
                "CapacityError",
                "ConfigError",
                "DeadlineError",
                "DeviceError",
                "HubError",
                "PromptError",
                "SalmonrunError",
            ],
            "heard": ["Heard"],
            "longform.config": ["TranscribeConfig"],
            "longform.transcribe": ["TranscriptInfo"],
            "result": ["Result"],
            "segment": ["Segment"],
            "streaming.config": ["EndpointConfig", "StreamConfig"],
            "streaming.stream": ["Stream", "Update"],
        },
    )

# onnxruntime's Linux wheels report usage home by default; this must be set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if __name__ == "runtime":  # a checkout's folder, imported by its own name
    from salmonrun.checkout import stand_in

    stand_in(__name__)
