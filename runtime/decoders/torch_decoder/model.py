"""The LLM's layers in PyTorch: new positions of a batch in, their states out, keys and values into the pool."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from salmonrun.runtime.decoders.torch_decoder.attention import Attention, Places
from salmonrun.runtime.decoders.torch_decoder.products import Product


@dataclass(frozen=True, eq=False)
class Mlp:
    """SwiGLU."""

    gate_up: Product
    down: Product

    def __call__(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Experts, of which each position is computed by a few, and one that all share if there is one."""

    router: Tensor  # [experts, dim]
    experts: list[Mlp]
    per_token: int
    normalised: bool  # the weights of those chosen are made to sum to one
    shared: Mlp | None
    shared_gate: Tensor | None  # [1, dim]

    def __call__(self, x: Tensor) -> Tensor:
        """[..., dim] to the same."""
        flat = x.flatten(0, -2)
        shares, chosen = F.linear(flat, self.router).float().softmax(dim=-1).topk(self.per_token, dim=-1)
        if self.normalised:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        for expert in chosen.unique().tolist():
            rows, place = torch.where(chosen == expert)  # a row once at most: one order of sums
            out[rows] += self.experts[expert](flat[rows]) * shares[rows, place, None].to(x.dtype)
        if self.shared is not None and self.shared_gate is not None:
            out += self.shared(flat) * F.linear(flat, self.shared_gate).sigmoid()
        return out.view_as(x)


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer."""

    input_norm: Tensor
    qkv: Product
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    o: Product
    post_norm: Tensor
    mlp: Mlp | Mixture
    window: int | None  # positions it sees, its own included; None: all


@dataclass(frozen=True, eq=False)
class Pool:
    """Keys and values of all layers and sequences: each [layers, pages, PAGE, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        """That it takes."""
        return self.keys.nbytes + self.values.nbytes

    def clear(self, pages: list[int]) -> None:
        """Make pages zero."""
        for buffer in (self.keys, self.values):
            buffer[:, pages] = 0

    def copy(self, pages: list[tuple[int, int]]) -> None:
        """Copy pages: (from, to)."""
        sources, targets = map(list, zip(*pages, strict=True))
        for buffer in (self.keys, self.values):
            buffer[:, targets] = buffer[:, sources]


@dataclass(frozen=True, eq=False)
class TorchModel:
    """All of it but the embeddings."""

    layers: list[Layer]
    norm: Tensor
    head: Product
    cos: Tensor  # [max_length, head_dim / 2] in float32
    sin: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    dtype: torch.dtype  # of activations, keys and values

    @property
    def launches_alike(self) -> bool:
        """Whether a batch of one size launches the same kernels whatever is in it, as a CUDA graph demands."""
        return not any(isinstance(layer.mlp, Mixture) for layer in self.layers)

    @property
    def products(self) -> tuple[str, ...]:
        """What multiplies with its matrices."""
        return tuple(sorted({layer.o.name for layer in self.layers} | {self.head.name}))

    def states(self, x: Tensor, pool: Pool, places: Places, attention: Attention) -> Tensor:
        """Append B sequences' new positions [B, S, dim]: their states [B, S, dim] behind the last layer."""
        turns = self.cos[places.positions][:, :, None], self.sin[places.positions][:, :, None]
        x = x.to(self.dtype)
        for index, layer in enumerate(self.layers):
            cached = pool.keys[index], pool.values[index]
            x = x + self._attend(layer, self._normed(x, layer.input_norm), turns, cached, places, attention)
            x = x + layer.mlp(self._normed(x, layer.post_norm))
        return x

    def logits(self, states: Tensor) -> Tensor:
        """[..., dim] to [..., V] in float32."""
        return self.head(self._normed(states, self.norm)).float()

    def _attend(
        self,
        layer: Layer,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        cached: tuple[Tensor, Tensor],
        places: Places,
        attention: Attention,
    ) -> Tensor:
        heads = layer.qkv(x).unflatten(-1, (-1, self.head_dim))  # [B, S, heads + 2 kv_heads, head_dim]
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._normed(q, layer.q_norm), self._normed(k, layer.k_norm)
        q, k = _rotated(q, *turns), _rotated(k, *turns)
        for buffer, new in zip(cached, (k, v), strict=True):
            buffer.flatten(0, 1)[places.rows] = new.flatten(0, 1)
        return layer.o(attention.attend(q, *cached, places, layer.window).flatten(2))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of halves of heads [B, S, heads, head_dim], computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
