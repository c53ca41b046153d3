"""Attention of new positions over pages, its norms, rotary positions and writes, against kernels/reference.py."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'salmonrun[triton]'")

from salmonrun.kernels import reference
from salmonrun.kernels.gpu.attention import SPLITS, attend
from salmonrun.kernels.gpu.products import attended_product
from salmonrun.runtime.arrays import F32
from tests.helpers.gpu_matrices import on_device, random_matrix

EPS = 1e-5
# Of what is of order one. Keys, values, queries and shares are rounded to half precision; by Triton's interpreter, in
# bfloat16, to zero and not to nearest.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]  # of sequences, the new position included
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 16
    page: int = 64
    window: int | None = None
    head_norms: bool = False
    parts: int = 1
    dtype: torch.dtype = torch.float32


CASES = {
    "one position": Case((1,)),
    "many lengths": Case((1, 64, 65, 130)),
    "one page of many positions": Case((255, 256), page=256),
    "more pages than splits": Case((333,)),
    "one head": Case((70,), heads=1),
    "a group of 3, odd sizes": Case((90,), heads=9, kv_heads=3, head_dim=20),
    "a window": Case((3, 9, 150), window=8),
    "a window of one": Case((7,), window=1),
    "a long window": Case((260,), window=129),
    "norms and parts": Case((1, 80), head_norms=True, parts=3, head_dim=32),
    "float16": Case((80,), dtype=torch.float16, head_norms=True),
    "bfloat16": Case((80,), dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    """What comes out, and what is written: to one row of each sequence, and nowhere else."""
    case = CASES[name]
    rng = np.random.default_rng(0)
    m, all_heads = len(case.lengths), case.heads + 2 * case.kv_heads
    pages = [-(-length // case.page) for length in case.lengths]
    numbers = 1 + rng.permutation(sum(pages))
    tables = np.full((m, max(pages) + 1), 10**6, np.int32)  # what stands behind a sequence's pages is not used
    for i, numbers_of in enumerate(np.split(numbers, np.cumsum(pages)[:-1])):
        tables[i, : pages[i]] = numbers_of
    shape = (1 + sum(pages), case.page, case.kv_heads, case.head_dim)
    pool = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    rows = np.array(
        [tables[i, (n - 1) // case.page] * case.page + (n - 1) % case.page for i, n in enumerate(case.lengths)]
    )
    for part in pool:
        for i, length in enumerate(case.lengths):  # what is behind a sequence must not be seen
            part[tables[i, pages[i] - 1], (length - 1) % case.page :] = np.nan
    cached = [on_device(part, case.dtype) for part in pool]
    before = [part.clone() for part in cached]
    qkv = rng.normal(size=(case.parts, m, all_heads * case.head_dim)).astype(np.float32)
    angles = rng.uniform(0, 6, (max(case.lengths), case.head_dim // 2)).astype(np.float32)
    norms: list[F32] | None = (
        [(1 + rng.normal(size=case.head_dim) / 4).astype(np.float32) for _ in range(2)] if case.head_norms else None
    )

    states, weights = attend(
        on_device(qkv),
        None if norms is None else (on_device(norms[0]), on_device(norms[1])),
        (on_device(np.cos(angles)), on_device(np.sin(angles))),
        (cached[0], cached[1]),
        (on_device(np.array(case.lengths)[:, None] - 1), on_device(rows), on_device(tables)),
        case.window,
        EPS,
    )
    assert states.shape == (m, case.heads, SPLITS, case.head_dim)
    shares = weights.softmax(dim=-1)[..., None]
    found = (states * shares).sum(dim=2).cpu().numpy()
    for i, length in enumerate(case.lengths):
        keys, values = (
            part.float().cpu().numpy()[tables[i, : pages[i]]].reshape(-1, *shape[2:])[:length] for part in cached
        )
        q, k, v = _new(case, qkv[:, i], angles[length - 1], norms)
        for new, stored in ((k, keys[-1]), (v, values[-1])):
            np.testing.assert_allclose(stored, new, atol=TOLERANCE[case.dtype], rtol=TOLERANCE[case.dtype])
        expected = _attended(case, q, keys, values)
        np.testing.assert_allclose(found[i], expected, atol=TOLERANCE[case.dtype], rtol=0)
    for after, old in zip(cached, before, strict=True):
        changed = (after.flatten(0, 1) != old.flatten(0, 1)) & ~(after.isnan() & old.isnan()).flatten(0, 1)
        assert changed.flatten(1).any(dim=1).nonzero()[:, 0].tolist() == sorted(rows.tolist())


def _new(case: Case, parts: F32, angles: F32, norms: list[F32] | None) -> tuple[F32, F32, F32]:
    """The new position's queries, key and value, by the reference."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    q, k, v = np.split(total.reshape(-1, case.head_dim), [case.heads, case.heads + case.kv_heads])
    if norms is not None:
        q, k = reference.rms_norm(q, norms[0], EPS), reference.rms_norm(k, norms[1], EPS)
    cos, sin = np.cos(angles), np.sin(angles)
    return reference.rotate(q, cos, sin), reference.rotate(k, cos, sin), v


def _attended(case: Case, q: F32, keys: F32, values: F32) -> F32:
    """[heads, head_dim] by the reference."""
    group, count = case.heads // case.kv_heads, len(keys)
    visible = (count - 1 - np.arange(count) < (case.window or count))[None]
    scaled = (q * np.float32(case.head_dim**-0.5))[:, None]  # [heads, 1, head_dim]
    k, v = (part.transpose(1, 0, 2).repeat(group, axis=0) for part in (keys, values))
    return reference.attend(scaled, k, v, visible)[:, 0]


def test_a_sequence_does_not_depend_on_the_others() -> None:
    """Its positions are split by its own length: alone it gives the same bits."""
    rng = np.random.default_rng(1)
    shape = (4, 64, 1, 16)
    pool = [on_device(rng.normal(size=shape).astype(np.float32)) for _ in range(2)]
    qkv = on_device(rng.normal(size=(2, 3, 4 * 16)).astype(np.float32))
    turns = on_device(np.ones((128, 8), np.float32)), on_device(np.zeros((128, 8), np.float32))
    positions, rows = torch.tensor([[70], [3], [0]]), torch.tensor([64 * 2 + 6, 64 * 3 + 3, 0])
    tables = torch.tensor([[1, 2], [3, 0], [0, 0]], dtype=torch.int32)

    def run(chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        places = (
            positions[chosen].to(pool[0].device),
            rows[chosen].to(pool[0].device),
            tables[chosen].to(pool[0].device),
        )
        cached = pool[0].clone(), pool[1].clone()
        return attend(qkv[:, chosen].contiguous(), None, turns, cached, places, None, EPS)

    for whole, alone in zip(run(slice(None)), run(slice(0, 1)), strict=True):
        assert torch.equal(whole[:1], alone)


@pytest.mark.parametrize(("heads", "head_dim", "count"), [(3, 20, 1), (4, 16, 3)])
def test_the_product_behind_puts_parts_together(heads: int, head_dim: int, count: int) -> None:
    """By their weights; one that has no positions has none."""
    rng = np.random.default_rng(2)
    states = rng.normal(size=(count, heads, SPLITS, head_dim)).astype(np.float32)
    weights = rng.normal(size=(count, heads, SPLITS)).astype(np.float32)
    weights[:, 1, 2:] = -np.inf
    matrix, weight = random_matrix("nf4", 30, heads * head_dim)
    found = attended_product(on_device(states), on_device(weights), torch.float32, matrix).sum(dim=0)
    shares = np.exp(weights.astype(np.float64))
    shares /= shares.sum(axis=2, keepdims=True)
    rows = (states * shares[..., None]).sum(axis=2).reshape(count, -1)
    np.testing.assert_allclose(found.cpu().numpy(), rows @ weight.T.astype(np.float64), atol=2e-6, rtol=0)
