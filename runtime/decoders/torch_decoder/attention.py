"""Attention of new positions over pages of keys and values: by flash-attn where it runs, else by PyTorch's own."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata

import torch
import torch.nn.functional as F
from torch import Tensor

from salmonrun.runtime.decoders.torch_decoder.pages import PAGE

# Parts that keys are split into, of any batch: so a row's sums have one order whatever is computed beside it.
SPLITS = 4
FLASH_CAPABILITY = (8, 0)  # of flash-attn 2


@dataclass(frozen=True, eq=False)
class Places:
    """Where B sequences of S new positions each lie, on the device."""

    positions: Tensor  # [B, S] int64: in their sequences
    rows: Tensor  # [B * S] int64: of the pool
    lengths: Tensor  # [B] int32: of the sequences, the new positions included
    tables: Tensor  # [B, pages] int32: their pages; what stands behind them does not matter
    _masks: dict[int | None, Tensor] = field(default_factory=dict, init=False)

    def mask(self, window: int | None) -> Tensor:
        """Which keys a position sees: [B, 1, S, pages * PAGE]."""
        if window not in self._masks:
            keys = torch.arange(self.tables.shape[1] * PAGE, device=self.tables.device)
            seen = keys <= self.positions[..., None]  # [B, S, keys]
            if window is not None:
                seen &= keys > self.positions[..., None] - window
            self._masks[window] = seen[:, None]
        return self._masks[window]


@dataclass(frozen=True)
class Attention:
    """An implementation.

    `attend` takes queries [B, S, heads, head_dim], the layer's pool of keys and of values, each
    [pages, PAGE, kv_heads, head_dim], places, and how many positions are seen (None: all); it gives what queries are.
    """

    name: str
    whole_tables: bool  # whether tables of the longest sequence cost no more than short ones
    attend: Callable[[Tensor, Tensor, Tensor, Places, int | None], Tensor]


def choose_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    """flash-attn on a GPU that it is installed for, in half precision; else PyTorch's scaled_dot_product_attention."""
    half = dtype in (torch.float16, torch.bfloat16)
    fits = device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    if fits and importlib.util.find_spec("flash_attn") is not None:
        return flash()
    return Attention("sdpa", False, sdpa)


def sdpa(queries: Tensor, keys: Tensor, values: Tensor, places: Places, window: int | None) -> Tensor:
    """By PyTorch: pages are gathered, which costs a copy."""
    batch = len(places.tables)
    k, v = (pool[places.tables].view(batch, -1, *pool.shape[2:]).transpose(1, 2) for pool in (keys, values))
    mask = places.mask(window)
    out = F.scaled_dot_product_attention(queries.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def flash() -> Attention:
    """By flash-attn, which reads pages where they lie."""
    kernel = importlib.import_module("flash_attn").flash_attn_with_kvcache

    def attend(queries: Tensor, keys: Tensor, values: Tensor, places: Places, window: int | None) -> Tensor:
        out: Tensor = kernel(
            queries,
            keys,
            values,
            cache_seqlens=places.lengths,
            block_table=places.tables,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            num_splits=SPLITS,
        )
        return out

    return Attention(f"flash-attn {metadata.version('flash-attn')}", True, attend)
