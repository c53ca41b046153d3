"""How much of a GPU's memory a bundle takes, and what of it each of ONNX Runtime's sessions may take."""

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.cuda.driver import Gpu
from salmonrun.runtime.device import Device
from salmonrun.runtime.errors import DeviceError

MIB = 2**20


def require_memory(bundle: Bundle, device: Device, gpu: Gpu, limits: Limits) -> None:
    """Refuse a bundle whose weights, and the keys and values that are asked for, a GPU has no memory for now.

    Raises:
        DeviceError: says what is needed, and what is free or allowed.
    """
    weights = sum(weights_on_gpu(bundle).values())
    needed = weights + (limits.max_cache_mib or 0) * MIB
    free = gpu.memory_bytes if gpu.free_bytes is None else gpu.free_bytes
    there = f"{gpu.name} has {free // MIB} of {gpu.memory_bytes // MIB} MiB free"
    if limits.max_gpu_mib is not None and limits.max_gpu_mib * MIB < free:
        free, there = limits.max_gpu_mib * MIB, f"Limits(max_gpu_mib={limits.max_gpu_mib}) allows no more"
    if needed > free:
        raise DeviceError(
            f"device={device!r} has too little memory: {bundle.folder} needs {needed // MIB} MiB for weights and keys "
            f"and values, and more to compute, but {there}: end what runs on it, take another GPU, or export with a "
            "lower --llm-precision"
        )


def session_limit(bundle: Bundle, part: str, limits: Limits | None) -> int | None:
    """Bytes that the session of one graph may take: of what the limits leave, as large a share as its weights are."""
    if limits is None or limits.max_gpu_mib is None:
        return None
    weights = weights_on_gpu(bundle)
    left = (limits.max_gpu_mib - (limits.max_cache_mib or 0)) * MIB
    return max(MIB, left * weights[part] // max(1, sum(weights.values())))


def weights_on_gpu(bundle: Bundle) -> dict[str, int]:
    """Bytes of the weights of each part; of an LLM that two decoders can run, the larger ones."""
    manifest = bundle.manifest
    sizes = {
        name: sum(manifest.files[file].size for file in (graph.file, graph.weights) if file in manifest.files)
        for name, graph in manifest.graphs.items()
    }
    torch = manifest.llm.weights.torch
    if torch is not None:
        files = (torch.file, manifest.llm.embedding.file)
        sizes["llm"] = max(sizes.get("llm", 0), sum(manifest.files[file].size for file in files))
    return sizes
