"""Checkpoint to bundle: every part built, compared with PyTorch, described, hashed, and moved into place at once."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from salmonrun.export.budget.encoders import choose_encoders
from salmonrun.export.card import write_card
from salmonrun.export.confidence import measure_threshold, read_speech
from salmonrun.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder, WeightFile
from salmonrun.export.graphs.encoders import BUILDERS
from salmonrun.export.graphs.linear import QFORMER_LINEARS, encoder_linear
from salmonrun.export.graphs.llm import build_llm_graph
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.qformer import build_qformer
from salmonrun.export.graphs.whisper import build_whisper
from salmonrun.export.llm import Calibration, stored_llm
from salmonrun.export.manifest import (
    EMBEDDING_DTYPES,
    EMBEDDING_FILE,
    audio_config,
    list_files,
    make_manifest,
    max_length,
    qformer_precision,
    stored_torch,
    write_manifest,
)
from salmonrun.export.options import ExportOptions
from salmonrun.export.parity.gate import prove
from salmonrun.export.parity.speech import packaged_speech
from salmonrun.export.progress import Progress, counted
from salmonrun.export.weights.encoders import FILES, max_frames, native_encoders, write_encoder
from salmonrun.export.weights.kept import identity, kept_beside
from salmonrun.export.weights.native import FILE as NATIVE_FILE
from salmonrun.export.weights.native import native_weights, write_native
from salmonrun.export.weights.pytorch import FILE as TORCH_FILE
from salmonrun.export.weights.pytorch import write_torch
from salmonrun.export.weights.stored import StoredLlm
from salmonrun.runtime.audio import Audio, load_audio
from salmonrun.runtime.bundle import check_bundle
from salmonrun.runtime.errors import BundleError, CheckpointError, ConfigError, MissingExtraError
from salmonrun.runtime.manifest import GraphSpec, Manifest
from salmonrun.runtime.matrices import kernels
from salmonrun.runtime.parity import EncoderProducts
from salmonrun.training.checkpoint import Checkpoint, load_llm, load_qformer, open_checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.model.llm import EMBEDDING, published_parameters
from salmonrun.training.staging import staged


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    golden_audio: Audio | None = None,
    calibration_speech: str | Path | None = None,
    parity_speech: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """Turn a checkpoint into a verified bundle.

    Args:
        checkpoint: folder to read.
        out: folder to create; it appears when everything is done and checked, or not at all.
        options: precisions, target, window, budget.
        golden_audio: recording to prove the bundle with; None for a synthetic one.
        calibration_speech: annotation of recordings: on every other one int4 weights are rounded, on the others a
            budget is measured, and the answers to all say which score is too low. What takes long is kept beside `out`
            until the bundle is there: an export that was killed goes on from it. None: weights are rounded to
            the nearest values, and there is no threshold.
        parity_speech: annotation of recordings on which the tokens of a quantized bundle are compared with PyTorch's;
            None: those that come with the project.
        progress: show a progress bar.

    Raises:
        CheckpointError: the checkpoint cannot be read, or an entry of an annotation cannot be used.
        ConfigError: the model or the options cannot be exported.
        MissingExtraError: it is to have weights for our own kernels, which prove them, and these were not built.
        ParityError: the bundle does not compute what the checkpoint does.
        BundleError: `out` exists.
    """
    options, out = options or ExportOptions(), Path(out)
    if out.exists():
        raise BundleError(f"{out} exists; choose another name or remove it")
    source = _rescaled(open_checkpoint(checkpoint), options.lora_scale)
    audio_config(source, options)  # refuses what cannot be, before anything is written
    options = _provable(options)
    if golden_audio is not None:
        golden_audio = load_audio(golden_audio, min_s=source.config.audio.min_s, max_s=source.config.audio.max_s)
    calibration = read_speech(calibration_speech, source.config) if calibration_speech is not None else None
    speech = _parity_speech(parity_speech, source, options)
    with _calibrating(source, options, calibration, out) as rounding, staged(out) as folder:
        recordings = Recordings(golden_audio, calibration or [], speech)
        manifest = _write(source, options, folder, recordings, rounding, progress)
        if calibration is not None:
            threshold = measure_threshold(check_bundle(folder, manifest, verify=False), calibration, progress)
            manifest = replace(manifest, confidence=threshold)
        write_manifest(manifest, folder)  # the last of all: without it nothing opens what was not compared
    return out


@dataclass(frozen=True)
class Recordings:
    """What a bundle is made and proven on."""

    golden: Audio | None  # None: synthetic
    calibration: Sequence[Entry]  # with transcripts
    tokens: Sequence[Entry]  # whose answers are compared


@contextmanager
def _calibrating(
    source: Checkpoint, options: ExportOptions, speech: Sequence[Entry] | None, out: Path
) -> Iterator[Calibration | None]:
    """What int4 weights are rounded on. They are surer of it: half of the recordings stay new to them.

    Raises:
        ConfigError: there is a budget, and too little to round and to measure on, or one of the encoders, and nothing.
        MissingExtraError: there is a budget, and our own kernels, which measure, were not built.
    """
    if options.encoder_budget is not None and not speech:
        raise ConfigError(
            f"encoder_budget {options.encoder_budget:g} is measured on calibration speech: give recordings with speech "
            "(--calibration-speech ANNOTATION)"
        )
    if options.budget:
        kernels()
        if speech is None or len(speech) < 2:
            raise ConfigError(
                f"budget {options.budget} is measured on calibration speech: give at least 2 recordings with speech "
                "(--calibration-speech ANNOTATION)"
            )
    if not speech or options.llm_precision != "int4":
        yield None
        return
    with kept_beside(out, identity(source, speech)) as folder:
        yield Calibration(speech[::2], speech[1::2], folder)


def _provable(options: ExportOptions) -> ExportOptions:
    """With the weights that can be proven here: those that nobody asked for are left out, and that is logged.

    Raises:
        MissingExtraError: native weights are asked for, and the kernels were not built.
    """
    decoders, encoders = options.decoders, options.encoders
    if "native" not in (*decoders, *encoders):
        return options
    try:
        kernels()
    except MissingExtraError as error:
        asked = [chosen for chosen in (options.decoder, options.encoder) if chosen in ("native", "both")]
        if asked or decoders == ("native",):
            raise
        logging.getLogger("salmonrun").warning("the bundle gets weights for ONNX Runtime alone: %s", error)
        return replace(options, decoder="onnx" if "native" in decoders else options.decoder, encoder="onnx")
    return options


def _parity_speech(annotation: str | Path | None, source: Checkpoint, options: ExportOptions) -> list[Entry]:
    """What tokens are compared on.

    Raises:
        CheckpointError: an entry of the annotation cannot be used, or none has speech.
        ConfigError: the bundle is not quantized, so that they are not.
    """
    if annotation is None:
        return packaged_speech(source.config)
    if options.exact:
        raise ConfigError("parity_speech is for quantized bundles; all tokens of this one must be PyTorch's anyway")
    entries = read_speech(annotation, source.config)
    if not entries:
        raise CheckpointError(f"{annotation} lists no speech to compare tokens on")
    return entries


def _rescaled(source: Checkpoint, scale: float | None) -> Checkpoint:
    """The checkpoint with another factor on the LLM's adapters: SALMONN's `lora_scaling`, alpha / r.

    Lower than trained it brings back what the LLM could do before (SALMONN, section 4.3: activation tuning).

    Raises:
        ConfigError: the checkpoint has no adapters.
    """
    if scale is None:
        return source
    lora = source.config.lora
    if lora is None:
        raise ConfigError(f"lora_scale is {scale}, but the checkpoint's LLM has no adapters")
    return replace(source, config=replace(source.config, lora=replace(lora, alpha=scale * lora.r)))


def _write(
    source: Checkpoint,
    options: ExportOptions,
    folder: Path,
    recordings: Recordings,
    calibration: Calibration | None,
    show: bool,
) -> Manifest:
    """Fill the folder, but for the manifest. Parts are built in turn, so that memory holds one at a time."""
    encoders = (2 if source.config.audio_encoder else 1) * len(options.encoders)
    parts = encoders + 1 + len(options.decoders)
    steps = (calibration is not None) + 2 * (options.budget is not None) + (not options.exact)
    steps += encoders if options.encoder_budget is not None else 0
    (folder / "llm").mkdir()
    with Progress(2 * parts + steps, show) as progress:
        exact = choose_encoders(source, recordings.calibration, options, progress)
        llm = stored_llm(source, options, calibration, progress)
        graphs = {}
        for name, (file, build) in _builders(source, llm, options, exact, progress).items():
            progress(f"building {name}")
            graphs[name] = _write_graph(folder, file, build)
        if "native" in options.encoders:
            _write_native_encoders(source, options, exact, folder, progress)
        if "native" in options.decoders:
            progress("writing llm, native")
            _write_native(source, llm, options, folder / NATIVE_FILE, progress)
        if "torch" in options.decoders:
            progress("writing llm, torch")
            _write_torch(source, llm, options, folder / TORCH_FILE, progress)
        _write_embedding(source, folder / EMBEDDING_FILE)
        shutil.copyfile(source.tokenizer_file, folder / "tokenizer.json")
        manifest = make_manifest(source, options, graphs, folder, llm, exact)
        written = check_bundle(folder, manifest, verify=False)
        parity = prove(source, written, recordings.golden, recordings.tokens, options, progress, llm.choice, exact)
    manifest = replace(manifest, files=list_files(folder))
    write_card(source, manifest, parity, folder)
    return manifest


def _builders(
    source: Checkpoint, llm: StoredLlm, options: ExportOptions, exact: Sequence[EncoderProducts], progress: Progress
) -> dict[str, tuple[str, Callable[[WeightFile], GraphBuilder]]]:
    """Part -> its file and how to build it."""
    config = source.config
    builders = _encoder_builders(source, options, exact) if "onnx" in options.encoders else {}
    linear = QFORMER_LINEARS[qformer_precision(options)]
    builders["qformer"] = (
        "qformer.onnx",
        lambda weights: build_qformer(config.qformer, load_qformer(source), weights, config.llm_dim, linear),
    )
    if "onnx" in options.decoders:
        builders["llm"] = ("llm/decoder.onnx", _llm_builder(source, llm, options, progress))
    return builders


def _encoder_builders(
    source: Checkpoint, options: ExportOptions, exact: Sequence[EncoderProducts]
) -> dict[str, tuple[str, Callable[[WeightFile], GraphBuilder]]]:
    """Of Whisper and, if there is one, the audio encoder."""
    config, encoder = source.config, source.config.audio_encoder
    fp32 = {one.part: one.fp32 for one in exact if one.runtime == "onnx"}
    linears = {part: encoder_linear(options.encoder_precision, fp32.get(part, ())) for part in FILES}
    blocks = config.streaming is not None
    whisper = source.merged_whisper()
    builders: dict[str, tuple[str, Callable[[WeightFile], GraphBuilder]]] = {
        "whisper": (
            "whisper.onnx",
            lambda weights: build_whisper(config.whisper, whisper, weights, linears["whisper"], blocks),
        )
    }
    if encoder is not None:
        build, tensors = BUILDERS[encoder.kind], source.parts["audio_encoder"]
        builders["audio_encoder"] = (
            "audio_encoder.onnx",
            lambda weights: build(encoder, tensors, weights, linears["audio_encoder"], max_frames(source), blocks),
        )
    return builders


def _write_native_encoders(
    source: Checkpoint, options: ExportOptions, exact: Sequence[EncoderProducts], folder: Path, progress: Progress
) -> None:
    """Whisper and, if there is one, the audio encoder for our own kernels."""
    config = source.config
    checkpoints = {
        "whisper": (config.whisper, source.merged_whisper()),
        "audio_encoder": (config.audio_encoder, source.parts["audio_encoder"]),
    }
    for name, encoder in native_encoders(source, options.encoder_precision, exact).parts.items():
        progress(f"writing {name}, native")
        write_encoder(folder / encoder.file, encoder, *checkpoints[name])


def _llm_builder(
    source: Checkpoint, llm: StoredLlm, options: ExportOptions, progress: Progress
) -> Callable[[WeightFile], GraphBuilder]:
    """The LLM's graph, its tensors' names and shapes checked before anything is built."""
    shape, length = LlmShape.from_config(source.config.llm), max_length(source, options)
    size = _llm_size(source)
    dtype = FLOAT16 if options.target == "cuda" else FLOAT

    def build(weights: WeightFile) -> GraphBuilder:
        with progress.weights("reading weights", size) as step:
            tensors = counted(llm.tensors, step)
            return build_llm_graph(shape, tensors, weights, llm.precision, length, dtype, llm.block, llm.int8)

    return build


def _write_native(source: Checkpoint, llm: StoredLlm, options: ExportOptions, path: Path, progress: Progress) -> None:
    """The LLM for the native decoder, its tensors' names and shapes checked before anything is written."""
    shape, size = LlmShape.from_config(source.config.llm), _llm_size(source)
    with progress.weights("reading weights", size) as step:
        weights = native_weights(llm.precision, llm.block, llm.int8)
        write_native(path, shape, llm.tensors, weights, max_length(source, options), step)


def _write_torch(source: Checkpoint, llm: StoredLlm, options: ExportOptions, path: Path, progress: Progress) -> None:
    """The LLM for the torch decoder, its tensors' names and shapes checked before anything is written."""
    shape, size = LlmShape.from_config(source.config.llm), _llm_size(source)
    with progress.weights("reading weights", size) as step:
        weights = stored_torch(source, options, llm)
        write_torch(path, shape, llm.tensors, weights, max_length(source, options), step)


def _llm_size(source: Checkpoint) -> int:
    """Weights of the LLM; reading its structure checks its tensors' names and shapes."""
    return sum(parameter.numel() for parameter in published_parameters(load_llm(source, device="meta")).values())


def _write_graph(folder: Path, file: str, build: Callable[[WeightFile], GraphBuilder]) -> GraphSpec:
    path = folder / file
    data = path.with_name(f"{path.name}.data")
    with WeightFile(data) as weights:
        graph = build(weights)
    graph.save(path)
    if not data.stat().st_size:
        data.unlink()
    return graph.spec(file)


def _write_embedding(source: Checkpoint, path: Path) -> None:
    """The token embeddings as they are stored in the checkpoint: no rounding."""
    tensor = source.parts["llm"][EMBEDDING]().contiguous()
    if tensor.dtype not in EMBEDDING_DTYPES:
        raise CheckpointError(f"{EMBEDDING} has dtype {tensor.dtype}; expected one of {list(EMBEDDING_DTYPES)}")
    with path.open("wb") as file:
        tensor.view(torch.uint8).numpy().tofile(file)
