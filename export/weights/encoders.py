"""The encoders' weights for our own kernels: matrices in layout `t16`, under the checkpoint's own names.

docs/bundle.md says how each lies; convolutions over time are matrices, whose inputs are consecutive frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from salmonrun.export.graphs import whisper as whisper_graph
from salmonrun.export.graphs.encoder_products import matrices_of
from salmonrun.export.graphs.encoders import beats as beats_graph
from salmonrun.export.graphs.encoders import eat as eat_graph
from salmonrun.export.graphs.linear import F32, to_numpy
from salmonrun.export.options import EncoderPrecision
from salmonrun.export.weights.tensor_file import Array, TensorFileWriter
from salmonrun.kernels.formats import GROUP, pack_bfloat16_t16, pack_floats_t16, quantize_t16
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.manifest import NativeBeats, NativeEat, NativeEncoder, NativeEncoders, NativeWhisper
from salmonrun.runtime.parity import EncoderProducts
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.model.encoders.eat import EPS as EAT_EPS
from salmonrun.training.model.encoders.eat import EatConfig
from salmonrun.training.tensors import LazyTensors

FILES = {"whisper": "whisper.bin", "audio_encoder": "audio_encoder.bin"}
# Of int8: where all of a row's activations share a scale, the error on Whisper base is twice as large.
BLOCK: Literal[128] = 128
NativePrecision = Literal["fp32", "bf16", "int8"]


def native_encoders(
    source: Checkpoint, precision: EncoderPrecision, exact: Sequence[EncoderProducts] = ()
) -> NativeEncoders:
    """What the manifest says of a checkpoint's encoders.

    Args:
        source: the checkpoint.
        precision: of the matrices in their layers.
        exact: products of int8 encoders that stay in float32, for each runtime.
    """
    assert precision != "fp16", "ExportOptions has it for GPUs alone"
    config = source.config
    fp32 = {
        one.part: tuple(m for product in one.fp32 for m in matrices_of(product))
        for one in exact
        if one.runtime == "native"
    }
    whisper = replace(_whisper(config.whisper, precision), fp32=fp32.get("whisper", ()))
    if config.audio_encoder is None:
        return NativeEncoders(whisper)
    encoder = _audio_encoder(config.audio_encoder, max_frames(source), precision)
    return NativeEncoders(whisper, replace(encoder, fp32=fp32.get("audio_encoder", ())))


def max_frames(source: Checkpoint) -> int:
    """Frames of the filter bank that the longest recording has."""
    return round(source.config.audio.max_s * SAMPLE_RATE) // 160


def write_encoder(path: Path, encoder: NativeEncoder, config: object, tensors: LazyTensors) -> None:
    """Write one encoder's file, its tensors in the order they are used in.

    Args:
        path: of the file.
        encoder: what the manifest says of it.
        config: the checkpoint's, of this kind.
        tensors: its tensors, adapters merged.
    """
    with TensorFileWriter(path) as file:
        WRITERS[type(encoder)](_Writer(file, tensors, encoder), encoder, config)


def _whisper(config: WhisperConfig, precision: NativePrecision) -> NativeWhisper:
    return NativeWhisper(
        file=FILES["whisper"],
        layout="t16",
        block=BLOCK,
        activation_block=BLOCK,
        precision=precision,
        dim=config.d_model,
        layers=config.layers,
        heads=config.heads,
        ffn=config.ffn,
        positions=config.max_frames,
        eps=whisper_graph.EPS,
        layer_eps=whisper_graph.EPS,
    )


def _audio_encoder(config: AudioEncoderConfig, frames: int, precision: NativePrecision) -> NativeBeats | NativeEat:
    common = {
        "file": FILES["audio_encoder"],
        "layout": "t16",
        "block": BLOCK,
        "activation_block": BLOCK,
        "precision": precision,
        **{name: getattr(config, name) for name in ("dim", "layers", "heads", "ffn")},
    }
    if isinstance(config, EatConfig):
        positions = eat_graph.longest_positions(config, frames)
        return NativeEat(**common, positions=positions, eps=EAT_EPS, layer_eps=EAT_EPS)
    return NativeBeats(
        **common,
        positions=beats_graph.longest_positions(config, frames),
        eps=beats_graph.EPS,
        layer_eps=beats_graph.EPS / beats_graph.residual_weight(config) ** 2,
        patch_dim=config.patch_dim,
        conv_pos=config.conv_pos,
        conv_pos_groups=config.conv_pos_groups,
    )


class _Writer:
    """Adds tensors of a checkpoint to a file, each under its name."""

    def __init__(self, file: TensorFileWriter, tensors: LazyTensors, encoder: NativeEncoder) -> None:
        self._file = file
        self._tensors = tensors
        self._encoder = encoder

    def array(self, name: str) -> F32:
        """A tensor's values."""
        return to_numpy(self._tensors[name]())

    def vector(self, name: str, values: F32 | None = None) -> None:
        """A tensor as it is, or other values under its name."""
        self._file.add(name, self.array(name) if values is None else values.astype(np.float32))

    def norm(self, name: str) -> None:
        """Layer normalisation."""
        for part in ("weight", "bias"):
            self.vector(f"{name}.{part}")

    def linear(self, name: str, factor: float = 1.0) -> None:
        """A matrix of a layer, or two thin ones, and the bias if there is one; all of it times `factor`."""
        precision = self._encoder.precision_of(name)
        if f"{name}.down.weight" in self._tensors:
            down, up = (self.array(f"{name}.{part}.weight") for part in ("down", "up"))
            self._matrix(f"{name}.down", down, precision)
            self._matrix(f"{name}.up", np.pad(up, ((0, 0), (0, -len(down) % GROUP))), precision)
            self._bias(f"{name}.up", factor)
            return
        self._matrix(name, self.array(f"{name}.weight") * np.float32(factor), precision)
        self._bias(name, factor)

    def stacked(self, name: str, count: int) -> None:
        """Several matrices of a layer of one shape, one below the other in the checkpoint, each begun anew."""
        weight = self.array(f"{name}.weight")
        self._matrix(name, weight.reshape(count, -1, weight.shape[1]), self._encoder.precision_of(name))
        self._bias(name)

    def floats(self, name: str, weight: F32) -> None:
        """A matrix [out, in] in float32, whatever the layers have, or stacked ones [count, out, in]; its bias."""
        self._store_floats(name, weight)
        self._bias(name)

    def _bias(self, name: str, factor: float = 1.0) -> None:
        if f"{name}.bias" in self._tensors:
            self.vector(f"{name}.bias", self.array(f"{name}.bias") * np.float32(factor))

    def _matrix(self, name: str, weight: F32, precision: NativePrecision) -> None:
        """[out, in], or stacked ones."""
        if precision == "fp32":
            self._store_floats(name, weight)
            return
        if precision == "bf16":
            packed = [pack_bfloat16_t16(part) for part in weight.reshape(-1, *weight.shape[-2:])]
            self._add_stacked(f"{name}.weight", packed, weight.shape[:-2])
            return
        parts = [quantize_t16(part, 8, self._encoder.block) for part in weight.reshape(-1, *weight.shape[-2:])]
        for key, arrays in zip(("weight", "weight.scale"), zip(*parts, strict=True), strict=True):
            self._add_stacked(f"{name}.{key}", arrays, weight.shape[:-2])

    def _store_floats(self, name: str, weight: F32) -> None:
        parts = [pack_floats_t16(part) for part in weight.reshape(-1, *weight.shape[-2:])]
        self._add_stacked(f"{name}.weight", parts, weight.shape[:-2])

    def _add_stacked(self, name: str, parts: tuple[Array, ...] | list[Array], stacked: tuple[int, ...]) -> None:
        self._file.stream(name, parts[0].dtype, (*stacked, *parts[0].shape), parts)


def _write_whisper(writer: _Writer, encoder: NativeWhisper, _: WhisperConfig) -> None:
    for name in ("conv1", "conv2"):
        writer.floats(name, over_time(writer.array(f"{name}.weight")))
    writer.vector("embed_positions.weight")
    for i in range(encoder.layers):
        prefix = f"layers.{i}."
        writer.norm(f"{prefix}self_attn_layer_norm")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            writer.linear(f"{prefix}self_attn.{part}")
        writer.norm(f"{prefix}final_layer_norm")
        for part in ("fc1", "fc2"):
            writer.linear(f"{prefix}{part}")
    writer.norm("layer_norm")


def _write_beats(writer: _Writer, encoder: NativeBeats, config: BeatsConfig) -> None:
    writer.floats("patch_embedding", writer.array("patch_embedding.weight").reshape(config.patch_dim, -1))
    writer.norm("layer_norm")
    writer.floats("post_extract_proj", writer.array("post_extract_proj.weight"))
    grouped = over_time(writer.array("encoder.pos_conv.weight"))
    writer.floats("encoder.pos_conv", grouped.reshape(config.conv_pos_groups, -1, grouped.shape[1]))
    writer.norm("encoder.layer_norm")
    table = writer.array("encoder.relative_attention_bias.weight")
    writer.vector("bias_by_distance", beats_graph.bias_by_distance(table, config, encoder.positions))
    factor = 1 / beats_graph.residual_weight(config)
    for i in range(encoder.layers):
        prefix = f"encoder.layers.{i}."
        attention = f"{prefix}self_attn."
        for part in ("q_proj", "k_proj", "v_proj"):
            writer.linear(f"{attention}{part}")
        gate = (writer.array(f"{attention}grep_linear.{part}") for part in ("weight", "bias"))
        for part, values in zip(("weight", "bias"), beats_graph.folded_gate(*gate), strict=True):
            writer.vector(f"{attention}gate.{part}", values)
        writer.vector(f"{attention}grep_a", writer.array(f"{attention}grep_a").ravel())
        writer.linear(f"{attention}out_proj", factor)
        writer.norm(f"{prefix}self_attn_layer_norm")
        writer.linear(f"{prefix}fc1")
        writer.linear(f"{prefix}fc2", factor)
        writer.norm(f"{prefix}final_layer_norm")


def _write_eat(writer: _Writer, encoder: NativeEat, config: EatConfig) -> None:
    writer.floats("patch_embedding", writer.array("patch_embedding.weight").reshape(config.dim, -1))
    writer.vector("positions", writer.array("positions")[0, : encoder.positions])
    writer.vector("cls_token", writer.array("cls_token").ravel())
    writer.norm("pre_norm")
    for i in range(encoder.layers):
        prefix = f"blocks.{i}."
        writer.stacked(f"{prefix}attn.qkv", 3)
        writer.linear(f"{prefix}attn.proj")
        writer.norm(f"{prefix}norm1")
        for part in ("fc1", "fc2"):
            writer.linear(f"{prefix}mlp.{part}")
        writer.norm(f"{prefix}norm2")


WRITERS: dict[type[NativeEncoder], Callable[..., None]] = {
    NativeWhisper: _write_whisper,
    NativeBeats: _write_beats,
    NativeEat: _write_eat,
}


def over_time(convolution: F32) -> F32:
    """[out, in, kernel] as a matrix [out, kernel * in] of consecutive frames [in], one behind the other."""
    return convolution.transpose(0, 2, 1).reshape(len(convolution), -1)
