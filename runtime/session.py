"""ONNX Runtime sessions: providers, threads, and graphs called by name."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.cuda.memory import session_limit
from salmonrun.runtime.cuda.ready import PROVIDER, look_for_gpu
from salmonrun.runtime.device import Device, gpu_index, is_gpu
from salmonrun.runtime.errors import BundleError, DeviceError, ResourceError
from salmonrun.runtime.exhausted import exhausted
from salmonrun.runtime.manifest import GraphSpec
from salmonrun.runtime.onnx_runtime import onnxruntime


@dataclass(frozen=True)
class Graph:
    """A loaded graph, and how it is called. That of an encoder satisfies `EncoderPart`."""

    instruction_set: ClassVar[None] = None  # ONNX Runtime does not say which it uses

    name: str
    session: onnxruntime.InferenceSession
    spec: GraphSpec
    device: Device = "cpu"
    elsewhere: tuple[str, ...] = ()  # of a session on a GPU: operators that are not computed there

    def run(self, **inputs: Array) -> F32:
        """The graph's result on its own: an encoder that hears in blocks has heard nothing before."""
        return self._run([self.spec.result], inputs | self.nothing_past())[0]

    def run_there(self, **inputs: "Array | onnxruntime.OrtValue") -> onnxruntime.OrtValue:
        """The result as `run` has it, left on the device, where inputs that are there are read."""
        binding, memory = self.session.io_binding(), memory_of(self.device)
        for name, value in (inputs | self.nothing_past()).items():
            there = value if isinstance(value, onnxruntime.OrtValue) else _put(value, memory)
            binding.bind_ortvalue_input(name, there)
        binding.bind_output(self.spec.result, *memory)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def run_on(self, past: dict[str, Array], **inputs: Array) -> tuple[F32, dict[str, Array]]:
        """The graph's result behind what `past` has kept, and what there is to keep now."""
        names = [self.spec.result, *(spec.name.replace("past_", "present_") for spec in self.spec.past)]
        result, *present = self._run(names, inputs | past)
        return result, dict(zip(past, present, strict=True))

    def _run(self, names: list[str], inputs: dict[str, Array]) -> list[F32]:
        """The outputs of these names, as the manifest describes them.

        Raises:
            BundleError: the graph cannot be computed, or gives something else.
            ResourceError: there is no memory for it.
        """
        with running(self.name):
            outputs: list[F32] = self.session.run(names, inputs)
        described = {spec.name: spec for spec in self.spec.outputs}
        for name, output in zip(names, outputs, strict=True):
            dims = described[name].dims
            fits = len(dims) == output.ndim and all(
                size == dim for size, dim in zip(output.shape, dims, strict=True) if isinstance(dim, int)
            )
            if not fits:
                raise BundleError(
                    f"graph {self.name} gives {name} {list(output.shape)}; the manifest says {list(dims)}: export again"
                )
        return outputs

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


@contextmanager
def running(name: str) -> Iterator[None]:
    """What ONNX Runtime raises while it computes a graph, in our words.

    Raises:
        BundleError: the graph cannot be computed.
        ResourceError: there is no memory for it.
    """
    try:
        yield
    except Exception as error:  # onnxruntime raises many types, all derived from Exception
        reason = " ".join(str(error).split())[:500]
        if lacking := exhausted(error):
            raise ResourceError(f"there is no memory to compute graph {name}: {lacking}") from error
        raise BundleError(
            f"graph {name} cannot be computed by onnxruntime {onnxruntime.__version__}: {reason}; "
            "export the bundle again, or report it if it was exported by this version"
        ) from error


def load_graph(bundle: Bundle, name: str, device: Device, threads: int, limits: Limits | None = None) -> Graph:
    """Create the session of one graph.

    Raises:
        BundleError: the bundle has no such graph, or ONNX Runtime does not accept it.
        DeviceError: the CUDA provider could not be started.
    """
    spec = bundle.graph(name)
    path = bundle.path(spec.file)
    options = session_options(threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1" if is_gpu(device) else "0")
    providers = _providers(device, session_limit(bundle, name, limits))
    try:
        if bundle.private and spec.weights in bundle.manifest.files:
            content = bundle.path(spec.weights).read_bytes()
            options.add_external_initializers_from_files_in_memory([Path(spec.weights).name], [content], [len(content)])
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises many types, all derived from Exception
        raise BundleError(f"{path} cannot be loaded by onnxruntime {onnxruntime.__version__}: {error}") from error
    # Where the provider does not start, ONNX Runtime takes the CPU without an error, whatever `enable_fallback` is.
    if is_gpu(device) and PROVIDER not in session.get_providers():
        problems = "; ".join(look_for_gpu(device)[1]) or "ONNX Runtime's own lines above say why"
        raise DeviceError(
            f"device={device!r}, but ONNX Runtime gave {name} {', '.join(session.get_providers())}: {problems}"
        )
    return Graph(name, session, spec, device, _placed_elsewhere(session) if is_gpu(device) else ())


def memory_of(device: Device) -> tuple[str, int]:
    """What ONNX Runtime calls the memory of a device."""
    return ("cuda", gpu_index(device)) if is_gpu(device) else ("cpu", 0)


def _put(array: Array, memory: tuple[str, int]) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *memory)


def _providers(device: Device, memory_limit: int | None) -> list[Any]:
    """With explicit options of CUDA's: TensorFloat-32 would round what is float32 to 10 bits."""
    if not is_gpu(device):
        return ["CPUExecutionProvider"]
    options = {
        "device_id": str(gpu_index(device)),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        **({} if memory_limit is None else {"gpu_mem_limit": str(memory_limit)}),
    }
    return [(PROVIDER, options), "CPUExecutionProvider"]


def _placed_elsewhere(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """Operators that ONNX Runtime gave to another provider than CUDA's, and how many of each: "Shape x3 on CPU"."""
    nodes = Counter(
        (node.op_type, part.ep_name.removesuffix("ExecutionProvider"))
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDER
        for node in part.get_nodes()
    )
    return tuple(f"{operator} x{count} on {provider}" for (operator, provider), count in sorted(nodes.items()))


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every session: `threads` for one run, errors alone in the log, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Each session has its own pool; one that is not running must not spin on the cores another needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options
