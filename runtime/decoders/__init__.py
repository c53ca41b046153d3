"""What can run the LLM, and which of them does: `choose`."""

import logging
from typing import Any, Literal

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import KvCacheType, Limits
from salmonrun.runtime.decoder import Decoder
from salmonrun.runtime.decoders.native_decoder import NativeDecoder
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.errors import ConfigError, DeviceError, MissingExtraError
from salmonrun.runtime.matrices import kernels
from salmonrun.runtime.session import Device

DecoderName = Literal["auto", "onnx", "native"]


def choose(
    bundle: Bundle,
    name: DecoderName,
    device: Device,
    threads: int,
    limits: Limits | None = None,
    kv_cache: KvCacheType = "fp16",
    release_weights: bool = False,
) -> Decoder[Any]:
    """Load what runs this bundle's LLM; "auto" takes the fastest there is, and logs why if that is not the native one.

    Raises:
        BundleError: the bundle has no weights for it, or they cannot be used.
        ConfigError: there is no such decoder, or it has no such cache, or cannot release its weights.
        DeviceError: it does not run on this device.
        MissingExtraError: the native kernels were not built.
    """
    if name not in ("auto", "onnx", "native"):
        raise ConfigError(f"decoder is {name!r}; expected 'auto', 'onnx' or 'native'")
    if kv_cache not in ("fp16", "int8"):
        raise ConfigError(f"kv_cache is {kv_cache!r}; expected 'fp16' or 'int8'")
    if name == "native" and device != "cpu":
        raise DeviceError(f"the native decoder runs on a CPU, not on {device}; choose device='cpu' or decoder='onnx'")
    if name == "native" or (name == "auto" and device == "cpu" and _native_runs(bundle)):
        return NativeDecoder.load(bundle, threads, None, limits, kv_cache, release_weights)
    if kv_cache == "int8":
        raise ConfigError("kv_cache is 'int8', but this bundle runs on the onnx decoder, which has none; leave it out")
    if release_weights:
        raise ConfigError("release_weights is True, but this bundle runs on the onnx decoder, which keeps a copy")
    return OnnxDecoder.load(bundle, device, threads, limits)


def _native_runs(bundle: Bundle) -> bool:
    weights = bundle.manifest.llm.weights
    if weights.native is None:
        return False
    try:
        kernels()
    except MissingExtraError as error:
        if weights.onnx is None:
            raise
        logging.getLogger("salmonrun").warning("the LLM runs on ONNX Runtime: %s", error)
        return False
    return True
