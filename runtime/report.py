"""What really runs, read from the loaded objects and not from what was asked for."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from salmonrun.runtime.model import Model
from salmonrun.runtime.onnx_runtime import onnxruntime
from salmonrun.runtime.tensor_file import huge_page_bytes


@dataclass(frozen=True)
class Report:
    """State of a loaded engine."""

    bundle: str
    model: str
    encoder: str  # what runs Whisper and the audio encoder: "native" or "onnx"
    encoder_instruction_set: str | None  # of our own kernels; None: ONNX Runtime
    decoder: str
    device: str  # of the decoder
    instruction_set: str | None  # of the native decoder's kernels; None: another decoder
    huge_page_bytes: int | None  # of the native decoder's weights, in huge pages; None: not known, or another decoder
    kernels: dict[str, str]  # of the torch decoder: attention, products, activations, steps; none of another
    providers: dict[str, tuple[str, ...]]  # part -> execution providers in use; none of our own kernels
    elsewhere: dict[str, tuple[str, ...]]  # part -> operators that are not on the GPU that the part runs on
    precision: dict[str, str]
    window: str  # "padded" (exact) or "trimmed"
    threads: int
    onnxruntime: str
    bundle_bytes: int
    cache_bytes: int  # reserved for keys and values, now
    resident_bytes: int | None  # of this process, now; None: the system does not say
    peak_resident_bytes: int | None

    @property
    def summary(self) -> str:
        """What runs where, in a line."""
        return (
            f"{self.bundle} ({self.model}): encoders {self.encoder}, decoder {self.decoder} on {self.device}, "
            f"{self.threads} threads, onnxruntime {self.onnxruntime}"
        )


def describe(model: Model) -> Report:
    """Collect the report."""
    manifest, decoder = model.bundle.manifest, model.decoder.describe()
    parts = {**model.encoder.parts, "qformer": model.encoder.qformer_graph}
    elsewhere = {**{name: part.elsewhere for name, part in parts.items()}, "llm": decoder.elsewhere}
    return Report(
        bundle=str(model.bundle.folder),
        model=manifest.provenance.model,
        encoder=model.encoder.runtime,
        encoder_instruction_set=model.encoder.parts["whisper"].instruction_set,
        decoder=decoder.name,
        device=decoder.device,
        instruction_set=decoder.instruction_set,
        huge_page_bytes=huge_page_bytes(decoder.weights) if decoder.weights else None,
        kernels=decoder.kernels,
        providers={**{name: part.providers for name, part in parts.items()}, "llm": decoder.providers},
        elsewhere={name: nodes for name, nodes in elsewhere.items() if nodes},
        precision=manifest.precisions(decoder.name),
        window=manifest.audio.window,
        threads=decoder.threads,
        onnxruntime=onnxruntime.__version__,
        bundle_bytes=sum(file.size for file in manifest.files.values()),
        cache_bytes=decoder.cache_bytes,
        resident_bytes=resident_bytes(),
        peak_resident_bytes=peak_resident_bytes(),
    )


def resident_bytes() -> int | None:
    """Memory of this process that is resident now; None where the system does not say, such as on Windows."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the peak is the best that is known
        return peak_resident_bytes()


def peak_resident_bytes() -> int | None:
    """The most that was resident since the process started, or since Linux was told to count anew; None: not known."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return _peak_of_usage()
    # Not ru_maxrss: it also counts what the process was before it was replaced by this one (exec).
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _peak_of_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows, WebAssembly
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
