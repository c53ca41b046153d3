"""Names of devices: "cpu", "cuda", and, of several GPUs, "cuda:1"."""

import re

from salmonrun.runtime.errors import DeviceError

Device = str  # "cpu", "cuda" or "cuda:N"
_NAME = re.compile(r"cpu|cuda(:\d{1,3})?")


def check_device(device: object) -> None:
    """Refuse what is no device's name, nor "auto".

    Raises:
        DeviceError: says what is expected.
    """
    if device != "auto" and not (isinstance(device, str) and _NAME.fullmatch(device)):
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu', 'cuda' or, of several GPUs, 'cuda:1'")


def is_gpu(device: Device) -> bool:
    """Whether it is a GPU."""
    return device.startswith("cuda")


def gpu_index(device: Device) -> int:
    """The number of a GPU, among those that the process may see."""
    return int(device.partition(":")[2] or 0)
