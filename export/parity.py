"""The gate: stage by stage, what the bundle computes against what PyTorch computes; and the golden run it leaves behind.

Each side of a stage is loaded, run and freed in turn, so that memory holds one part at a time.
"""

import gc
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from runtime.audio import SAMPLE_RATE, Audio, load_audio
from runtime.bundle import Bundle, open_bundle
from runtime.check import GOLDEN, GOLDEN_TOKENS, save_golden
from runtime.errors import ParityError
from runtime.features import fbank, log_mel, whisper_frames
from runtime.onnx_decoder import OnnxDecoder
from runtime.prompt import prompt_ids
from runtime.session import load_graph, usable_cores
from runtime.tokenizer import Tokenizer
from training.checkpoint import Checkpoint, load_beats, load_llm, load_qformer, load_whisper

F32 = npt.NDArray[np.float32]
PARITY = "parity.json"
EXACT_TOLERANCE = 1e-4  # max abs difference of an fp32 bundle, for activations of order one
GOLDEN_PROMPT = "Describe the recording."


@dataclass(frozen=True)
class StageError:
    """Difference of one stage, bundle against PyTorch on the same input."""

    max_abs: float
    relative: float  # rms of the difference / rms of the reference
    scale: float  # rms of the reference

    @classmethod
    def between(cls, got: F32, reference: F32) -> "StageError":
        """Compare two arrays of one shape."""
        difference = got.astype(np.float64) - reference
        scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        relative = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-30)
        return cls(float(np.abs(difference).max()), relative, scale)


@dataclass(frozen=True)
class Parity:
    """parity.json."""

    stages: dict[str, StageError]  # each on the reference's input
    end_to_end: StageError  # logits along the greedy path, from the recording
    tokens_compared: int
    tokens_agreeing: int  # where PyTorch, after the same tokens, chooses the same next one
    greedy_tokens_equal: bool
    audio_s: float
    budget: float | None  # None: exact
    measured_with: dict[str, str]


def prove(
    source: Checkpoint, folder: Path, golden_audio: Audio | None, budget: float | None, progress: Callable[[str], None]
) -> Parity:
    """Measure, write parity.json and golden.npz into the bundle folder, and refuse a bundle that is off.

    Args:
        source: the checkpoint.
        folder: a bundle whose manifest does not yet list these two files.
        golden_audio: recording to compare on; None for a synthetic one.
        budget: largest relative error of any stage; None demands the exact tolerance and equal tokens.
        progress: told each stage's name when it begins.

    Raises:
        ParityError: names the stage and its error.
    """
    bundle = open_bundle(folder, verify=False)
    audio = golden_audio or synthetic_audio(source)
    parity = _measure(source, bundle, audio, budget, progress)
    (folder / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n")
    _judge(parity)
    return parity


def synthetic_audio(source: Checkpoint) -> Audio:
    """2.2 s of gliding, pulsing harmonics in noise: every band of both spectrograms moves."""
    seconds = min(2.2, source.config.audio.max_s)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 60 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 30)) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * time))
    noise = np.random.default_rng(0).standard_normal(len(time))
    pcm = (0.15 * voice + 0.01 * noise).astype(np.float32)
    return load_audio(pcm, SAMPLE_RATE, min_s=source.config.audio.min_s)


def _measure(
    source: Checkpoint, bundle: Bundle, audio: Audio, budget: float | None, progress: Callable[[str], None]
) -> Parity:
    config = bundle.manifest
    mel = log_mel(audio.pcm, config.audio.n_mels, 2 * whisper_frames(len(audio.pcm), config.audio, config.window))
    reference: dict[str, F32] = {}
    got: dict[str, F32] = {}
    stages: dict[str, StageError] = {}
    inputs = {"whisper": mel}
    if source.config.beats:
        inputs["beats"] = fbank(audio.pcm, config.audio)
    for name, features in inputs.items():
        progress(name)
        got[name] = _run_graph(bundle, name, features)
        module = load_whisper(source) if name == "whisper" else load_beats(source)
        reference[name] = _run_module(module, features[None])
        stages[name] = StageError.between(got[name], reference[name])
        del module
        gc.collect()
    progress("qformer")
    names = {"whisper": "speech", "beats": "audio"}
    graph = load_graph(bundle, "qformer", "cpu", usable_cores())
    same_input = graph.run(**{names[part]: states for part, states in reference.items()})
    got["qformer"] = graph.run(**{names[part]: got[part] for part in reference})
    reference["qformer"] = _run_module(load_qformer(source), *reference.values())
    stages["qformer"] = StageError.between(same_input, reference["qformer"])
    progress("llm")
    return _measure_llm(source, bundle, audio, got["qformer"][0], reference["qformer"][0], stages, budget)


def _measure_llm(
    source: Checkpoint,
    bundle: Bundle,
    audio: Audio,
    got_embeds: F32,
    reference_embeds: F32,
    stages: dict[str, StageError],
    budget: float | None,
) -> Parity:
    """Decode greedily with the bundle, then score the same tokens in one pass of PyTorch.

    If PyTorch's best token after every prefix is the bundle's, then PyTorch's own greedy search gives these tokens.
    """
    tokenizer = Tokenizer(bundle.path("tokenizer.json"))
    ids = prompt_ids(bundle.manifest.prompt, tokenizer, GOLDEN_PROMPT)
    decoder = OnnxDecoder(bundle, "cpu", usable_cores())

    def wrap(audio_embeds: F32) -> F32:
        return np.concatenate([decoder.embed(ids.before), audio_embeds, decoder.embed(ids.after)])

    tokens, logits = greedy_path(decoder, wrap(got_embeds))
    inputs = wrap(reference_embeds)
    with decoder.open(1, len(inputs) + len(tokens)) as (slot,):
        stage = [decoder.prefill(slot, inputs)[None], decoder.verify(slot, tokens[:-1])]
    embedded = np.concatenate([inputs, decoder.embed(tokens[:-1])])
    del decoder
    gc.collect()
    with torch.inference_mode():
        output = load_llm(source)(inputs_embeds=torch.from_numpy(embedded)[None], logits_to_keep=len(tokens))
    expected = output.logits[0].float().numpy()
    stages["llm"] = StageError.between(np.concatenate(stage), expected)
    agreeing = int((expected.argmax(axis=-1) == np.array(tokens)).sum())
    save_golden(bundle.folder / GOLDEN, audio.pcm, GOLDEN_PROMPT, tokens, logits, exact=budget is None)
    return Parity(
        stages=stages,
        end_to_end=StageError.between(logits, expected),
        tokens_compared=len(tokens),
        tokens_agreeing=agreeing,
        greedy_tokens_equal=agreeing == len(tokens),
        audio_s=audio.duration_s,
        budget=budget,
        measured_with=_versions(),
    )


def greedy_path(decoder: OnnxDecoder, inputs_embeds: F32) -> tuple[list[int], F32]:
    """GOLDEN_TOKENS greedy tokens, stop tokens ignored, and the logits [n, V] each was chosen from."""
    with decoder.open(1, len(inputs_embeds) + GOLDEN_TOKENS) as (slot,):
        logits = [decoder.prefill(slot, inputs_embeds)]
        while len(logits) < GOLDEN_TOKENS:
            logits.append(decoder.step([slot], [int(np.argmax(logits[-1]))])[0])
    return np.argmax(logits, axis=1).tolist(), np.stack(logits)


def _run_graph(bundle: Bundle, name: str, features: F32) -> F32:
    graph = load_graph(bundle, name, "cpu", usable_cores())
    output: F32 = graph.run(**{graph.spec.inputs[0].name: features[None]})
    return output


def _run_module(module: torch.nn.Module, *inputs: F32) -> F32:
    with torch.inference_mode():
        output: F32 = module(*map(torch.from_numpy, inputs)).numpy()
    return output


def _judge(parity: Parity) -> None:
    measured = {**parity.stages, "end to end": parity.end_to_end}
    for name, error in measured.items():
        if not np.isfinite(error.relative):
            raise ParityError(f"{name}: the bundle gives values that are not finite; the checkpoint may overflow")
        limit = EXACT_TOLERANCE * max(1.0, error.scale)
        if parity.budget is None and error.max_abs > limit:
            raise ParityError(f"{name}: largest difference {error.max_abs:.2e} exceeds {limit:.2e}; no bundle written")
        if parity.budget is not None and error.relative > parity.budget:
            raise ParityError(
                f"{name}: relative error {error.relative:.3f} exceeds the budget {parity.budget}; "
                "use a higher precision, or raise --parity-budget if the quality you measure is good enough"
            )
    if parity.budget is None and not parity.greedy_tokens_equal:
        raise ParityError(
            f"greedy tokens differ from PyTorch's at {parity.tokens_compared - parity.tokens_agreeing} "
            f"of {parity.tokens_compared} positions; no bundle written"
        )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
