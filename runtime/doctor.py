"""What this machine can run, and why not the rest. Nothing is computed for it, and PyTorch is not imported."""

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.cuda.driver import Driver, Gpu, NoDriverError, read_driver
from salmonrun.runtime.cuda.pytorch import pytorch_cuda
from salmonrun.runtime.errors import MissingExtraError
from salmonrun.runtime.matrices import kernels

CPUINFO = Path("/proc/cpuinfo")
# What kernels for matrix products ask for, of x86 and of ARM.
FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
State = Literal["ok", "missing", "optional"]
Part = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Finding:
    """One line: something that is there, or is not."""

    part: Part  # that it is for
    name: str
    state: State  # "optional": it is not there, and something else does its work
    found: str
    remedy: str = ""  # what to do if it is not there


@dataclass(frozen=True)
class Diagnosis:
    """All there is to say."""

    findings: tuple[Finding, ...]

    def runs_on(self, part: Part) -> bool:
        """Whether nothing is missing for it."""
        return not any(one.part == part and one.state == "missing" for one in self.findings)


def examine() -> Diagnosis:
    """Look at everything."""
    return Diagnosis((*_cpu(), *_gpu()))


def _cpu() -> Iterator[Finding]:
    processor, flags = _processor()
    yield Finding("cpu", "processor", "ok", f"{processor}, {usable_cores()} cores to use")
    yield Finding("cpu", "flags", "ok", " ".join(flags) or "none of those that kernels ask for")
    native = _native()
    yield native
    try:
        onnxruntime = _onnxruntime()
    except MissingExtraError as error:
        yield Finding("cpu", "onnxruntime", "missing", "not installed", _remedy(str(error)))
        return
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    yield Finding("cpu", "onnxruntime", "ok", f"{onnxruntime.__version__}, providers {providers}")


def _native() -> Finding:
    try:
        first, *others = kernels().instruction_sets()
    except MissingExtraError as error:
        return Finding("cpu", "native kernels", "optional", "not built: ONNX Runtime does their work", str(error))
    beside = f" (slower ones: {', '.join(others)})" if others else ""
    return Finding("cpu", "native kernels", "ok", f"built, run with {first}{beside}")


def _gpu() -> Iterator[Finding]:
    driver = None
    try:
        driver = read_driver()
        yield Finding("gpu", "driver", "ok", f"runs CUDA {_dotted(driver.cuda)}")
    except NoDriverError as error:
        remedy = "install NVIDIA's driver, or give the container its GPUs (docker run --gpus all)"
        yield Finding("gpu", "driver", "missing", str(error), remedy)
    for index, gpu in enumerate(driver.gpus if driver else ()):
        yield _one_gpu(index, gpu)
    yield from _cuda_of_onnxruntime(driver)
    yield _pytorch()
    better = "attention is computed by scaled_dot_product_attention"
    build = "pip install flash-attn --no-build-isolation, which needs nvcc; for GPUs of capability 8.0 or more"
    yield _package("flash-attn", "flash_attn", better, build)
    yield _package("bitsandbytes", "bitsandbytes", "nf4 is dequantized for each product", "pip install bitsandbytes")
    yield _package(
        "triton",
        "triton",
        "our own kernels for GPUs, which run where they are chosen, cannot be",
        "it comes with PyTorch for CUDA; else pip install 'salmonrun[triton]'",
    )


def _one_gpu(index: int, gpu: Gpu) -> Finding:
    from salmonrun.runtime.cuda.ready import LEAST_CAPABILITY

    free = "" if gpu.free_bytes is None else f", {gpu.free_bytes // 2**20} free"
    found = f"{gpu.name}, capability {_dotted(gpu.capability)}, {gpu.memory_bytes // 2**20} MiB{free}"
    if gpu.capability < LEAST_CAPABILITY:
        return Finding("gpu", f"cuda:{index}", "missing", found, f"at least {_dotted(LEAST_CAPABILITY)} is needed")
    return Finding("gpu", f"cuda:{index}", "ok", found)


def _cuda_of_onnxruntime(driver: Driver | None) -> Iterator[Finding]:
    """The provider, and what it is linked with."""
    try:
        from salmonrun.runtime.cuda import ready
    except MissingExtraError:
        yield Finding("gpu", "CUDA provider", "missing", "no onnxruntime", "pip install 'salmonrun[cuda]'")
        return
    if problems := ready.wheel_problems():
        yield Finding("gpu", "CUDA provider", "missing", *_halves(problems[0]))
        return
    version = f"of onnxruntime, made with CUDA {ready.cuda_major()}"
    outdated = ready.driver_problems(driver) if driver else []
    yield Finding(
        "gpu", "CUDA provider", "missing" if outdated else "ok", *(_halves(outdated[0]) if outdated else (version,))
    )
    if problems := ready.library_problems():
        yield Finding("gpu", "CUDA libraries", "missing", *_halves(problems[0]))
    else:
        yield Finding("gpu", "CUDA libraries", "ok", "all that the provider is linked with")


def _pytorch() -> Finding:
    needs = "LLMs run on ONNX Runtime, those exported with --decoder torch not at all"
    if importlib.util.find_spec("torch") is None:
        return Finding("gpu", "torch", "optional", f"not installed: {needs}", "pip install 'salmonrun[torch]'")
    version, cuda = metadata.version("torch"), pytorch_cuda()
    if cuda is None:
        remedy = "install the wheel for CUDA from PyPI"
        return Finding("gpu", "torch", "optional", f"{version}, made without CUDA: {needs}", remedy)
    return Finding("gpu", "torch", "ok", f"{version}, made with CUDA {cuda}")


def _package(title: str, module: str, without: str, remedy: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding("gpu", title, "optional", f"not installed: {without}", remedy)
    return Finding("gpu", title, "ok", metadata.version(title))


def _processor() -> tuple[str, list[str]]:
    """Its name, and which of FLAGS it has."""
    try:
        lines = [line.split(":", 1) for line in CPUINFO.read_text().splitlines() if ":" in line]
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), []
    fields = {key.strip(): value.strip() for key, value in reversed(lines)}  # the first processor's
    known = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), [flag for flag in FLAGS if flag in known]


def _onnxruntime() -> ModuleType:
    from salmonrun.runtime.onnx_runtime import onnxruntime

    module: ModuleType = onnxruntime
    return module


def _halves(problem: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    wrong, _, remedy = problem.partition(": ")
    return wrong, remedy


def _remedy(message: str) -> str:
    return message.partition(": ")[2] or message


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
