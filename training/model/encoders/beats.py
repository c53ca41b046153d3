"""BEATs (Chen et al. 2022; microsoft/unilm, beats): filter-bank patches to audio states.

Post-norm DeepNorm layers, a convolution for positions, and a relative position bias that each query gates.
Parameter names are those of the published checkpoints, but for the convolution's weight norm, which is folded, and the
bias table, which the published files repeat in every layer.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmonrun.runtime.config import Block, FbankConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import OPTIONAL
from salmonrun.training.model.blocks import attended, valid_positions
from salmonrun.training.model.encoders.published import Leftovers, Published, check_patches
from salmonrun.training.model.features import count_tokens
from salmonrun.training.model.sizes import check_sizes
from salmonrun.training.tensors import LazyTensors, lazy, read_sizes

BIAS_TABLE = "self_attn.relative_attention_bias.weight"
# Our name of a size -> the published one.
CFG_NAMES = {
    "dim": "encoder_embed_dim",
    "layers": "encoder_layers",
    "heads": "encoder_attention_heads",
    "ffn": "encoder_ffn_embed_dim",
    "patch_dim": "embed_dim",
    "patch_size": "input_patch_size",
    "conv_pos": "conv_pos",
    "conv_pos_groups": "conv_pos_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_distance",
}


@dataclass(frozen=True)
class BeatsConfig:
    """Dimensions of a BEATs encoder. Defaults are those of all published checkpoints."""

    block_causal: ClassVar[bool] = True
    longest_s: ClassVar[float] = math.inf
    layer_prefix: ClassVar[str] = "encoder.layers."  # of the names of a layer's tensors, before its number

    kind: Literal["beats"] = "beats"
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    patch_dim: int = 512
    patch_size: int = 16
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    fbank: FbankConfig = field(default_factory=FbankConfig)
    # Layers by which DeepNorm weighs residuals, if it was trained with more than are left of it; None: `layers`.
    deepnorm_layers: int | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        check_sizes(self, *CFG_NAMES)
        if self.dim % self.heads:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.dim % self.conv_pos_groups:
            raise ConfigError(f"dim {self.dim} is not a multiple of conv_pos_groups {self.conv_pos_groups}")
        check_patches(self.fbank, self.patch_size)

    def with_layers(self, count: int) -> "BeatsConfig":
        """Of so many of its layers, which stay what they are: their residuals keep their weight."""
        return replace(self, layers=count, deepnorm_layers=self.deepnorm_layers or self.layers)

    def build(self) -> "BeatsEncoder":
        """An encoder of random weights."""
        return BeatsEncoder(self)


class BeatsEncoder(nn.Module):
    """Normalised filter bank to audio states: 8 frequency bands of each 160 ms, time-major."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(1, config.patch_dim, config.patch_size, stride=config.patch_size, bias=False)
        self.layer_norm = nn.LayerNorm(config.patch_dim)
        self.post_extract_proj = nn.Linear(config.patch_dim, config.dim)
        self.encoder = BeatsLayers(config)

    def forward(self, fbank: Tensor, frames: Tensor | None = None, block: Block | None = None) -> Tensor:
        """Encode a batch.

        Args:
            fbank: [B, F, 128], normalised.
            frames: [B] valid frames of each row; None if all are. A padded row gives what it gives alone.
            block: a state sees nothing after its own block; there is one state for each of Whisper's frames.

        Returns:
            [B, 8 * (F // 16), dim]; states past a row's end are zeros.
        """
        patches = self.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)  # [B, T, patch_dim], time-major
        x = self.post_extract_proj(self.layer_norm(patches))
        if frames is None or bool((frames == fbank.shape[1]).all()):
            return self.encoder(x, None, block)
        return self.encoder(x, valid_positions(count_tokens(frames, self.config.fbank), x.shape[1]), block)


class BeatsLayers(nn.Module):
    """Convolutional positions, then DeepNorm layers that share one relative position table."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv = nn.Conv1d(
            config.dim, config.dim, config.conv_pos, padding=config.conv_pos // 2, groups=config.conv_pos_groups
        )
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.heads)
        self.layer_norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, valid: Tensor | None, block: Block | None = None) -> Tensor:
        """[B, T, dim], valid [B, T] or None -> [B, T, dim]."""
        length = x.shape[1]
        if valid is not None:
            x = x * valid[..., None]
        x = self.layer_norm(x + F.gelu(self.positions(x, block)))
        bias = self.position_bias(length)
        keys = attended(length, valid, block, x.device)
        mask = None if keys is None else torch.where(keys, 0.0, -torch.inf).to(x.dtype)
        for layer in self.layers:
            x = layer(x, bias, mask)
        return x if valid is None else x * valid[..., None]

    def positions(self, x: Tensor, block: Block | None) -> Tensor:
        """The convolution [B, T, dim] -> [B, T, dim]; with blocks each sees zeros in place of the next one."""
        x = x.transpose(1, 2)
        if block is None:
            return self.pos_conv(x)[..., : x.shape[2]].transpose(1, 2)
        half, size = self.config.conv_pos // 2, block.size
        count = -(-x.shape[2] // size)
        pieces = F.pad(x, (half, count * size - x.shape[2])).unfold(
            2, half + size, size
        )  # [B, dim, count, half + size]
        pieces = F.pad(pieces.transpose(1, 2).flatten(0, 1), (0, half))
        encoded = F.conv1d(pieces, self.pos_conv.weight, self.pos_conv.bias, groups=self.pos_conv.groups)[..., :size]
        return encoded.unflatten(0, (-1, count)).transpose(2, 3).flatten(1, 2)[:, : x.shape[2]]

    def position_bias(self, length: int) -> Tensor:
        """[heads, length, length]: depends on key - query only."""
        positions = torch.arange(length, device=self.relative_attention_bias.weight.device)
        buckets = relative_buckets(positions[None, :] - positions[:, None], self.config)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)


class BeatsLayer(nn.Module):
    """Post-norm layer with DeepNorm's residual weight (Wang et al. 2022)."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.alpha = deepnorm_alpha(config.deepnorm_layers or config.layers)
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.dim)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, dim], bias [heads, T, T], mask [B or 1, 1, T or 1, T] or None -> [B, T, dim]."""
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias, mask))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class BeatsAttention(nn.Module):
    """Attention whose position bias each query scales by a gate computed from its own (unscaled) vector."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.out_proj = nn.Linear(config.dim, config.dim)
        self.grep_linear = nn.Linear(config.dim // config.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, config.heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, dim], bias [heads, T, T], mask [B or 1, 1, T or 1, T] or None -> [B, T, dim]."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        gated = self.gate(q) * bias
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=gated if mask is None else gated + mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def gate(self, q: Tensor) -> Tensor:
        """[B, heads, T, head_dim] -> [B, heads, T, 1]."""
        a, b = torch.sigmoid(self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return a * (b * self.grep_a - 1.0) + 2.0


def deepnorm_alpha(layers: int) -> float:
    """DeepNorm's residual weight for an encoder: (2 N) ** (1/4)."""
    return math.pow(2 * layers, 0.25)


def relative_buckets(relative: Tensor, config: BeatsConfig) -> Tensor:
    """T5's bidirectional buckets of `relative` = key - query, any shape: exact when near, logarithmic when far."""
    half = config.num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    # The log is taken in float32 and of at least `exact`, as published, so that the truncation falls alike.
    far = torch.log(distance.clamp(min=exact).float() / exact) / math.log(config.max_distance / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    return torch.where(relative > 0, half, 0) + torch.where(distance < exact, distance, far)


def recognises(published: Published) -> bool:
    """Whether a published file is a BEATs .pt."""
    return "patch_embedding.weight" in published.tensors


def read(published: Published) -> tuple[BeatsConfig, LazyTensors, Leftovers]:
    """A published BEATs .pt: its weight norm folded, its repeated bias tables and its classifier left out."""
    cfg, where = published.options.get("cfg"), str(published.path)
    if not isinstance(cfg, dict):
        raise CheckpointError(f"{where} has no 'cfg'; expected a BEATs file")
    if published.others:
        raise CheckpointError(f"{where}: {', '.join(published.others[:5])} are no tensors; expected a BEATs file")
    used = {name: get for name, get in published.tensors.items() if not _leftover(name)}
    leftovers = {name: reason for name in published.tensors if (reason := _leftover(name))}
    return beats_config(cfg, where), beats_tensors(used, where), leftovers


def _leftover(name: str) -> str | None:
    """Why a published tensor is not needed, if it is not."""
    if name.startswith("predictor."):
        return "classifier of the fine-tuning"
    if name.endswith(BIAS_TABLE) and not name.startswith("encoder.layers.0."):
        return "copy of the shared bias table"
    return None


def beats_config(cfg: dict[str, Any], where: str) -> BeatsConfig:
    """Our config from the published one; the switches that change the maths must be as in every published file."""
    expected = {
        "layer_norm_first": False,
        "deep_norm": True,
        "relative_position_embedding": True,
        "gru_rel_pos": True,
        "conv_bias": False,
        "activation_fn": "gelu",
    }
    for key, value in expected.items():
        if cfg.get(key, value) != value:
            raise CheckpointError(f"{where}: cfg.{key} is {cfg[key]!r}; only {value!r} is supported")
    sizes = read_sizes(cfg, tuple(CFG_NAMES.values()), f"{where}: cfg")
    return replace(BeatsConfig(), **dict[str, Any](zip(CFG_NAMES, sizes, strict=True)))


def beats_tensors(state: LazyTensors, where: str) -> LazyTensors:
    """Published names to ours. Both weight-norm namings are read."""
    ours = {
        f"encoder.layers.0.{BIAS_TABLE}": "encoder.relative_attention_bias.weight",
        "encoder.pos_conv.0.bias": "encoder.pos_conv.bias",
    }
    normed = ("encoder.pos_conv.0.weight", "encoder.pos_conv.0.parametrizations.")
    tensors = {ours.get(name, name): get for name, get in state.items() if not name.startswith(normed)}
    for magnitude, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        g, v = state.get(f"encoder.pos_conv.0.{magnitude}"), state.get(f"encoder.pos_conv.0.{direction}")
        if g and v:
            tensors |= lazy({"encoder.pos_conv.weight": fold_weight_norm(g(), v())})
            return tensors
    raise CheckpointError(f"{where}: encoder.pos_conv.0 has neither weight_g/weight_v nor parametrizations.weight.*")


def fold_weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """torch's weight_norm(dim=2): g [1, 1, K] scales each kernel tap of v [out, in, K] to unit norm."""
    return g * v / v.norm(dim=(0, 1), keepdim=True)
