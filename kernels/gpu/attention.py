"""Attention of one new position of each sequence over pages of keys and values, with what comes right in front of it:
norms of queries and keys, rotary positions, and the new key and value put into their page.

A head's keys and values are shared by a group of queries, which one program computes. The positions that a sequence
sees are split between SPLITS programs, by its own length alone; each gives its part and the logarithm of its weight,
and whoever reads the parts adds them in order.

Heads are kept as two halves, which rotary positions turn against each other.
"""

import triton
import triton.language as tl
from torch import Tensor

from salmonrun.kernels.gpu.launch import TYPES, Launch, Launcher, dot, launch

SPLITS = 4
KEYS = 64  # that are read at once


def attend(
    qkv: Tensor,
    head_norms: tuple[Tensor, Tensor] | None,
    turns: tuple[Tensor, Tensor],
    cached: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor, Tensor],
    window: int | None,
    eps: float,
    run: Launcher = launch,
) -> tuple[Tensor, Tensor]:
    """Append a position to each of m sequences, and let it attend.

    Args:
        qkv: [parts, m, (heads + 2 kv_heads) * head_dim] in float32, which add up to queries, keys and values.
        head_norms: weights [head_dim] of the RMSNorm of queries and of keys, or None.
        turns: cosines and sines [positions, head_dim / 2] in float32.
        cached: keys and values [pages, page, kv_heads, head_dim], which are written to.
        places: of each sequence the new position [m], its row of the pool [m], and its pages [m, any] in int32.
        window: positions that are seen, the new one included; None: all.
        eps: of the norms.
        run: what becomes of the launch.

    Returns:
        parts [m, heads, SPLITS, head_dim] and the logarithms of their weights [m, heads, SPLITS], both in float32.
    """
    parts, m, width = qkv.shape
    _, page, kv_heads, head_dim = cached[0].shape
    heads = width // head_dim - 2 * kv_heads
    states = qkv.new_empty(m, heads, SPLITS, head_dim)
    weights = qkv.new_empty(m, heads, SPLITS)
    keys, values = cached
    positions, rows, tables = places
    cos, sin = turns
    q_norm, k_norm = head_norms or (None, None)
    arguments = {"qkv": qkv, "q_norm": q_norm, "k_norm": k_norm, "cos": cos, "sin": sin, "keys": keys, "values": values}
    arguments |= {"positions": positions, "rows": rows, "tables": tables, "states": states, "weights": weights}
    numbers = {"m": m, "pages": tables.shape[1], "eps": eps}
    constants = {
        "PARTS": parts,
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_DIM": head_dim,
        "HALF": max(16, triton.next_power_of_2(head_dim // 2)),
        "QUERIES": max(16, triton.next_power_of_2(heads // kv_heads)),
        "PAGE": page,
        "WINDOW": window or 0,
        "KEYS": KEYS,
        "SPLITS": SPLITS,
        "DTYPE": TYPES[cached[0].dtype],
    }
    run(Launch(attention_kernel, (m, kv_heads, SPLITS), {**arguments, **numbers, **constants}))
    return states, weights


@triton.jit
def attention_kernel(
    qkv: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    rows: tl.tensor,
    tables: tl.tensor,
    states: tl.tensor,
    weights: tl.tensor,
    m: tl.tensor,
    pages: tl.tensor,
    eps: tl.tensor,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    QUERIES: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> None:
    """The queries of one head of keys, over one split of one sequence."""
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + sequence).to(tl.int32)
    lanes, dims = tl.arange(0, QUERIES), tl.arange(0, HALF)
    group: tl.constexpr = HEADS // KV_HEADS
    asked = lanes < group
    there = (dims < HEAD_DIM // 2)[None, :]

    heads = head * group + tl.minimum(lanes, group - 1)
    all_heads: tl.constexpr = HEADS + 2 * KV_HEADS
    q0, q1 = _head(qkv, sequence, heads, dims, m, PARTS, all_heads, HEAD_DIM)
    q0, q1 = _turned(q0, q1, q_norm, cos, sin, position, dims, eps, HEAD_DIM)
    # the new key and value, in every lane alike, as the cache has them
    k0, k1 = _head(qkv, sequence, HEADS + head + 0 * lanes, dims, m, PARTS, all_heads, HEAD_DIM)
    k0, k1 = _turned(k0, k1, k_norm, cos, sin, position, dims, eps, HEAD_DIM)
    v0, v1 = _head(qkv, sequence, HEADS + KV_HEADS + head + 0 * lanes, dims, m, PARTS, all_heads, HEAD_DIM)
    k0, k1, v0, v1 = k0.to(DTYPE), k1.to(DTYPE), v0.to(DTYPE), v1.to(DTYPE)

    begin, end = _share(position, split, WINDOW, SPLITS, KEYS)
    owns = (begin <= position) & (position < end)
    row = (tl.load(rows + sequence).to(tl.int64) * KV_HEADS + head) * HEAD_DIM + dims[None, :] + 0 * lanes[:, None]
    writes = owns & there & (lanes == 0)[:, None]
    _store(keys + row, k0, k1, writes, HEAD_DIM)
    _store(values + row, v0, v1, writes, HEAD_DIM)

    # The new position is not read back: it is what the split that has it begins with.
    own = tl.sum(q0 * k0.to(tl.float32), axis=1) + tl.sum(q1 * k1.to(tl.float32), axis=1)
    largest = tl.where(owns, own * HEAD_DIM**-0.5, float("-inf"))
    total = tl.where(owns, tl.full([QUERIES], 1, tl.float32), 0)
    out0, out1 = tl.where(owns, v0.to(tl.float32), 0), tl.where(owns, v1.to(tl.float32), 0)
    end = tl.minimum(end, position)
    largest, total, out0, out1 = _over_cache(
        q0, q1, largest, total, out0, out1, keys, values, tables + sequence * pages, head, begin, end, dims, there,
        KV_HEADS, HEAD_DIM, PAGE, KEYS, DTYPE,
    )  # fmt: skip

    # A split without positions weighs nothing.
    total = tl.where(total > 0, total, 1)
    parts = (sequence * HEADS + heads) * SPLITS + split
    tl.store(weights + parts, largest + tl.log(total), mask=asked)
    place = states + parts[:, None] * HEAD_DIM + dims[None, :]
    _store(place, out0 / total[:, None], out1 / total[:, None], asked[:, None] & there, HEAD_DIM)


@triton.jit
def _share(
    position: tl.tensor, split: tl.tensor, WINDOW: tl.constexpr, SPLITS: tl.constexpr, KEYS: tl.constexpr
) -> tl.tensor:
    """Where a split of what is seen begins and ends; whole KEYS, so that only the last one is not full."""
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    each = tl.cdiv(tl.cdiv(position + 1 - first, SPLITS), KEYS) * KEYS
    return first + split * each, first + split * each + each


@triton.jit
def _store(place: tl.tensor, first: tl.tensor, second: tl.tensor, mask: tl.tensor, HEAD_DIM: tl.constexpr) -> None:
    """The halves of heads."""
    tl.store(place, first, mask=mask)
    tl.store(place + HEAD_DIM // 2, second, mask=mask)


@triton.jit
def _over_cache(
    q0: tl.tensor,  # [QUERIES, HALF]
    q1: tl.tensor,
    largest: tl.tensor,  # [QUERIES]: of the scores so far
    total: tl.tensor,  # [QUERIES]: of their exponentials, over that of the largest
    out0: tl.tensor,  # [QUERIES, HALF]: values by these
    out1: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    head: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    dims: tl.tensor,
    there: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """What is so far, and the positions from `begin` to `end`: a softmax whose largest score is not known."""
    half: tl.constexpr = HEAD_DIM // 2
    zeros = tl.zeros([q0.shape[0], KEYS], tl.float32)
    for start in range(begin, end, KEYS):
        cells, seen = _cells(table, head, start + tl.arange(0, KEYS), end, KV_HEADS, HEAD_DIM, PAGE)
        cells, inside = cells[:, None] + dims[None, :], seen[:, None] & there
        scores = dot(q0, tl.trans(tl.load(keys + cells, mask=inside, other=0)), zeros, DTYPE)
        scores = dot(q1, tl.trans(tl.load(keys + cells + half, mask=inside, other=0)), scores, DTYPE) * HEAD_DIM**-0.5
        scores = tl.where(seen[None, :], scores, float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(scores, axis=1))
        kept = tl.exp(before - largest)
        shares = tl.exp(scores - largest[:, None])
        total = total * kept + tl.sum(shares, axis=1)
        out0 = dot(shares, tl.load(values + cells, mask=inside, other=0), out0 * kept[:, None], DTYPE)
        out1 = dot(shares, tl.load(values + cells + half, mask=inside, other=0), out1 * kept[:, None], DTYPE)
    return largest, total, out0, out1


@triton.jit
def _cells(
    table: tl.tensor,
    head: tl.tensor,
    places: tl.tensor,  # [KEYS]
    end: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE: tl.constexpr,
) -> tl.tensor:
    """Where in the pool a head lies at some places of a sequence, and which are in front of `end`: [KEYS]."""
    seen = places < end
    page = tl.load(table + places // PAGE, mask=seen, other=0).to(tl.int64)
    return ((page * PAGE + places % PAGE) * KV_HEADS + head) * HEAD_DIM, seen


@triton.jit
def _head(
    qkv: tl.tensor,
    sequence: tl.tensor,
    heads: tl.tensor,  # [LANES]
    dims: tl.tensor,  # [HALF]
    m: tl.tensor,
    PARTS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """The halves of some heads, their parts added in order: [LANES, HALF] in float32."""
    seen = (dims < HEAD_DIM // 2)[None, :] & (heads >= 0)[:, None]
    first = tl.zeros([heads.shape[0], dims.shape[0]], tl.float32)
    second = tl.zeros([heads.shape[0], dims.shape[0]], tl.float32)
    for part in tl.static_range(PARTS):
        place = ((part * m + sequence) * ALL_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
        first += tl.load(qkv + place, mask=seen, other=0)
        second += tl.load(qkv + place + HEAD_DIM // 2, mask=seen, other=0)
    return first, second


@triton.jit
def _turned(
    first: tl.tensor,
    second: tl.tensor,
    norm: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    position: tl.tensor,
    dims: tl.tensor,
    eps: tl.tensor,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """Heads, normed if there is a norm, turned to their position."""
    half: tl.constexpr = HEAD_DIM // 2
    there = dims < half
    if norm is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first = first * inverse * tl.load(norm + dims, mask=there, other=0).to(tl.float32)[None, :]
        second = second * inverse * tl.load(norm + half + dims, mask=there, other=0).to(tl.float32)[None, :]
    c = tl.load(cos + position * half + dims, mask=there, other=0)[None, :]
    s = tl.load(sin + position * half + dims, mask=there, other=0)[None, :]
    return first * c - second * s, second * c + first * s
