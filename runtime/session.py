"""ONNX Runtime sessions: providers, threads, and graphs called by name."""

from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar, Literal

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import BundleError, DeviceError
from salmonrun.runtime.manifest import GraphSpec
from salmonrun.runtime.onnx_runtime import onnxruntime

Device = Literal["cpu", "cuda"]


def resolve_device(device: str, target: str) -> Device:
    """The device to run on: "auto" takes what the bundle was exported for, if it is there.

    Raises:
        DeviceError: the device asked for is not there, or the bundle was not exported for it.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device is {device!r}; expected 'auto', 'cpu' or 'cuda'")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise DeviceError(f"device='cuda', but this onnxruntime has no CUDA provider; {_cuda_advice()}")
    if device == "cuda" and target != "cuda":
        raise DeviceError("device='cuda', but the bundle was exported for the CPU; export it with --target cuda")
    if device == "auto":
        return "cuda" if has_cuda and target == "cuda" else "cpu"
    return "cuda" if device == "cuda" else "cpu"


def _cuda_advice() -> str:
    installed = {dist.name for dist in metadata.distributions() if dist.name in ("onnxruntime", "onnxruntime-gpu")}
    if "onnxruntime-gpu" in installed and "onnxruntime" in installed:
        return (
            "both onnxruntime and onnxruntime-gpu are installed and overwrite each other: "
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'salmonrun[cuda]'"
        )
    return "pip uninstall onnxruntime, then pip install 'salmonrun[cuda]'"


@dataclass(frozen=True)
class Graph:
    """A loaded graph, and how it is called. That of an encoder satisfies `EncoderPart`."""

    instruction_set: ClassVar[None] = None  # ONNX Runtime does not say which it uses

    name: str
    session: onnxruntime.InferenceSession
    spec: GraphSpec

    def run(self, **inputs: Array) -> F32:
        """The graph's result on its own: an encoder that hears in blocks has heard nothing before."""
        outputs: list[F32] = self.session.run([self.spec.result], inputs | self.nothing_past())
        return outputs[0]

    def run_on(self, past: dict[str, Array], **inputs: Array) -> tuple[F32, dict[str, Array]]:
        """The graph's result behind what `past` has kept, and what there is to keep now."""
        names = [self.spec.result, *(spec.name.replace("past_", "present_") for spec in self.spec.past)]
        result, *present = self.session.run(names, inputs | past)
        return result, dict(zip(past, present, strict=True))

    def nothing_past(self) -> dict[str, Array]:
        """What has been kept before the first block: zeros, and no keys and values."""
        shapes = {spec.name: tuple(dim if isinstance(dim, int) else 0 for dim in spec.dims) for spec in self.spec.past}
        return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    @property
    def hears_blocks(self) -> bool:
        """Whether it goes on from what earlier runs have kept."""
        return bool(self.spec.past)

    @property
    def width(self) -> int:
        """Of its result's last axis."""
        size = next(spec.dims[-1] for spec in self.spec.outputs if spec.name == self.spec.result)
        assert isinstance(size, int), "check_signatures has seen to it"
        return size

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers really in use, first choice first."""
        return tuple(self.session.get_providers())


def load_graph(bundle: Bundle, name: str, device: Device, threads: int) -> Graph:
    """Create the session of one graph.

    Raises:
        BundleError: the bundle has no such graph, or ONNX Runtime does not accept it.
        DeviceError: the CUDA provider could not be started.
    """
    spec = bundle.graph(name)
    path = bundle.path(spec.file)
    try:
        session = onnxruntime.InferenceSession(
            str(path), session_options(threads), providers=_providers(device), enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises many types, all derived from Exception
        raise BundleError(f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {error}") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceError(f"device='cuda', but {name} was given {session.get_providers()}; check the CUDA driver")
    return Graph(name, session, spec)


def _providers(device: Device) -> list[str]:
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every session: `threads` for one run, errors alone in the log, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Each session has its own pool; one that is not running must not spin on the cores another needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
