"""Whether the PyTorch that is installed was made for GPUs, and for this driver. It is not imported to find out."""

import importlib.util
import re
from importlib import metadata
from pathlib import Path

from salmonrun.runtime.cuda.driver import NoDriverError, read_driver
from salmonrun.runtime.device import Device, is_gpu

NO_TORCH = "the torch decoder needs PyTorch, which is not installed: pip install 'salmonrun[torch]'"


def pytorch_cuda() -> str | None:
    """The version of CUDA that PyTorch was made with; None: it was made without, or is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    text = Path(spec.origin).with_name("version.py").read_text()
    made = re.search(r"^cuda.*= '([\d.]+)'", text, re.MULTILINE)
    return made[1] if made else None


def pytorch_problem(device: Device) -> str | None:
    """Why PyTorch cannot compute there, with what to do about it; None: it can, as far as versions say."""
    if importlib.util.find_spec("torch") is None:
        return NO_TORCH
    if not is_gpu(device):
        return None
    version, cuda = metadata.version("torch"), pytorch_cuda()
    if cuda is None:
        return (
            f"PyTorch {version} was made without CUDA: pip uninstall torch, then install the wheel for CUDA from PyPI"
        )
    try:
        driver = read_driver()
    except NoDriverError as error:
        return str(error)
    if driver.cuda[0] < int(cuda.partition(".")[0]):
        runs = ".".join(map(str, driver.cuda))
        return f"PyTorch {version} was made with CUDA {cuda}, the driver runs CUDA {runs}: update the driver"
    return None
