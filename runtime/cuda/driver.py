"""NVIDIA's driver: its version, and the GPUs it has. Read by ctypes, so that nothing needs to be installed for it.

The functions are those of CUDA's driver API and of NVML, which come with the driver itself.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Gpu:
    """One of the GPUs that this process may see."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    free_bytes: int | None  # now, whoever uses the rest; None: the driver does not say


@dataclass(frozen=True)
class Driver:
    """A driver that works."""

    cuda: tuple[int, int]  # the newest CUDA that it runs
    gpus: tuple[Gpu, ...]


class NoDriverError(Exception):
    """There is no driver, or it does not work; says why."""


def read_driver(cuda: str = CUDA, nvml: str = NVML) -> Driver:
    """Ask the driver. Nothing is computed, and no memory of a GPU taken.

    Raises:
        NoDriverError: there is none, or it does not work.
    """
    try:
        library = ctypes.CDLL(cuda)
    except OSError as error:
        raise NoDriverError(f"NVIDIA's driver is not installed ({error})") from error
    status = library.cuInit(0)
    if status == _NO_DEVICE:
        raise NoDriverError("NVIDIA's driver is there, but sees no GPU")
    if status:
        raise NoDriverError(f"NVIDIA's driver does not start ({_why(library, status)})")
    version, count = _number(library.cuDriverGetVersion), _number(library.cuDeviceGetCount)
    free = _free_memory(nvml)
    return Driver((version // 1000, version % 1000 // 10), tuple(_gpu(library, index, free) for index in range(count)))


def _gpu(library: ctypes.CDLL, index: int, free: Callable[[bytes], int | None]) -> Gpu:
    device, size = _number(library.cuDeviceGet, index), ctypes.c_size_t()
    name, address = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    library.cuDeviceGetName(name, 256, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    library.cuDeviceGetPCIBusId(address, 32, device)
    major, minor = (_number(library.cuDeviceGetAttribute, attribute, device) for attribute in (_MAJOR, _MINOR))
    return Gpu(name.value.decode(errors="replace"), (major, minor), size.value, free(address.value))


def _number(function: Any, *arguments: int) -> int:
    """What a function of the driver API writes to its first argument."""
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value


def _why(library: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    return (text.value or b"").decode(errors="replace") or f"error {status}"


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _free_memory(nvml: str) -> Callable[[bytes], int | None]:
    """From a GPU's address on the PCI bus to its free memory. The driver API would have to start computing to know."""
    try:
        library = ctypes.CDLL(nvml)
    except OSError:
        return lambda _: None
    if library.nvmlInit_v2():
        return lambda _: None

    def free(address: bytes) -> int | None:
        handle, memory = ctypes.c_void_p(), _Memory()
        found = not library.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle))
        return int(memory.free) if found and not library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else None

    return free
