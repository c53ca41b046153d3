"""Where it was measured, and how much memory it took."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from salmonrun.runtime import __version__
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.device import is_gpu
from salmonrun.runtime.errors import DeviceError
from salmonrun.runtime.onnx_runtime import onnxruntime
from salmonrun.runtime.report import peak_resident_bytes, resident_bytes


def describe_machine() -> dict[str, str | int]:
    """Processor, memory, system and versions."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_mb": _memory_bytes() // 2**20,
        "system": platform.platform(),
        "python": platform.python_version(),
        "salmonrun": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


@dataclass(frozen=True)
class Memory:
    """Of this process, in MiB."""

    loaded_mb: float  # resident when the bundle was loaded
    load_peak_mb: float  # at most until then
    steady_mb: float  # resident after the last repetition
    peak_mb: float  # at most since the bundle was loaded, where that can be told apart, else at all
    peak_is_since_load: bool
    device_mb: float | None = None  # of the GPU, after the last repetition: the arena of ONNX Runtime never shrinks


class MemoryMeter:
    """Resident memory from here on; make one when the bundle is loaded.

    Raises:
        DeviceError: the system does not say what that is.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._loaded, self._load_peak = _mib(resident_bytes()), _mib(peak_resident_bytes())
        self._reset = _reset_peak()

    def read(self) -> Memory:
        """What was taken until now."""
        return Memory(
            loaded_mb=self._loaded,
            load_peak_mb=self._load_peak,
            steady_mb=_mib(resident_bytes()),
            peak_mb=_mib(peak_resident_bytes()),
            peak_is_since_load=self._reset,
            device_mb=_device_mb() if is_gpu(self._device) else None,
        )


def _mib(size: int | None) -> float:
    if size is None:
        raise DeviceError(f"{platform.system()} does not say how much memory a process has; measure on Linux or macOS")
    return size / 2**20


def _reset_peak() -> bool:
    """Have Linux count the peak anew (proc(5), clear_refs); whether it does."""
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _device_mb() -> float | None:
    """GPU memory of this process, as the driver tells it; it may not, in a container."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    rows = [line.split(", ") for line in lines]
    own = [row[1] for row in rows if row[0] == str(os.getpid())]
    return sum(map(float, own)) if own and all(used.isdigit() for used in own) else None
