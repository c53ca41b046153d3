"""What can run the LLM, and which of them does: `choose`."""

from typing import Any, Literal

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.decoder import Decoder
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.session import Device

DecoderName = Literal["auto", "onnx"]


def choose(bundle: Bundle, name: DecoderName, device: Device, threads: int) -> Decoder[Any]:
    """Load what runs this bundle's LLM; "auto" takes the fastest there is.

    Raises:
        BundleError: it does not take the bundle's weights.
        ConfigError: there is no such decoder.
    """
    if name not in ("auto", "onnx"):
        raise ConfigError(f"decoder is {name!r}; expected 'auto' or 'onnx'")
    return OnnxDecoder.load(bundle, device, threads)
