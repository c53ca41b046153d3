"""EAT (Chen et al. 2024, "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer"; cwx-worst-one/EAT).

A vision transformer on patches of a filter bank: post-norm blocks (those of data2vec 2.0), a CLS token, and fixed
positions in time and frequency. Parameter names are those of the published Hugging Face files, but for the first part.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmonrun.runtime.config import Block, FbankConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.model.blocks import attended, valid_positions
from salmonrun.training.model.encoders.published import Leftovers, Published, check_patches
from salmonrun.training.model.features import count_tokens
from salmonrun.training.model.sizes import check_sizes
from salmonrun.training.tensors import LazyTensors, account_for, read_sizes

EPS = 1e-6
# cwx-worst-one/EAT, feature_extract: the normalisation is AudioSet's; frames behind the end are log energies of 0.
EAT_FBANK = FbankConfig(
    window="hanning", waveform_scale=1.0, subtract_mean=True, mean=-4.268, scale=2 * 4.569, last_patch="padded"
)


@dataclass(frozen=True)
class EatConfig:
    """Dimensions of an EAT encoder. Defaults are EAT-base's."""

    block_causal: ClassVar[bool] = False  # its CLS token attends to all, and all attend to it
    layer_prefix: ClassVar[str] = "blocks."  # of the names of a layer's tensors, before its number

    kind: Literal["eat"] = "eat"
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    patch_size: int = 16
    max_patches: int = 768  # in time: the table of positions has a row for each of their bands
    fbank: FbankConfig = EAT_FBANK

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "layers", "heads", "ffn", "patch_size", "max_patches")
        if self.dim % self.heads or self.dim % 4:
            raise ConfigError(f"dim {self.dim} is not a multiple of heads {self.heads} and of 4")
        check_patches(self.fbank, self.patch_size)

    @property
    def longest_s(self) -> float:
        """Audio for which there are positions."""
        return self.max_patches * self.patch_size / 100

    def with_layers(self, count: int) -> "EatConfig":
        """Of so many of its layers."""
        return replace(self, layers=count)

    def build(self) -> "EatEncoder":
        """An encoder of random weights."""
        return EatEncoder(self)


class EatEncoder(nn.Module):
    """Normalised filter bank to audio states: 8 frequency bands of each 160 ms, time-major."""

    positions: Tensor  # a buffer: a table that is stored but never trained

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(1, config.dim, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, config.dim), std=0.02))
        self.register_buffer("positions", sincos_positions(config.max_patches, config.fbank.patch_tokens, config.dim))
        self.pre_norm = nn.LayerNorm(config.dim, eps=EPS)
        self.blocks = nn.ModuleList(EatBlock(config) for _ in range(config.layers))

    def forward(self, fbank: Tensor, frames: Tensor | None = None, block: Block | None = None) -> Tensor:
        """Encode a batch.

        Args:
            fbank: [B, F, 128], normalised.
            frames: [B] valid frames of each row, whole patches; None: all. A padded row gives what it gives alone.
            block: must be None.

        Returns:
            [B, 8 * (F // 16), dim], the CLS token left out; states past a row's end are zeros.

        Raises:
            ConfigError: there is a `block`.
        """
        if block is not None:
            raise ConfigError("EAT cannot hear in blocks: its CLS token hears all of the recording")
        x = self.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)  # [B, T, dim], time-major
        x = x + self.positions[:, : x.shape[1]]
        x = self.pre_norm(torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1))
        valid = None
        if frames is not None and bool((frames != fbank.shape[1]).any()):
            valid = valid_positions(1 + count_tokens(frames, self.config.fbank), x.shape[1])
        keys = attended(x.shape[1], valid, None, x.device)
        for layer in self.blocks:
            x = layer(x, keys)
        return x[:, 1:] if valid is None else (x * valid[..., None])[:, 1:]


class EatBlock(nn.Module):
    """Attention, then feed-forward, each added to what came in and then normalised."""

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.attn = EatAttention(config)
        self.norm1 = nn.LayerNorm(config.dim, eps=EPS)
        fc1, fc2 = nn.Linear(config.dim, config.ffn), nn.Linear(config.ffn, config.dim)
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.norm2 = nn.LayerNorm(config.dim, eps=EPS)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, dim], keys to attend to [B, 1, 1, T] or None for all -> [B, T, dim]."""
        x = self.norm1(x + self.attn(x, keys))
        return self.norm2(x + self.mlp(x))


class EatAttention(nn.Module):
    """Bidirectional multi-head attention; one product for queries, keys and values."""

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, dim], keys to attend to [B, 1, 1, T] or None for all -> [B, T, dim]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2).flatten(2))


def sincos_positions(patches: int, bands: int, dim: int) -> Tensor:
    """EAT's table [1, patches * bands, dim], time-major: half of a row encodes the band, half the patch in time.

    Sines, then cosines, of frequencies 1 to 1/10000 (He et al. 2022, masked autoencoders, with the width first).
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    time, band = (grid.flatten() for grid in torch.meshgrid(torch.arange(patches), torch.arange(bands), indexing="ij"))
    angles = [positions[:, None] * frequencies for positions in (band, time)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()[None]


# Published name -> ours, of fairseq's .pt and of the Hugging Face folder. Fine-tuned .pt and folders have "model.".
NAMES = (
    (r"(?:model\.)?(?:modality_encoders\.IMAGE\.)?extra_tokens", "cls_token"),
    (r"(?:model\.)?(?:modality_encoders\.IMAGE\.)?local_encoder\.proj\.(weight|bias)", r"patch_embedding.\1"),
    (r"(?:model\.)?(?:modality_encoders\.IMAGE\.)?fixed_positional_encoder\.positions", "positions"),
    (r"(?:model\.)?(?:modality_encoders\.IMAGE\.context_encoder\.norm|pre_norm)\.(weight|bias)", r"pre_norm.\1"),
    (
        r"(?:model\.)?(blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))",
        r"\1",
    ),
)
LEFTOVERS = (
    (r"modality_encoders\.IMAGE\.decoder\..*", "decoder that pre-training predicts masked patches with"),
    (r"_ema(\..*)?", "teacher of the pre-training"),
    (r"(?:model\.)?(?:fc_norm|head)\.(weight|bias)", "classifier of the fine-tuning"),
)
# What the maths here presumes; keys that a file does not have are as in all published ones.
SWITCHES = {
    "layer_norm_first": False,
    "norm_eps": EPS,
    "norm_affine": True,
    "qkv_bias": True,
    "fixed_positions": True,
    "in_chans": 1,
    "mel_bins": 128,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
    "use_alibi_encoder": False,
}


def recognises(published: Published) -> bool:
    """Whether this is an EAT .pt or folder."""
    return any(name.endswith("fixed_positional_encoder.positions") for name in published.tensors)


def read(published: Published) -> tuple[EatConfig, LazyTensors, Leftovers]:
    """A published EAT, pre-trained or fine-tuned: the encoder's tensors under our names, all else left out.

    Raises:
        CheckpointError: a key is neither used nor a known leftover, or the sizes are not known.
    """
    where = str(published.path)
    tensors, leftovers = rename(published)
    options = _options(published.options, where)
    for key, value in SWITCHES.items():
        if options.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} is {options[key]!r}; only {value!r} is supported")
    (heads,) = read_sizes(options, ("num_heads",), where)
    for name in ("patch_embedding.weight", "positions", "blocks.0.mlp.fc1.weight"):
        if name not in tensors:
            raise CheckpointError(f"{where} has no tensor for {name}; the model's size is not known")
    dim, _, _, patch = tensors["patch_embedding.weight"]().shape
    rows = tensors["positions"]().shape[1]
    config = EatConfig(
        dim=dim,
        layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        heads=heads,
        ffn=len(tensors["blocks.0.mlp.fc1.weight"]()),
        patch_size=patch,
        max_patches=rows // EAT_FBANK.patch_tokens,
    )
    return config, tensors, leftovers


def rename(published: Published) -> tuple[LazyTensors, Leftovers]:
    """The tensors under our names, and those left out with the reason.

    Raises:
        CheckpointError: a key is neither used nor a known leftover, or one is there under two names.
    """
    return account_for(published.tensors, NAMES, LEFTOVERS, str(published.path), published.others)


def _options(options: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of the model: a folder's config.json, or in a .pt's `cfg`, those of its one modality with them."""
    if "cfg" not in options:
        return options
    try:
        model = options["cfg"]["model"]
        model = (model.get("pretrained_model_args") or {"model": model})["model"]  # of a fine-tuned one
        return {**model, **model["modalities"]["image"]}
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: cfg has no model with modalities.image; expected an EAT file") from error
