"""What can run Whisper and the audio encoder, and what does: `choose`."""

import logging
from typing import Literal

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.device import Device
from salmonrun.runtime.encoders.native_encoder import load_native_encoder
from salmonrun.runtime.encoders.part import EncoderPart
from salmonrun.runtime.errors import ConfigError, DeviceError, MissingExtraError
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.runtime.matrices import kernels
from salmonrun.runtime.session import load_graph

EncoderName = Literal["auto", "onnx", "native"]


def choose(bundle: Bundle, name: EncoderName, device: Device, release_weights: bool = False) -> EncoderRuntime:
    """What runs this bundle's encoders; "auto" takes our own kernels, and logs why if they cannot run its weights.

    Raises:
        ConfigError: there is nothing of this name, or it cannot release its weights.
        DeviceError: it does not run on this device.
        MissingExtraError: the bundle has weights for our own kernels alone, and these were not built.
    """
    if name not in ("auto", "onnx", "native"):
        raise ConfigError(f"encoder is {name!r}; expected 'auto', 'onnx' or 'native'")
    if name == "native" and device != "cpu":
        raise DeviceError(f"native encoders run on a CPU, not on {device}; choose device='cpu' or encoder='onnx'")
    if name == "native" or (name == "auto" and device == "cpu" and _native_runs(bundle)):
        return "native"
    if release_weights:
        raise ConfigError("release_weights is True, but this bundle's encoders run on ONNX Runtime, which keeps copies")
    return "onnx"


def load_encoders(
    bundle: Bundle,
    runtime: EncoderRuntime,
    device: Device,
    threads: int,
    release_weights: bool = False,
    limits: Limits | None = None,
) -> dict[str, EncoderPart]:
    """Whisper and, if there is one, the audio encoder, by the names of their graphs.

    Raises:
        SalmonrunError: as `load_encoder` does.
    """
    parts = ("whisper", "audio_encoder") if bundle.manifest.fbank else ("whisper",)
    return {part: load_encoder(bundle, part, runtime, device, threads, release_weights, limits) for part in parts}


def load_encoder(
    bundle: Bundle,
    part: str,
    runtime: EncoderRuntime,
    device: Device,
    threads: int,
    release_weights: bool = False,
    limits: Limits | None = None,
) -> EncoderPart:
    """One of them.

    Raises:
        BundleError: the bundle has no weights for it, or they cannot be used.
        DeviceError: the CUDA provider could not be started.
        MissingExtraError: the native kernels were not built.
    """
    if runtime == "native":
        return load_native_encoder(bundle, part, threads, release_weights)
    return load_graph(bundle, part, device, threads, limits)


def _native_runs(bundle: Bundle) -> bool:
    runtimes = bundle.manifest.encoder_runtimes
    if "native" not in runtimes:
        return False
    try:
        kernels()
    except MissingExtraError as error:
        if "onnx" not in runtimes:
            raise
        logging.getLogger("salmonrun").warning("the encoders run on ONNX Runtime: %s", error)
        return False
    return True
