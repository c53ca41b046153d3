"""The specification of the native encoders, and these, against the layers of PyTorch's Whisper, BEATs and EAT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salmonrun.kernels import encoder_reference as reference
from salmonrun.kernels.formats import F32, pack_floats_t16, quantize_t16
from salmonrun.kernels.reference import FloatLinear, Linear, Product
from salmonrun.runtime.config import Block
from salmonrun.training.model.blocks import attended
from salmonrun.training.model.encoders.beats import BeatsConfig, BeatsEncoder, relative_buckets
from salmonrun.training.model.encoders.eat import EatConfig, EatEncoder
from salmonrun.training.model.sizes import WhisperConfig
from salmonrun.training.model.whisper import LowRankLinear, WhisperEncoder
from tests.helpers.native_encoders import NativeEncoder, random_positions

POSITIONS = 60
RANKS = {"layers.0.fc1": 11, "layers.1.self_attn.out_proj": 24}
WHISPER = WhisperConfig(d_model=72, layers=2, heads=3, ffn=136, ranks=RANKS)
BEATS = BeatsConfig(dim=72, layers=2, heads=3, ffn=136, conv_pos_groups=4, num_buckets=16, max_distance=20)
EAT = EatConfig(dim=72, layers=2, heads=3, ffn=136)


def array(tensor: Tensor) -> F32:
    found: F32 = np.ascontiguousarray(tensor.detach().numpy())
    return found


@dataclass(frozen=True)
class Converter:
    """Parts of PyTorch's modules as the specification has them: products of floats, or of integers as in bundles."""

    floats: bool

    def linear(self, module: nn.Module, factor: float = 1.0) -> Product:
        if isinstance(module, LowRankLinear):
            return reference.LowRank(self.linear(module.up), self.linear(module.down))
        assert isinstance(module, nn.Linear)
        return self.matrix(array(module.weight * factor), None if module.bias is None else array(module.bias * factor))

    def matrix(self, weight: F32, bias: F32 | None) -> Product:
        rows, columns = weight.shape
        if self.floats:
            return FloatLinear(pack_floats_t16(weight), rows, columns, bias)
        return Linear(*quantize_t16(weight, 8, 128), rows, columns, 128, bias)

    def norm(self, module: nn.LayerNorm, factor: float = 1.0) -> reference.LayerNorm:
        return reference.LayerNorm(array(module.weight), array(module.bias), module.eps * factor)

    def encoder(self, layers: list[reference.EncoderLayer], heads: int, **parts: Any) -> reference.Encoder:
        return reference.Encoder(layers, heads, cache_dtype=np.float32 if self.floats else np.int8, **parts)


class Whisper:
    """Norms in front of what they are for, and one behind all; low rank here and there."""

    def __init__(self) -> None:
        self.module = WhisperEncoder(WHISPER)

    def states(self, x: Tensor, keys: Tensor | None) -> Tensor:
        for layer in self.module.layers:
            x = layer(x, keys)
        return self.module.layer_norm(x)

    def converted(self, to: Converter) -> reference.Encoder:
        layers = [self._layer(to, layer) for layer in self.module.layers]
        return to.encoder(layers, WHISPER.heads, norm_first=True, norm=to.norm(self.module.layer_norm))

    def _layer(self, to: Converter, layer: Any) -> reference.EncoderLayer:
        attention = layer.self_attn
        return reference.EncoderLayer(
            q=to.linear(attention.q_proj),
            k=to.linear(attention.k_proj),
            v=to.linear(attention.v_proj),
            out=to.linear(attention.out_proj),
            fc1=to.linear(layer.fc1),
            fc2=to.linear(layer.fc2),
            attention_norm=to.norm(layer.self_attn_layer_norm),
            mlp_norm=to.norm(layer.final_layer_norm),
        )


class Beats:
    """Norms behind sums, whose residuals have a weight, and a gated bias by distance."""

    def __init__(self) -> None:
        self.module = BeatsEncoder(BEATS).encoder

    def states(self, x: Tensor, keys: Tensor | None) -> Tensor:
        mask = None if keys is None else torch.where(keys, 0.0, -torch.inf)
        for layer in self.module.layers:
            x = layer(x, self.module.position_bias(x.shape[1]), mask)
        return x

    def converted(self, to: Converter) -> reference.Encoder:
        layers = [self._layer(to, layer) for layer in self.module.layers]
        buckets = relative_buckets(torch.arange(1 - POSITIONS, POSITIONS), BEATS)
        by_distance = array(self.module.relative_attention_bias(buckets).T)
        return to.encoder(layers, BEATS.heads, norm_first=False, bias_by_distance=by_distance)

    def _layer(self, to: Converter, layer: Any) -> reference.EncoderLayer:
        """LN(alpha x + f) with epsilon e is LN(x + f / alpha) with e / alpha^2; the gate's sums over 4 are folded."""
        attention, alpha = layer.self_attn, layer.alpha
        weight, bias = (array(part.unflatten(0, (2, 4)).sum(1)) for part in attention.grep_linear.parameters())
        return reference.EncoderLayer(
            q=to.linear(attention.q_proj),
            k=to.linear(attention.k_proj),
            v=to.linear(attention.v_proj),
            out=to.linear(attention.out_proj, 1 / alpha),
            fc1=to.linear(layer.fc1),
            fc2=to.linear(layer.fc2, 1 / alpha),
            attention_norm=to.norm(layer.self_attn_layer_norm, alpha**-2),
            mlp_norm=to.norm(layer.final_layer_norm, alpha**-2),
            gate=reference.Gate(weight, bias, array(attention.grep_a.flatten())),
        )


class Eat:
    """Norms behind sums."""

    def __init__(self) -> None:
        self.module = EatEncoder(EAT)

    def states(self, x: Tensor, keys: Tensor | None) -> Tensor:
        for layer in self.module.blocks:
            x = layer(x, keys)
        return x

    def converted(self, to: Converter) -> reference.Encoder:
        return to.encoder([self._layer(to, layer) for layer in self.module.blocks], EAT.heads, norm_first=False)

    def _layer(self, to: Converter, layer: Any) -> reference.EncoderLayer:
        weights, biases = (np.split(array(part), 3) for part in layer.attn.qkv.parameters())
        q, k, v = (to.matrix(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return reference.EncoderLayer(
            q=q,
            k=k,
            v=v,
            out=to.linear(layer.attn.proj),
            fc1=to.linear(layer.mlp.fc1),
            fc2=to.linear(layer.mlp.fc2),
            attention_norm=to.norm(layer.norm1),
            mlp_norm=to.norm(layer.norm2),
        )


Original = Whisper | Beats | Eat
KINDS: dict[str, Callable[[], Original]] = {"whisper": Whisper, "beats": Beats, "eat": Eat}
BLOCKS = (None, Block(8, 16), Block(10, 25), Block(32, 8))


@pytest.fixture(params=list(KINDS))
def original(request: pytest.FixtureRequest) -> Original:
    """With weights of norms, gates and biases that are not all alike, as PyTorch would have them."""
    torch.manual_seed(0)
    made = KINDS[request.param]()
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            if parameter.dim() == 1 or name.endswith("grep_a"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@dataclass(frozen=True)
class Case:
    """Positions of a recording, and the states that PyTorch has for them."""

    x: F32
    states: F32


def of_torch(original: Original, block: Block | None) -> Case:
    x = random_positions(POSITIONS, 72)
    with torch.no_grad():
        keys = attended(POSITIONS, None, block, torch.device("cpu"))
        return Case(x, array(original.states(torch.from_numpy(x)[None], keys)[0]))


def by_blocks(encode: Any, x: F32, block: Block | None) -> F32:
    """As a stream has it: each block sees itself, and what is kept of the look-back."""
    if block is None:
        return np.asarray(encode(x)[0])
    states, kept = [], None
    for begin in range(0, len(x), block.size):
        found, kept = encode(x[begin : begin + block.size], kept)
        kept = kept[:, -block.lookback :]
        states.append(found)
    return np.concatenate(states)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_graph_is_pytorchs(original: Original, block: Block | None) -> None:
    case = of_torch(original, block)
    found = by_blocks(original.converted(Converter(floats=True)), case.x, block)
    assert np.abs(found - case.states).max() <= 1e-5


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_states_of_integers_are_near_pytorchs(original: Original, block: Block | None) -> None:
    """Within 2 % of their size, and not the same: it is integers that are computed with."""
    case = of_torch(original, block)
    error = by_blocks(original.converted(Converter(floats=False)), case.x, block) - case.states
    assert 1e-3 <= np.sqrt(np.mean(np.square(error)) / np.mean(np.square(case.states))) <= 0.02


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_native_states_are_pytorchs(instruction_set: str, original: Original, block: Block | None) -> None:
    case = of_torch(original, block)
    encoder = NativeEncoder(original.converted(Converter(floats=True)), instruction_set, 2)
    assert np.abs(by_blocks(encoder, case.x, block) - case.states).max() <= 1e-5
