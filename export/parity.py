"""The gate: stage by stage, what the bundle computes against what PyTorch computes.

Each side of a stage is loaded, run and freed in turn, so that memory holds one part at a time.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from transformers import PreTrainedModel

from runtime.audio import SAMPLE_RATE, Audio, load_audio
from runtime.bundle import Bundle, open_bundle
from runtime.check import GOLDEN, GOLDEN_TOKENS, save_golden
from runtime.config import AudioConfig, Block, BlockConfig
from runtime.encoder import AudioEncoder, hear_speech
from runtime.errors import ParityError
from runtime.features import fbank, log_mel, whisper_frames
from runtime.onnx_decoder import OnnxDecoder
from runtime.prompt import PromptIds, prompt_ids
from runtime.session import load_graph, usable_cores
from runtime.streaming.block_encoder import FRAME, BlockEncoder
from runtime.tokenizer import Tokenizer
from training.checkpoint import Checkpoint, load_audio_encoder, load_llm, load_qformer, load_whisper

F32 = npt.NDArray[np.float32]
PARITY = "parity.json"
EXACT_TOLERANCE = 1e-4  # max abs difference of an fp32 bundle, for activations of order one
ROUNDING = 2e-5  # relative error that float32 rounding alone reaches where attention is peaked
BLOCKS_COMPARED = 4  # of each size
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
    window: StageError | None  # where the bundle trims and the checkpoint pads: what that does to PyTorch's own logits
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
    stages, got_embeds, reference_embeds = _measure_encoders(source, bundle, audio, progress)
    if bundle.manifest.streaming:
        stages |= _measure_blocks(source, bundle, bundle.manifest.streaming, audio)
    progress("llm")
    ran = _run_llm(bundle, got_embeds, reference_embeds)
    window = None
    llm = load_llm(source)
    expected = _reference_logits(llm, ran, reference_embeds)
    if bundle.manifest.audio.window != source.config.audio.window:
        as_trained = _reference_embeds(source, source.config.audio, audio)
        window = StageError.between(expected, _reference_logits(llm, ran, as_trained))
    stages["llm"] = StageError.between(ran.stage_logits, expected)
    agreeing = int((expected.argmax(axis=-1) == np.array(ran.tokens)).sum())
    save_golden(bundle.folder / GOLDEN, audio.pcm, GOLDEN_PROMPT, ran.tokens, ran.logits, exact=budget is None)
    return Parity(
        stages=stages,
        end_to_end=StageError.between(ran.logits, expected),
        tokens_compared=len(ran.tokens),
        tokens_agreeing=agreeing,
        greedy_tokens_equal=agreeing == len(ran.tokens),
        audio_s=audio.duration_s,
        budget=budget,
        window=window,
        measured_with=_versions(),
    )


def _measure_encoders(
    source: Checkpoint, bundle: Bundle, audio: Audio, progress: Callable[[str], None]
) -> tuple[dict[str, StageError], F32, F32]:
    """Errors of the encoder stages, and the audio embeddings [N, dim] of the bundle's own chain and of PyTorch's."""
    reference: dict[str, F32] = {}
    got: dict[str, F32] = {}
    features = _features(source, bundle.manifest.audio, audio.pcm)
    for part in features:
        progress(part)
        got[part] = _run_graph(bundle, part, features[part])
        reference[part] = _reference_states(source, part, features[part])
    stages = {part: StageError.between(got[part], reference[part]) for part in features}
    progress("qformer")
    alone = _run_graph(bundle, "qformer", *reference.values())
    embeds = _run_module(load_qformer(source), *reference.values())
    stages["qformer"] = StageError.between(alone, embeds)
    return stages, _run_graph(bundle, "qformer", *got.values())[0], embeds[0]


def _measure_blocks(source: Checkpoint, bundle: Bundle, trained: BlockConfig, audio: Audio) -> dict[str, StageError]:
    """The audio embeddings of blocks, encoded one after the other, against PyTorch's masked single pass."""
    encoder = AudioEncoder(bundle, "cpu", usable_cores())
    whisper, qformer = load_whisper(source), load_qformer(source)
    audio_encoder = load_audio_encoder(source) if source.config.audio_encoder else None
    longest = round(source.config.audio.max_s * SAMPLE_RATE)
    stages = {}
    for block in (Block(trained.sizes[0], trained.lookbacks[0]), Block(trained.sizes[-1], trained.lookbacks[-1])):
        wanted = BLOCKS_COMPARED * block.size * FRAME
        pcm = np.resize(audio.pcm, min(max(wanted, len(audio.pcm)), longest))
        features = {name: torch.from_numpy(a) for name, a in _features(source, bundle.manifest.audio, pcm).items()}
        with torch.inference_mode():
            speech = whisper(features["whisper"], None, block)
            sounds = audio_encoder(features["audio_encoder"], None, block) if audio_encoder else None
            reference = qformer(speech, sounds)[0].numpy()
        blocks = BlockEncoder(encoder, block)
        got = np.concatenate([*blocks.encode(pcm), *blocks.finish(pcm)])
        stages[f"blocks of {block.size} after {block.lookback}"] = StageError.between(got, reference)
    return stages


def _features(source: Checkpoint, config: AudioConfig, pcm: F32) -> dict[str, F32]:
    """Batched input of each encoder."""
    frames = whisper_frames(len(pcm), config, source.config.qformer.window)
    features = {"whisper": log_mel(pcm, config, 2 * frames)[None]}
    if source.config.audio_encoder:
        features["audio_encoder"] = fbank(pcm, source.config.audio_encoder.fbank)[None]
    return features


def _reference_states(source: Checkpoint, part: str, features: F32) -> F32:
    """PyTorch's states of one encoder, which is freed on return."""
    return _run_module(load_whisper(source) if part == "whisper" else load_audio_encoder(source), features)


def _reference_embeds(source: Checkpoint, config: AudioConfig, audio: Audio) -> F32:
    """PyTorch's audio embeddings [N, dim] under other feature settings than the bundle's."""
    states = [_reference_states(source, part, array) for part, array in _features(source, config, audio.pcm).items()]
    embeds: F32 = _run_module(load_qformer(source), *states)[0]
    return embeds


@dataclass(frozen=True)
class _LlmRun:
    """What the bundle's LLM did."""

    tokens: list[int]  # greedy, after the bundle's own audio embeddings
    logits: F32  # [n, V] they were chosen from
    stage_logits: F32  # [n, V] of the same tokens after PyTorch's audio embeddings
    prompt: PromptIds


def _run_llm(bundle: Bundle, got_embeds: F32, reference_embeds: F32) -> _LlmRun:
    """Decode greedily with the bundle; its session is freed on return.

    PyTorch then scores these tokens in one pass: if its best token after every prefix is the bundle's, its own greedy
    search gives the same tokens.
    """
    ids = prompt_ids(bundle.manifest.prompt, Tokenizer(bundle.path("tokenizer.json")), GOLDEN_PROMPT)
    decoder = OnnxDecoder(bundle, "cpu", usable_cores())
    before, after = decoder.embed(ids.before), decoder.embed(ids.after)
    tokens, logits = greedy_path(decoder, np.concatenate([before, got_embeds, after]))
    prompt = np.concatenate([before, reference_embeds, after])
    with decoder.open(1, len(prompt) + len(tokens)) as (slot,):
        stage = np.concatenate([decoder.prefill(slot, prompt)[None], decoder.verify(slot, tokens[:-1])])
    return _LlmRun(tokens, logits, stage, ids)


def _reference_logits(llm: torch.nn.Module, ran: _LlmRun, audio_embeds: F32) -> F32:
    """PyTorch's logits [n, V] before each token of a run, with its own token embeddings around the audio's [N, dim]."""
    embed = cast(PreTrainedModel, llm).get_input_embeddings()
    with torch.inference_mode():
        before, after = (
            embed(torch.tensor([ids])) for ids in (ran.prompt.before, (*ran.prompt.after, *ran.tokens[:-1]))
        )
        context = torch.cat([before, torch.from_numpy(audio_embeds)[None], after], dim=1)
        output = llm(inputs_embeds=context, logits_to_keep=len(ran.tokens))
    logits: F32 = output.logits[0].float().numpy()
    return logits


def greedy_path(decoder: OnnxDecoder, inputs_embeds: F32) -> tuple[list[int], F32]:
    """GOLDEN_TOKENS greedy tokens, stop tokens ignored, and the logits [n, V] each was chosen from."""
    with decoder.open(1, len(inputs_embeds) + GOLDEN_TOKENS) as (slot,):
        logits = [decoder.prefill(slot, inputs_embeds)]
        while len(logits) < GOLDEN_TOKENS:
            logits.append(decoder.step([slot], [int(np.argmax(logits[-1]))])[0])
    return np.argmax(logits, axis=1).tolist(), np.stack(logits)


def _run_graph(bundle: Bundle, name: str, *inputs: F32) -> F32:
    graph = load_graph(bundle, name, "cpu", usable_cores())
    if name == "whisper":
        return hear_speech(graph, inputs[0][0])[None]
    names = [spec.name for spec in graph.spec.inputs if spec not in graph.spec.past]
    output: F32 = graph.run(**dict(zip(names, inputs, strict=True)))
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
        if parity.budget is None and error.max_abs > limit and error.relative > ROUNDING:
            raise ParityError(f"{name}: largest difference {error.max_abs:.2e} exceeds {limit:.2e}; no bundle written")
        if parity.budget is not None and error.relative > parity.budget:
            raise ParityError(
                f"{name}: relative error {error.relative:.3f} exceeds the budget {parity.budget}; "
                "use a higher precision, or raise --parity-budget if the quality you measure is good enough "
                "(random weights amplify what few bits round off)"
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
