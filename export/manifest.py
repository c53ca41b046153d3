"""What a bundle says about itself, from the checkpoint, the options and the files that were written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from salmonrun.export.card import CARD
from salmonrun.export.graphs.linear import super_block_of
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.options import ExportOptions
from salmonrun.export.weights.encoders import native_encoders
from salmonrun.export.weights.native import NF4_BLOCK, native_weights
from salmonrun.export.weights.pytorch import torch_weights
from salmonrun.export.weights.stored import StoredLlm
from salmonrun.runtime import __version__
from salmonrun.runtime.bundle import file_sha256
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    EmbeddingSpec,
    FileSpec,
    GraphSpec,
    LlmSpec,
    LlmWeights,
    Manifest,
    OnnxWeights,
    Precision,
    Provenance,
    TorchWeights,
    WeightPrecision,
    manifest_bytes,
)
from salmonrun.runtime.parity import EncoderProducts
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.model.llm import EMBEDDING

EMBEDDING_FILE = "llm/embed_tokens.bin"
EMBEDDING_DTYPES: dict[torch.dtype, Literal["float32", "float16", "bfloat16"]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def make_manifest(
    source: Checkpoint,
    options: ExportOptions,
    graphs: dict[str, GraphSpec],
    folder: Path,
    stored: StoredLlm,
    exact: Sequence[EncoderProducts] = (),
) -> Manifest:
    """Describe a bundle's folder as it is now.

    Args:
        source: what it was made of.
        options: with which it was made.
        graphs: that are in it.
        folder: with its files.
        stored: how the LLM's matrices are stored.
        exact: products of the encoders that stay in float32 beside int8.

    Raises:
        CheckpointError: the tokenizer or the prompt has ids that the LLM does not have.
    """
    config = source.config
    return Manifest(
        format_version=FORMAT_VERSION,
        manifest_sha256="",
        target=options.target,
        audio=audio_config(source, options),
        fbank=config.audio_encoder.fbank if config.audio_encoder else None,
        window=config.qformer.window,
        prompt=config.prompt,
        llm=llm_spec(source, options, stored),
        precision=Precision(
            whisper=options.encoder_precision,
            audio_encoder=options.encoder_precision if config.audio_encoder else None,
            qformer=qformer_precision(options),
        ),
        provenance=_provenance(source, stored),
        graphs=graphs,
        files=list_files(folder),
        streaming=config.streaming,
        encoders=native_encoders(source, options.encoder_precision, exact) if "native" in options.encoders else None,
    )


def audio_config(source: Checkpoint, options: ExportOptions) -> AudioConfig:
    """The bundle's settings of the audio.

    Raises:
        ConfigError: the window that `options` asks for is not one to stream with.
    """
    audio = replace(source.config.audio, window=options.window or source.config.audio.window)
    if source.config.streaming:
        source.config.streaming.check(audio, source.config.qformer.window)
    return audio


def qformer_precision(options: ExportOptions) -> Literal["fp32", "fp16"]:
    """What the Q-Former's products are computed in: half precision beside encoders of that, else float32."""
    return "fp16" if options.encoder_precision == "fp16" else "fp32"


def max_length(source: Checkpoint, options: ExportOptions) -> int:
    """Positions of the KV cache: never more than the LLM has."""
    return min(options.max_length, int(source.config.llm.get("max_position_embeddings", options.max_length)))


def list_files(folder: Path) -> dict[str, FileSpec]:
    """Sizes and hashes of all files there are but the manifest and the card, which no reader uses."""
    left_out = {folder / MANIFEST, folder / CARD}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in left_out)
    return {path.relative_to(folder).as_posix(): FileSpec(path.stat().st_size, file_sha256(path)) for path in paths}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write bundle.json."""
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))


def llm_spec(source: Checkpoint, options: ExportOptions, stored: StoredLlm) -> LlmSpec:
    """What decoders need to know of an LLM that is stored so.

    Raises:
        CheckpointError: the tokenizer or the prompt has ids that the LLM does not have.
    """
    native = native_weights(stored.precision, stored.block, stored.int8) if "native" in options.decoders else None
    shape = LlmShape.from_config(source.config.llm)
    _check_ids(source, shape.vocab_size)
    dtype = EMBEDDING_DTYPES[source.parts["llm"][EMBEDDING]().dtype]
    return LlmSpec(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        eps=shape.eps,
        windows=shape.windows,
        experts=shape.experts,
        max_length=max_length(source, options),
        embedding=EmbeddingSpec(EMBEDDING_FILE, dtype, shape.vocab_size, shape.dim),
        weights=LlmWeights(
            onnx=_onnx_weights(options, stored) if "onnx" in options.decoders else None,
            native=native,
            torch=stored_torch(source, options, stored) if "torch" in options.decoders else None,
        ),
    )


def stored_torch(source: Checkpoint, options: ExportOptions, stored: StoredLlm) -> TorchWeights:
    """How the torch decoder's file has an LLM that is stored so."""
    dtype = source.parts["llm"][EMBEDDING]().dtype
    return torch_weights(stored.precision, options.target, dtype, stored.block, stored.int8)


def _check_ids(source: Checkpoint, vocab_size: int) -> None:
    """Every id that can occur must have an embedding."""
    tokens = Tokenizer(source.tokenizer_file).vocab_size
    if tokens > vocab_size:
        raise CheckpointError(f"tokenizer.json has {tokens} tokens, the LLM {vocab_size}: they do not belong together")
    prompt = source.config.prompt
    for token_id in (*prompt.stop_token_ids, *(() if prompt.bos_token_id is None else (prompt.bos_token_id,))):
        if not 0 <= token_id < vocab_size:
            raise CheckpointError(f"prompt uses token id {token_id}, the LLM has {vocab_size}")


def _onnx_weights(options: ExportOptions, stored: StoredLlm) -> OnnxWeights:
    dtype: Literal["float16", "float32"] = "float16" if options.target == "cuda" else "float32"
    if stored.precision != "fp32":
        return OnnxWeights(dtype, stored.precision, lm_head="int8", int8=stored.int8)
    plain: WeightPrecision = "fp16" if options.target == "cuda" else "fp32"
    return OnnxWeights(dtype, plain, plain)


def _provenance(source: Checkpoint, stored: StoredLlm) -> Provenance:
    config = source.config
    shared = super_block_of(stored.precision, stored.block)
    integers = f"symmetric, blocks of {stored.block}" + (f" in super-blocks of {shared}" if shared else "")
    blocks = {"int8": integers, "int4": integers, "nf4": f"nf4, blocks of {NF4_BLOCK}"}.get(stored.precision)
    mixed = f", {len(stored.int8)} matrices in 8 bits" if stored.int8 else ""
    within = f", the smallest within {stored.choice.budget}" if stored.choice else ""
    return Provenance(
        model=config.name,
        exporter=f"salmonrun {__version__}",
        sources=source.hashes(),
        lora_scale=config.lora.scale if config.lora else None,
        pruned_layers=config.left_out_layers("llm"),
        whisper_pruned_layers=config.left_out_layers("whisper"),
        quantization=f"{blocks}, {stored.rounding}{mixed}{within}" if blocks else "",
        pruning=config.pruning,
        distillation=config.distillation,
    )
