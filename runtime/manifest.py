"""bundle.json: what a bundle says about itself. Its specification is docs/bundle.md."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Literal

from salmonrun.runtime.config import (
    AudioConfig,
    BlockConfig,
    Distillation,
    FbankConfig,
    PromptConfig,
    Pruning,
    WindowConfig,
)
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import OPTIONAL, to_dict

FORMAT_VERSION = 4
MANIFEST = "bundle.json"
_OWN_HASH = re.compile(rb'("manifest_sha256":\s*)"[0-9a-f]{64}"')
_NO_HASH = "0" * 64

WeightPrecision = Literal["fp32", "fp16", "bf16", "int8", "int4", "nf4"]
EncoderRuntime = Literal["onnx", "native"]  # what can run Whisper and the audio encoder
BlockSize = Literal[32, 64, 128]  # values that share a scale
MAX_SIZE = 2**31 - 1  # of a model: what runs it counts in 32 bits


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a dimension is a size or the name of a free one."""

    name: str
    dtype: str  # "float32", "float16", "int32", "int64"
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def result(self) -> str:
        """Name of the output that is not kept for the next run."""
        return next(spec.name for spec in self.outputs if not spec.name.startswith("present_"))

    @property
    def past(self) -> tuple[TensorSpec, ...]:
        """What it is given of earlier runs: the KV of an LLM, and of an encoder that hears in blocks."""
        return tuple(spec for spec in self.inputs if spec.name.startswith("past_"))

    @property
    def weights(self) -> str:
        """Name of the file that holds its large tensors, if it has any."""
        return f"{self.file}.data"


@dataclass(frozen=True)
class FileSpec:
    """What a file's bytes must be."""

    size: int
    sha256: str


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table: raw little-endian rows [vocab_size, dim]."""

    file: str
    dtype: Literal["float32", "float16", "bfloat16"]
    rows: int
    dim: int


@dataclass(frozen=True)
class OnnxWeights:
    """The LLM for ONNX Runtime: the graph `llm` with its weights."""

    dtype: Literal["float32", "float16"]  # of activations and KV cache
    precision: WeightPrecision
    lm_head: WeightPrecision
    int8: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # matrices of the layers that have 8 bits, not 4

    def __post_init__(self) -> None:
        _check_mixed(self.precision, self.int8)


@dataclass(frozen=True)
class NativeWeights:
    """The LLM for our own kernels: one file of packed matrices, mapped as it lies."""

    file: str
    layout: Literal["t16"]
    block: BlockSize
    activation_block: Literal[32, 64, 128, 256]  # of the inputs of integers, which are quantized as they come
    precision: Literal["int8", "int4", "nf4"]
    lm_head: Literal["int8", "int4"]
    int8: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # matrices of the layers that have 8 bits, not 4
    # Inputs of int4 that share a scale, of which blocks have multiples; None: each block has a scale of its own.
    super_block: Literal[128] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.activation_block % self.block:
            raise ConfigError(f"activation_block is {self.activation_block}; it must be a multiple of {self.block}")
        if self.super_block and (self.block, self.activation_block) != (32, self.super_block):
            raise ConfigError(
                f"block is {self.block}, activation_block {self.activation_block}; beside a super_block of "
                f"{self.super_block} they must be 32 and {self.super_block}"
            )
        _check_mixed(self.precision, self.int8)

    def precision_of(self, matrix: str) -> str:
        """What a matrix of the layers is stored as; named without `.weight`."""
        return "int8" if matrix in self.int8 else self.precision


@dataclass(frozen=True)
class TorchWeights:
    """The LLM for PyTorch's kernels: one file of matrices, quantized row by row."""

    file: str
    block: BlockSize  # of what is quantized
    precision: WeightPrecision
    lm_head: Literal["fp32", "fp16", "bf16", "int8"]
    int8: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # matrices of the layers that have 8 bits, not 4

    def __post_init__(self) -> None:
        _check_mixed(self.precision, self.int8)

    def precision_of(self, matrix: str) -> str:
        """What a matrix of the layers is stored as; named without `.weight`."""
        return "int8" if matrix in self.int8 else self.precision


@dataclass(frozen=True)
class LlmWeights:
    """The LLM's weights for each decoder that can run them; None: the bundle has none for this one."""

    onnx: OnnxWeights | None
    native: NativeWeights | None = None
    torch: TorchWeights | None = None

    def __post_init__(self) -> None:
        if not self.decoders:
            raise ConfigError("there are weights for no decoder; expected some for onnx, native or torch")

    @property
    def decoders(self) -> tuple[str, ...]:
        """Those the bundle has weights for."""
        return tuple(name for name, weights in vars(self).items() if weights is not None)

    @property
    def files(self) -> tuple[str, ...]:
        """Beside the graph and its data."""
        return tuple(weights.file for weights in (self.native, self.torch) if weights)


@dataclass(frozen=True)
class ExpertSpec:
    """How the layers that are mixtures choose; their number is that of their tensors."""

    per_token: int
    normalised: bool  # the weights of those chosen are made to sum to one

    def __post_init__(self) -> None:
        if self.per_token < 1:
            raise ConfigError(f"per_token is {self.per_token}; it must be at least 1")


@dataclass(frozen=True)
class LlmSpec:
    """What a decoder needs to know. The graph has it built in; other decoders have their weights and this."""

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float  # of the RMS norms
    windows: tuple[int | None, ...]  # of each layer: positions it sees, its own included; None: all
    experts: ExpertSpec | None
    max_length: int  # positions a sequence may have, prompt included
    embedding: EmbeddingSpec
    weights: LlmWeights

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "max_length"):
            _check_size(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        _check_eps("eps", self.eps)
        sizes = [window for window in self.windows if window is not None]
        if len(self.windows) != self.layers or not all(1 <= size <= MAX_SIZE for size in sizes):
            raise ConfigError(f"windows are {self.windows[:8]}...; expected a number or null for {self.layers} layers")


@dataclass(frozen=True)
class Precision:
    """What the weights of the encoders are stored as; those of the LLM are described for each decoder."""

    whisper: WeightPrecision
    audio_encoder: WeightPrecision | None
    qformer: WeightPrecision


@dataclass(frozen=True)
class NativeEncoder:
    """An encoder for our own kernels: one file of packed matrices, mapped as it lies."""

    file: str
    layout: Literal["t16"]
    block: BlockSize  # of int8
    activation_block: Literal[32, 64, 128, 256]  # of what matrices of int8 are multiplied with
    precision: Literal["fp32", "bf16", "int8"]  # of the matrices in the layers; those before them are float32
    dim: int
    layers: int
    heads: int
    ffn: int
    positions: int  # that its states may have; how far apart, where only that is encoded
    eps: float  # of the norms before and behind the layers
    layer_eps: float  # of the norms in the layers
    # Matrices of the layers that are float32 beside others of int8.
    fp32: tuple[str, ...] = field(default=(), kw_only=True, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.fp32 and self.precision != "int8":
            raise ConfigError(f"{len(self.fp32)} matrices are fp32 beside others of {self.precision}; expected int8")
        if len(set(self.fp32)) < len(self.fp32):
            raise ConfigError("fp32 names a matrix twice")
        for name in ("dim", "layers", "heads", "ffn", "positions"):
            _check_size(name, getattr(self, name))
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        for name in ("eps", "layer_eps"):
            _check_eps(name, getattr(self, name))
        if self.activation_block % self.block:
            raise ConfigError(f"activation_block is {self.activation_block}; it must be a multiple of {self.block}")

    def precision_of(self, matrix: str) -> Literal["fp32", "bf16", "int8"]:
        """What a matrix of the layers, by its name, is stored as."""
        return "fp32" if matrix in self.fp32 else self.precision


@dataclass(frozen=True)
class NativeWhisper(NativeEncoder):
    """Whisper's encoder."""

    kind: Literal["whisper"] = "whisper"


@dataclass(frozen=True)
class NativeBeats(NativeEncoder):
    """BEATs."""

    patch_dim: int
    conv_pos: int  # steps that the convolution for positions hears
    conv_pos_groups: int
    kind: Literal["beats"] = "beats"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_dim", "conv_pos", "conv_pos_groups"):
            _check_size(name, getattr(self, name))
        if self.dim % self.conv_pos_groups:
            raise ConfigError(f"dim {self.dim} is not a multiple of conv_pos_groups {self.conv_pos_groups}")


@dataclass(frozen=True)
class NativeEat(NativeEncoder):
    """EAT."""

    kind: Literal["eat"] = "eat"


@dataclass(frozen=True)
class NativeEncoders:
    """Whisper and the audio encoder for our own kernels."""

    whisper: NativeWhisper
    audio_encoder: NativeBeats | NativeEat | None = None

    @property
    def parts(self) -> dict[str, NativeEncoder]:
        """Those there are, by the names of their graphs."""
        return {name: encoder for name, encoder in vars(self).items() if encoder is not None}


@dataclass(frozen=True)
class ConfidenceThreshold:
    """Below which score an answer is not credible, from this bundle's own answers to recordings of speech."""

    score: float  # mean log probability of an answer's tokens
    false_rejection: float  # share of the recordings whose answers are below
    recordings: int
    annotation: str  # name of the file that lists them

    def __post_init__(self) -> None:
        if not -math.inf < self.score <= 0:
            raise ConfigError(f"score is {self.score}; expected a mean log probability, which is finite and at most 0")
        if not 0 <= self.false_rejection <= 1:
            raise ConfigError(f"false_rejection is {self.false_rejection}; expected a share, 0 to 1")
        if self.recordings < 1:
            raise ConfigError(f"recordings is {self.recordings}; it must be at least 1")


@dataclass(frozen=True)
class Provenance:
    """Where the bundle comes from."""

    model: str
    exporter: str
    sources: dict[str, str] = field(default_factory=dict)  # file -> sha256
    lora_scale: float | None = None  # of the adapters merged into the LLM
    pruned_layers: tuple[int, ...] = ()  # of the LLM, as its files number them
    whisper_pruned_layers: tuple[int, ...] = ()
    quantization: str = ""
    pruning: tuple[Pruning, ...] = field(default=(), metadata=OPTIONAL)  # how parts were made smaller, the oldest first
    distillation: tuple[Distillation, ...] = field(default=(), metadata=OPTIONAL)  # its teachers, the first one first


@dataclass(frozen=True)
class Manifest:
    """bundle.json."""

    format_version: int
    manifest_sha256: str  # of bundle.json itself, with these 64 digits as zeros
    target: Literal["cpu", "cuda"]
    audio: AudioConfig
    window: WindowConfig
    prompt: PromptConfig
    llm: LlmSpec
    precision: Precision
    provenance: Provenance
    graphs: dict[str, GraphSpec]  # qformer; whisper, audio_encoder, llm and draft if there are any
    files: dict[str, FileSpec]  # every file but bundle.json
    streaming: BlockConfig | None = None  # encoders that also hear in blocks; None: recordings at once only
    fbank: FbankConfig | None = None  # the front end of the audio encoder; None: there is none
    confidence: ConfidenceThreshold | None = field(default=None, metadata=OPTIONAL)  # None: none was measured
    encoders: NativeEncoders | None = field(default=None, metadata=OPTIONAL)  # None: they are graphs alone

    @property
    def encoder_runtimes(self) -> tuple[EncoderRuntime, ...]:
        """Those the bundle has weights of the encoders for."""
        graphs: tuple[EncoderRuntime, ...] = ("onnx",) if "whisper" in self.graphs else ()
        return (*graphs, "native") if self.encoders else graphs

    @property
    def native_files(self) -> tuple[str, ...]:
        """What our own kernels map."""
        llm = [self.llm.weights.native.file] if self.llm.weights.native else []
        return (*llm, *(part.file for part in (self.encoders.parts if self.encoders else {}).values()))

    def precisions(self, decoder: str) -> dict[str, str]:
        """What the weights of each part are stored as, the LLM's for one of `llm.weights.decoders`."""
        weights = getattr(self.llm.weights, decoder)
        mixed = f", {len(weights.int8)} matrices int8" if getattr(weights, "int8", ()) else ""
        parts = {**vars(self.precision), "llm": weights.precision + mixed, "lm_head": weights.lm_head}
        return {part: precision for part, precision in parts.items() if precision is not None}


def _check_mixed(precision: str, int8: tuple[str, ...]) -> None:
    if int8 and precision != "int4":
        raise ConfigError(f"{len(int8)} matrices are int8 beside others of {precision}; only int4 is mixed with int8")
    if len(set(int8)) < len(int8):
        raise ConfigError("int8 names a matrix twice")


def _check_size(name: str, value: int) -> None:
    if not 1 <= value <= MAX_SIZE:
        raise ConfigError(f"{name} is {value}; expected 1 to {MAX_SIZE}")


def _check_eps(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}; it must be above 0")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it is stored, its own hash filled in."""
    data = to_dict(manifest) | {"manifest_sha256": _NO_HASH}
    content = (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
    return content.replace(_NO_HASH.encode(), manifest_hash(content).encode(), 1)


def manifest_hash(content: bytes) -> str:
    """sha256 of a manifest's bytes with the digits of its own hash as zeros."""
    blanked = _OWN_HASH.sub(rb'\1"' + _NO_HASH.encode() + b'"', content, count=1)
    return hashlib.sha256(blanked).hexdigest()
