"""The gate: stage by stage, what the bundle computes against what PyTorch computes.

Each side of a stage is loaded, run and freed in turn, so that memory holds one part at a time.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from salmonrun.export.options import ExportOptions
from salmonrun.export.parity.encoders import audio_embeds, bundled, features, in_half, modules_of
from salmonrun.export.parity.llm import GOLDEN_PROMPT, further_logits, reference_logits, run_llm
from salmonrun.export.parity.speech import compare_tokens
from salmonrun.export.progress import Progress
from salmonrun.runtime.audio import SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Block, BlockConfig
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.errors import ParityError
from salmonrun.runtime.golden import GOLDEN, golden_suffix, save_golden
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.runtime.parity import EXACT_TOLERANCE, PARITY, Choice, EncoderProducts, Parity, SpeechTokens, StageError
from salmonrun.runtime.streaming.block_encoder import FRAME, BlockEncoder
from salmonrun.training.checkpoint import Checkpoint, load_audio_encoder, load_qformer, load_whisper
from salmonrun.training.data.annotation import Entry

F32 = npt.NDArray[np.float32]
ROUNDING = 2e-5  # relative error that float32 rounding alone reaches where attention is peaked
BLOCKS_COMPARED = 4  # of each size


def prove(
    source: Checkpoint,
    bundle: Bundle,
    golden_audio: Audio | None,
    speech: Sequence[Entry],
    options: ExportOptions,
    progress: Progress,
    choice: Choice | None = None,
    encoders: tuple[EncoderProducts, ...] = (),
) -> Parity:
    """Measure, write parity.json and golden.npz into the bundle folder, and refuse a bundle that is off.

    Args:
        source: the checkpoint.
        bundle: of which the manifest does not yet list these two files, and is not in the folder: it would be taken for
            proven.
        golden_audio: recording to compare on; None for a synthetic one.
        speech: of a bundle that need not be exact, recordings to compare tokens on.
        options: what is demanded.
        progress: shows the stages.
        choice: how the precision of the LLM was chosen, to be kept with the rest.
        encoders: which of their products were, too.

    Raises:
        ParityError: names the stage and its error, or how many tokens differ.
    """
    audio = golden_audio or synthetic_audio(source)
    parity = _measure(source, bundle, audio, None if options.exact else options.parity_budget, progress)
    parity = replace(parity, choice=choice, encoders=encoders)
    _judge_stages(parity)
    if not options.exact:
        progress("checking tokens")
        tokens = compare_tokens(source, bundle, speech, progress)
        parity = replace(parity, token_agreement=options.token_agreement if tokens else None, speech=tokens)
        _judge_tokens(tokens, options.token_agreement)
    (bundle.folder / PARITY).write_text(json.dumps(asdict(parity), indent=2) + "\n")
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


def _measure(source: Checkpoint, bundle: Bundle, audio: Audio, budget: float | None, progress: Progress) -> Parity:
    stages, own_embeds, reference_embeds = _measure_encoders(source, bundle, audio, progress)
    if bundle.manifest.streaming:
        stages |= _measure_blocks(source, bundle, bundle.manifest.streaming, audio)
    progress("checking llm")
    (_, first), *further = own_embeds.items()
    suffixes = [golden_suffix(encoder=runtime) for runtime, _ in further]
    ran = run_llm(bundle, first, [reference_embeds, *(embeds for _, embeds in further)], progress)
    contexts = [reference_embeds]
    if bundle.manifest.audio.window != source.config.audio.window:
        contexts += audio_embeds(modules_of(source), [features(source, source.config.audio, audio.pcm)])
    expected, *as_trained = reference_logits(source, ran, contexts, progress)
    window = StageError.between(expected, as_trained[0]) if as_trained else None
    stages["llm"] = StageError.between(ran.others[0], expected)
    others = dict(zip(suffixes, ran.others[1:], strict=True))
    for name in bundle.manifest.llm.weights.decoders[1:]:
        progress(f"checking llm, {name}")
        own, *rest = further_logits(bundle, name, ran, [reference_embeds, *own_embeds.values()])
        stages[f"llm, {name}"] = StageError.between(own, expected)
        suffixes = [golden_suffix(name), *(golden_suffix(name, runtime) for runtime, _ in further)]
        others |= dict(zip(suffixes, rest, strict=True))
    agreeing = int((expected.argmax(axis=-1) == np.array(ran.tokens)).sum())
    exact = budget is None
    save_golden(bundle.folder / GOLDEN, audio.pcm, GOLDEN_PROMPT, ran.tokens, ran.logits, others, exact)
    return Parity(
        stages=stages,
        end_to_end=StageError.between(ran.logits, expected),
        tokens_compared=len(ran.tokens),
        tokens_agreeing=agreeing,
        greedy_tokens_equal=agreeing == len(ran.tokens),
        audio_s=audio.duration_s,
        budget=budget,
        llm_pieces=ran.pieces,
        window=window,
        measured_with=_versions(),
    )


def _measure_encoders(
    source: Checkpoint, bundle: Bundle, audio: Audio, progress: Progress
) -> tuple[dict[str, StageError], dict[str, F32], F32]:
    """Errors of the encoder stages, and the audio embeddings [N, dim]: of the bundle's encoders on each of the runtimes
    that it has weights of them for, and of PyTorch's.
    """
    modules, runtimes = modules_of(source), bundle.manifest.encoder_runtimes
    inputs = features(source, bundle.manifest.audio, audio.pcm)
    reference: dict[str, F32] = {}
    got: dict[EncoderRuntime, list[F32]] = {runtime: [] for runtime in runtimes}
    stages = {}
    for part in inputs:
        (reference[part],) = modules(part, [[inputs[part]]])
        for runtime in runtimes:
            name = _stage(part, runtime, runtimes)
            progress(f"checking {name}")
            got[runtime] += bundled(bundle, runtime)(part, [[inputs[part]]])
            stages[name] = StageError.between(got[runtime][-1], reference[part])
    progress("checking qformer")
    alone, *own = bundled(bundle, runtimes[0])("qformer", [list(reference.values()), *got.values()])
    (embeds,) = modules("qformer", [list(reference.values())])
    stages["qformer"] = StageError.between(alone, embeds)
    if bundle.manifest.precision.whisper == "fp16":
        stages |= _measure_half(bundle, inputs, reference | {"qformer": embeds}, progress)
    return stages, {runtime: each[0] for runtime, each in zip(runtimes, own, strict=True)}, embeds[0]


def _measure_half(
    bundle: Bundle, inputs: dict[str, F32], reference: dict[str, F32], progress: Progress
) -> dict[str, StageError]:
    """Errors of encoders and Q-Former where 16 bits are what they are on a GPU; ONNX Runtime on a CPU widens them."""
    run, stages = in_half(bundle), {}
    given = {part: [features] for part, features in inputs.items()}
    given["qformer"] = [reference[part] for part in inputs]
    for part, arrays in given.items():
        name = f"{part}, in float16"
        progress(f"checking {name}")
        (found,) = run(part, [arrays])
        stages[name] = StageError.between(found, reference[part])
    return stages


def _stage(name: str, runtime: EncoderRuntime, runtimes: Sequence[EncoderRuntime]) -> str:
    """What a stage of the encoders is called: the first runtime is not named."""
    return name if runtime == runtimes[0] else f"{name}, {runtime}"


def _measure_blocks(source: Checkpoint, bundle: Bundle, trained: BlockConfig, audio: Audio) -> dict[str, StageError]:
    """The audio embeddings of blocks, encoded one after the other, against PyTorch's masked single pass."""
    whisper, qformer = load_whisper(source), load_qformer(source)
    audio_encoder = load_audio_encoder(source) if source.config.audio_encoder else None
    longest = round(source.config.audio.max_s * SAMPLE_RATE)
    expected: dict[Block, tuple[F32, F32]] = {}  # a recording and PyTorch's embeddings of it
    for block in (Block(trained.sizes[0], trained.lookbacks[0]), Block(trained.sizes[-1], trained.lookbacks[-1])):
        wanted = BLOCKS_COMPARED * block.size * FRAME
        pcm = np.resize(audio.pcm, min(max(wanted, len(audio.pcm)), longest))
        inputs = {name: torch.from_numpy(a) for name, a in features(source, bundle.manifest.audio, pcm).items()}
        with torch.inference_mode():
            speech = whisper(inputs["whisper"], None, block)
            sounds = audio_encoder(inputs["audio_encoder"], None, block) if audio_encoder else None
            expected[block] = pcm, qformer(speech, sounds)[0].numpy()
    stages, runtimes = {}, bundle.manifest.encoder_runtimes
    for runtime in runtimes:
        encoder = AudioEncoder(bundle, "cpu", usable_cores(), runtime)
        for block, (pcm, reference) in expected.items():
            blocks = BlockEncoder(encoder, block)
            got = np.concatenate([*blocks.encode(pcm), *blocks.finish(pcm)])
            name = _stage(f"blocks of {block.size} after {block.lookback}", runtime, runtimes)
            stages[name] = StageError.between(got, reference)
    return stages


def _judge_stages(parity: Parity) -> None:
    for name, error in parity.measured.items():
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


def _judge_tokens(speech: dict[str, SpeechTokens], share: float) -> None:
    for decoder, tokens in speech.items():
        if not tokens.agree(share):
            raise ParityError(
                f"llm, {decoder}: {tokens}; {share:.0%} of those are demanded, no bundle written: use a higher "
                "precision, or lower --token-agreement if the quality you measure is good enough"
            )


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
