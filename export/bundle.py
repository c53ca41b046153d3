"""Checkpoint to bundle: every part built, compared with PyTorch, described, hashed, and moved into place at once."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from salmonrun.export.graphs.builder import FLOAT, FLOAT16, GraphBuilder, WeightFile
from salmonrun.export.graphs.encoders import BUILDERS
from salmonrun.export.graphs.linear import ENCODER_LINEARS
from salmonrun.export.graphs.llm import build_llm_graph
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.graphs.qformer import build_qformer
from salmonrun.export.graphs.whisper import build_whisper
from salmonrun.export.options import ExportOptions
from salmonrun.export.parity.gate import prove
from salmonrun.export.progress import Progress, counted
from salmonrun.runtime import __version__
from salmonrun.runtime.audio import SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    EmbeddingSpec,
    FileSpec,
    GraphSpec,
    LlmSpec,
    Manifest,
    Precision,
    Provenance,
    WeightPrecision,
    file_sha256,
    manifest_bytes,
)
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import BundleError, CheckpointError, ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint, load_llm, load_qformer, open_checkpoint
from salmonrun.training.model.llm import EMBEDDING, published_parameters

EMBEDDING_FILE = "llm/embed_tokens.bin"
EMBEDDING_DTYPES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    golden_audio: Audio | None = None,
    progress: bool = False,
) -> Path:
    """Turn a checkpoint into a verified bundle.

    Args:
        checkpoint: folder to read.
        out: folder to create; it appears when everything is done and checked, or not at all.
        options: precisions, target, window, budget.
        golden_audio: recording to prove the bundle with; None for a synthetic one.
        progress: show a progress bar.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConfigError: the model or the options cannot be exported.
        ParityError: the bundle does not compute what the checkpoint does.
        BundleError: `out` exists.
    """
    options, out = options or ExportOptions(), Path(out)
    if out.exists():
        raise BundleError(f"{out} exists; choose another name or remove it")
    source = _rescaled(open_checkpoint(checkpoint), options.lora_scale)
    _audio(source, options)
    if golden_audio is not None:
        golden_audio = load_audio(golden_audio, min_s=source.config.audio.min_s, max_s=source.config.audio.max_s)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write(source, options, folder, golden_audio, progress)
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


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


def _write(source: Checkpoint, options: ExportOptions, folder: Path, golden_audio: Audio | None, show: bool) -> None:
    """Fill the folder. Parts are built one after the other, so that memory holds one at a time."""
    parts = 4 if source.config.audio_encoder else 3
    with Progress(2 * parts, show) as progress:
        builders = _builders(source, options, progress)
        graphs = {}
        for name, (file, build) in builders.items():
            progress(f"building {name}")
            graphs[name] = _write_graph(folder, file, build)
        _write_embedding(source, folder / EMBEDDING_FILE)
        shutil.copyfile(source.tokenizer_file, folder / "tokenizer.json")
        manifest = _manifest(source, options, graphs, folder)
        _write_manifest(manifest, folder)
        prove(source, folder, golden_audio, None if options.exact else options.parity_budget, progress)
    _write_manifest(replace(manifest, files=_files(folder)), folder)


def _builders(
    source: Checkpoint, options: ExportOptions, progress: Progress
) -> dict[str, tuple[str, Callable[[WeightFile], GraphBuilder]]]:
    """Part -> its file and how to build it."""
    config, parts = source.config, source.parts
    linear = ENCODER_LINEARS[options.encoder_precision]
    blocks = config.streaming is not None
    whisper = source.merged_whisper()
    builders: dict[str, tuple[str, Callable[[WeightFile], GraphBuilder]]] = {
        "whisper": ("whisper.onnx", lambda weights: build_whisper(config.whisper, whisper, weights, linear, blocks))
    }
    encoder = config.audio_encoder
    if encoder is not None:
        frames = round(config.audio.max_s * SAMPLE_RATE) // 160
        build, tensors = BUILDERS[encoder.kind], parts["audio_encoder"]
        builders["audio_encoder"] = (
            "audio_encoder.onnx",
            lambda weights: build(encoder, tensors, weights, linear, frames, blocks),
        )
    builders["qformer"] = (
        "qformer.onnx",
        lambda weights: build_qformer(config.qformer, load_qformer(source), weights, config.llm_dim),
    )
    builders["llm"] = ("llm/decoder.onnx", _llm_builder(source, options, progress))
    return builders


def _llm_builder(
    source: Checkpoint, options: ExportOptions, progress: Progress
) -> Callable[[WeightFile], GraphBuilder]:
    """The LLM's graph, its tensors' names and shapes checked before anything is built."""
    shape, length = LlmShape.from_config(source.config.llm), _max_length(source, options)
    size = sum(parameter.numel() for parameter in published_parameters(load_llm(source, device="meta")).values())
    dtype = FLOAT16 if options.target == "cuda" else FLOAT

    def build(weights: WeightFile) -> GraphBuilder:
        with progress.weights("reading weights", size) as step:
            tensors = counted(source.merged_llm(), step)
            return build_llm_graph(shape, tensors, weights, options.llm_precision, length, dtype)

    return build


def _write_graph(folder: Path, file: str, build: Callable[[WeightFile], GraphBuilder]) -> GraphSpec:
    path = folder / file
    path.parent.mkdir(exist_ok=True)
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


def _manifest(source: Checkpoint, options: ExportOptions, graphs: dict[str, GraphSpec], folder: Path) -> Manifest:
    config = source.config
    shape = LlmShape.from_config(config.llm)
    _check_ids(source, shape.vocab_size)
    dtype = source.parts["llm"][EMBEDDING]().dtype
    llm = LlmSpec(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_length=_max_length(source, options),
        dtype="float16" if options.target == "cuda" else "float32",
        embedding=EmbeddingSpec(EMBEDDING_FILE, EMBEDDING_DTYPES[dtype], shape.vocab_size, shape.dim),
    )
    quantized = options.llm_precision != "fp32"
    plain: WeightPrecision = "fp16" if options.target == "cuda" else "fp32"
    return Manifest(
        format_version=FORMAT_VERSION,
        manifest_sha256="",
        target=options.target,
        audio=_audio(source, options),
        fbank=config.audio_encoder.fbank if config.audio_encoder else None,
        window=config.qformer.window,
        prompt=config.prompt,
        llm=llm,
        precision=Precision(
            whisper=options.encoder_precision,
            audio_encoder=options.encoder_precision if config.audio_encoder else None,
            qformer="fp32",
            llm=options.llm_precision if quantized else plain,
            lm_head="int8" if quantized else plain,
        ),
        provenance=Provenance(
            model=config.name,
            exporter=f"salmonrun {__version__}",
            sources=source.hashes(),
            lora_scale=config.lora.scale if config.lora else None,
            pruned_layers=config.sources.llm.left_out_layers if config.sources.llm else (),
            whisper_pruned_layers=config.sources.whisper.left_out_layers if config.sources.whisper else (),
            quantization="symmetric, blocks of 32, round to nearest" if quantized else "",
        ),
        graphs=graphs,
        files=_files(folder),
        streaming=config.streaming,
    )


def _audio(source: Checkpoint, options: ExportOptions) -> AudioConfig:
    """The bundle's settings of the audio.

    Raises:
        ConfigError: the window that `options` asks for is not one to stream with.
    """
    audio = replace(source.config.audio, window=options.window or source.config.audio.window)
    if source.config.streaming:
        source.config.streaming.check(audio, source.config.qformer.window)
    return audio


def _max_length(source: Checkpoint, options: ExportOptions) -> int:
    return min(options.max_length, int(source.config.llm.get("max_position_embeddings", options.max_length)))


def _check_ids(source: Checkpoint, vocab_size: int) -> None:
    """Every id that can occur must have an embedding."""
    tokens = Tokenizer(source.tokenizer_file).vocab_size
    if tokens > vocab_size:
        raise CheckpointError(f"tokenizer.json has {tokens} tokens, the LLM {vocab_size}: they do not belong together")
    prompt = source.config.prompt
    for token_id in (*prompt.stop_token_ids, *(() if prompt.bos_token_id is None else (prompt.bos_token_id,))):
        if not 0 <= token_id < vocab_size:
            raise CheckpointError(f"prompt uses token id {token_id}, the LLM has {vocab_size}")


def _files(folder: Path) -> dict[str, FileSpec]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): FileSpec(path.stat().st_size, file_sha256(path)) for path in paths}


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
