"""Whether ONNX Runtime and a bundle can run on a GPU here; what is missing otherwise, and what to do about it."""

import ctypes
import sys
from contextlib import redirect_stdout
from importlib import metadata

from salmonrun.runtime.cuda.driver import Driver, Gpu, NoDriverError, read_driver
from salmonrun.runtime.device import Device, gpu_index, is_gpu
from salmonrun.runtime.errors import DeviceError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.onnx_runtime import onnxruntime

PROVIDER = "CUDAExecutionProvider"
LEAST_CAPABILITY = (7, 5)  # of what CUDA 13, and the wheels made with it, have code for
# What the CUDA provider is linked with, by the major version of CUDA that it was made with; and cuDNN, which it loads
# for convolutions, which Whisper begins with.
LIBRARIES = {
    12: (
        "libcudart.so.12",
        "libcublasLt.so.12",
        "libcublas.so.12",
        "libcurand.so.10",
        "libcufft.so.11",
        "libcudnn.so.9",
    ),
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"),
}
_DRIVERS = {12: "525", 13: "580"}  # the first that runs it


def resolve_device(device: Device, target: str) -> Device:
    """The device to run on: "auto" takes a GPU if the bundle was exported for one, and logs why it cannot.

    Args:
        device: "auto", or one that is there.
        target: of the bundle.

    Raises:
        DeviceError: the bundle was not exported for the device.
    """
    if is_gpu(device) and target != "cuda":
        raise DeviceError(f"device={device!r}, but the bundle was exported for the CPU; export it with --target cuda")
    if device != "auto":
        return device
    if target != "cuda":
        return "cpu"
    _, problems = look_for_gpu("cuda")
    if problems:
        LOGGER.warning("the bundle, exported for a GPU, runs on the CPU: %s", "; ".join(problems))
    return "cpu" if problems else "cuda"


def require_gpu(device: Device) -> Gpu:
    """The GPU that a device's name means; ONNX Runtime can use it.

    Raises:
        DeviceError: lists all that is missing.
    """
    gpu, problems = look_for_gpu(device)
    if gpu is None or problems:
        listed = "; ".join(problems)
        raise DeviceError(f"device={device!r} cannot be used: {listed}. salmonrun doctor says more")
    return gpu


def look_for_gpu(device: Device) -> tuple[Gpu | None, list[str]]:
    """The GPU of this name, if there is one, and why it cannot be used, each with what to do about it."""
    wheel = wheel_problems()
    libraries = [] if wheel else library_problems()
    try:
        driver = read_driver()
    except NoDriverError as error:
        missing = f"{error}: install it, or give the container its GPUs (docker run --gpus all)"
        return None, [*wheel, missing, *libraries]
    gpu, wrong = _choose(driver, device)
    return gpu, [*wheel, *wrong, *driver_problems(driver), *libraries]


def _choose(driver: Driver, device: Device) -> tuple[Gpu | None, list[str]]:
    index = gpu_index(device)
    if index >= len(driver.gpus):
        seen = ", ".join(f"cuda:{i} ({gpu.name})" for i, gpu in enumerate(driver.gpus)) or "none"
        return None, [f"there is no GPU {index}: the driver shows {seen}, as CUDA_VISIBLE_DEVICES allows"]
    gpu = driver.gpus[index]
    if gpu.capability < LEAST_CAPABILITY:
        return gpu, [
            f"{gpu.name} has compute capability {_dotted(gpu.capability)}, at least {_dotted(LEAST_CAPABILITY)} "
            "is needed: take another GPU"
        ]
    return gpu, []


def wheel_problems() -> list[str]:
    """Whether the ONNX Runtime that is installed was made for CUDA."""
    if PROVIDER in onnxruntime.get_available_providers():
        return []
    names = {dist.name for dist in metadata.distributions()} & {"onnxruntime", "onnxruntime-gpu"}
    if len(names) == 2:
        return [
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'salmonrun[cuda]'"
        ]
    return ["this onnxruntime has no CUDA provider: pip uninstall onnxruntime, then pip install 'salmonrun[cuda]'"]


def driver_problems(driver: Driver) -> list[str]:
    """Whether the driver runs the CUDA that ONNX Runtime was made with."""
    major = cuda_major()
    if major is None or driver.cuda[0] >= major:
        return []
    least = f"install driver {_DRIVERS[major]} or newer" if major in _DRIVERS else "update it"
    return [f"onnxruntime was made with CUDA {major}, the driver runs CUDA {_dotted(driver.cuda)}: {least}"]


def library_problems() -> list[str]:
    """Which libraries of CUDA and cuDNN cannot be loaded. Those of NVIDIA's wheels are, if they are there."""
    names = LIBRARIES.get(cuda_major() or 0, ())
    missing = [name for name in names if not _loads(name)]
    if missing and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # where it says what it does not find
            onnxruntime.preload_dlls()
        missing = [name for name in missing if not _loads(name)]
    if not missing:
        return []
    return [f"{', '.join(missing)} cannot be loaded: pip install 'onnxruntime-gpu[cuda,cudnn]', or install CUDA itself"]


def cuda_major() -> int | None:
    """The major version of CUDA that ONNX Runtime was made with; None: it was not, or does not say."""
    version = str(getattr(onnxruntime, "cuda_version", "") or "")
    return int(version.partition(".")[0]) if version[:1].isdigit() else None


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
