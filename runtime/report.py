"""What really runs, read from the loaded objects and not from what was asked for."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.encoder import AudioEncoder


@dataclass(frozen=True)
class Report:
    """State of a loaded engine."""

    bundle: str
    model: str
    decoder: str
    providers: dict[str, tuple[str, ...]]  # graph -> execution providers in use
    precision: dict[str, str]
    window: str  # "padded" (exact) or "trimmed"
    threads: int
    onnxruntime: str
    bundle_bytes: int
    resident_bytes: int  # of this process, now
    peak_resident_bytes: int


def describe(bundle: Bundle, encoder: AudioEncoder, decoder: OnnxDecoder) -> Report:
    """Collect the report."""
    manifest = bundle.manifest
    graphs = {**encoder.graphs, "llm": decoder.graph}
    precision = {part: value for part, value in vars(manifest.precision).items() if value is not None}
    return Report(
        bundle=str(bundle.folder),
        model=manifest.provenance.model,
        decoder=decoder.name,
        providers={name: tuple(graph.providers) for name, graph in graphs.items()},
        precision=precision,
        window=manifest.audio.window,
        threads=decoder.graph.session.get_session_options().intra_op_num_threads,
        onnxruntime=onnxruntime.__version__,
        bundle_bytes=sum(file.size for file in manifest.files.values()),
        resident_bytes=resident_bytes(),
        peak_resident_bytes=peak_resident_bytes(),
    )


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: the peak is the best that is known
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most that was resident since the process started, or since Linux was told to count anew."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not ru_maxrss: it also counts what the process was before it was replaced by this one (exec).
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
