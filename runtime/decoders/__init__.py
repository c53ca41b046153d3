"""What can run the LLM, and which of them does: `choose`."""

from typing import Any, Literal

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import KvCacheType, Limits
from salmonrun.runtime.cuda.pytorch import NO_TORCH, pytorch_problem
from salmonrun.runtime.decoder import Decoder
from salmonrun.runtime.decoders.native_decoder import NativeDecoder
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.device import Device
from salmonrun.runtime.errors import ConfigError, DeviceError, MissingExtraError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.matrices import kernels

DecoderName = Literal["auto", "onnx", "native", "torch"]


def choose(
    bundle: Bundle,
    name: DecoderName,
    device: Device,
    threads: int,
    limits: Limits | None = None,
    kv_cache: KvCacheType = "fp16",
    release_weights: bool = False,
) -> Decoder[Any]:
    """Load what runs this bundle's LLM; "auto" takes our own kernels on a CPU, PyTorch on a GPU, where the bundle has
    weights for them, and logs why if they cannot run.

    Raises:
        BundleError: the bundle has no weights for it, or they cannot be used.
        ConfigError: there is no such decoder, or it has no such cache, or cannot release its weights.
        DeviceError: it does not run on this device.
        MissingExtraError: the native kernels were not built, or PyTorch is not installed.
    """
    if name not in ("auto", "onnx", "native", "torch"):
        raise ConfigError(f"decoder is {name!r}; expected 'auto', 'onnx', 'native' or 'torch'")
    if kv_cache not in ("fp16", "int8"):
        raise ConfigError(f"kv_cache is {kv_cache!r}; expected 'fp16' or 'int8'")
    if name == "native" and device != "cpu":
        raise DeviceError(f"the native decoder runs on a CPU, not on {device}; choose device='cpu' or decoder='onnx'")
    if name == "native" or (name == "auto" and device == "cpu" and _native_runs(bundle)):
        return NativeDecoder.load(bundle, threads, None, limits, kv_cache, release_weights)
    other = "torch" if name == "torch" or (name == "auto" and _torch_runs(bundle, device)) else "onnx"
    if kv_cache == "int8":
        raise ConfigError(
            f"kv_cache is 'int8', but this bundle runs on the {other} decoder, which has none; leave it out"
        )
    if release_weights:
        raise ConfigError(f"release_weights is True, but this bundle runs on the {other} decoder, which keeps a copy")
    if other == "torch":
        return _load_torch(bundle, device, threads, limits)
    return OnnxDecoder.load(bundle, device, threads, limits)


def _torch_runs(bundle: Bundle, device: Device) -> bool:
    weights = bundle.manifest.llm.weights
    if weights.torch is None or (device == "cpu" and weights.onnx is not None):
        return False
    problem = pytorch_problem(device)
    if problem and weights.onnx is not None:
        LOGGER.warning("the LLM runs on ONNX Runtime: %s", problem)
        return False
    return True


def _load_torch(bundle: Bundle, device: Device, threads: int, limits: Limits | None) -> Decoder[Any]:
    try:
        from salmonrun.runtime.decoders.torch_decoder.decoder import TorchDecoder
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(NO_TORCH) from error
    if problem := pytorch_problem(device):
        raise DeviceError(
            f"device={device!r} cannot be used by the torch decoder: {problem}. salmonrun doctor says more"
        )
    return TorchDecoder.load(bundle, device, threads, limits)


def _native_runs(bundle: Bundle) -> bool:
    weights = bundle.manifest.llm.weights
    if weights.native is None:
        return False
    try:
        kernels()
    except MissingExtraError as error:
        if weights.onnx is None:
            raise
        LOGGER.warning("the LLM runs on ONNX Runtime: %s", error)
        return False
    return True
