"""Encoders and Q-Former on both sides of the gate, each loaded, run and freed in turn: memory holds one at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from salmonrun.export.parity.half import LARGEST, SimulatedHalf
from salmonrun.runtime.arrays import Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.encoder import run_whisper, whisper_inputs
from salmonrun.runtime.encoders import load_encoder
from salmonrun.runtime.errors import ParityError
from salmonrun.runtime.features import fbank, log_mel, whisper_frames
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.runtime.session import Graph, load_graph
from salmonrun.training.checkpoint import Checkpoint, load_audio_encoder, load_qformer, load_whisper

F32 = npt.NDArray[np.float32]
# A part, and the inputs of several runs of it -> what each run gives.
PartRunner = Callable[[str, Sequence[Sequence[F32]]], list[F32]]


def features(source: Checkpoint, config: AudioConfig, pcm: F32) -> dict[str, F32]:
    """Batched input of each encoder."""
    frames = whisper_frames(len(pcm), config, source.config.qformer.window)
    found = {"whisper": log_mel(pcm, config, 2 * frames)[None]}
    if source.config.audio_encoder:
        found["audio_encoder"] = fbank(pcm, source.config.audio_encoder.fbank)[None]
    return found


def audio_embeds(run: PartRunner, recordings: Sequence[dict[str, F32]]) -> list[F32]:
    """Audio embeddings [N, dim] of the features of several recordings."""
    states = [run(part, [[each[part]] for each in recordings]) for part in recordings[0]]
    return [embeds[0] for embeds in run("qformer", list(zip(*states, strict=True)))]


def bundled(bundle: Bundle, runtime: EncoderRuntime) -> PartRunner:
    """The bundle's side, its encoders on one of the runtimes that it has weights of them for."""

    def run(part: str, inputs: Sequence[Sequence[F32]]) -> list[F32]:
        if part == "qformer":
            graph = load_graph(bundle, part, "cpu", usable_cores())
            names = [spec.name for spec in graph.spec.inputs]
            return [graph.run(**dict(zip(names, arrays, strict=True))) for arrays in inputs]
        encoder = load_encoder(bundle, part, runtime, "cpu", usable_cores())
        if part == "whisper":
            return [run_whisper(encoder, log_mels[0])[None] for (log_mels,) in inputs]
        return [encoder.run(fbank=bank) for (bank,) in inputs]

    return run


def in_half(bundle: Bundle) -> PartRunner:
    """The bundle's side as a GPU computes it in half precision, simulated.

    Raises:
        ParityError: when it is run, of a part in which something is too large for 16 bits.
    """

    def run(part: str, inputs: Sequence[Sequence[F32]]) -> list[F32]:
        simulated = SimulatedHalf(bundle, part, usable_cores())
        found = [simulated.run(**half_inputs(simulated.graph, arrays)) for arrays in inputs]
        if any(each.overflows for each in found):
            raise ParityError(
                f"{part}: something in it is larger than {LARGEST:g}, which 16 bits cannot hold; "
                "use --encoder-precision fp32"
            )
        return [each.result for each in found]

    return run


def half_inputs(graph: Graph, arrays: Sequence[F32]) -> dict[str, Array]:
    """What a part's graph is given: its features, or of the Q-Former both encoders' states, each [1, ...]."""
    if graph.name == "whisper":
        return whisper_inputs(graph, arrays[0][0])
    names = [spec.name for spec in graph.spec.inputs if spec not in graph.spec.past]
    return dict(zip(names, arrays, strict=True))


def modules_of(source: Checkpoint, dtype: torch.dtype = torch.float32) -> PartRunner:
    """PyTorch's side; in another type its weights, what it is given and all that it computes."""
    loaders: dict[str, Callable[[Checkpoint], torch.nn.Module]] = {
        "whisper": load_whisper,
        "audio_encoder": load_audio_encoder,
        "qformer": load_qformer,
    }

    def run(part: str, inputs: Sequence[Sequence[F32]]) -> list[F32]:
        module = loaders[part](source).to(dtype)
        with torch.inference_mode():
            runs = [module(*(torch.from_numpy(array).to(dtype) for array in arrays)) for arrays in inputs]
        return [result.float().numpy() for result in runs]

    return run
