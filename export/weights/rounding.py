"""Rounding that knows what the weights will be multiplied with: errors of one input are made up for by the others."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from salmonrun.kernels.formats import LARGEST_MULTIPLE, SMALLEST_MULTIPLE

DAMPING = 0.01  # of the mean of the diagonal, as GPTQ has it: directions that calibration hardly saw
# Of the range of a block: the largest values may be cut, where the others gain more.
SHARES = tuple(round(1 - 0.05 * i, 2) for i in range(9))
PIECE = 512  # inputs whose sums, or whose rows of an inverse, are computed at once
LARGEST_RESIDUE = 0.05  # of an inverse in float32; with well-behaved inputs it is below 0.005


def gram(x: Tensor) -> Tensor:
    """The sum of x x^T over the rows of x [n, in]: [in, in]. It is symmetric: half of it is computed."""
    found = x.new_empty(x.shape[1], x.shape[1])
    for first in range(0, x.shape[1], PIECE):
        here, behind = slice(first, first + PIECE), slice(first + PIECE, None)
        found[here, first:] = x[:, here].T @ x[:, first:]
        found[behind, here] = found[here, behind].T
    return found


def inverse_root(gram: Tensor) -> Tensor:
    """What rounding one input does to the others: the upper Cholesky factor of the damped matrix's inverse, float32.

    The factor is the inverse of the damped matrix's own, taken from its end: no inverse of the matrix is formed, and
    float32 does. Where it does not, float64 does it again, and that is logged.

    Args:
        gram: [in, in], the sum of x x^T over typical inputs x.
    """
    damped = gram.clone()
    absent = damped.diagonal() == 0
    damped.diagonal()[absent] = 1
    damped.diagonal().add_(DAMPING * damped.diagonal()[~absent].mean() if (~absent).any() else 0)
    root = _inverse_root(damped.float())
    residue = torch.inf if root is None else _residue(damped.float(), root)
    if root is not None and residue <= LARGEST_RESIDUE:
        return root
    logging.getLogger("salmonrun").warning(
        "the inverse for %d inputs is off by %.2g in float32, %g are allowed: computed in float64, which takes longer",
        *(len(gram), residue, LARGEST_RESIDUE),
    )
    exact = _inverse_root(damped.double())
    if exact is None:
        raise ValueError(f"the sums of {len(gram)} inputs are not positive definite: some are not finite")
    return exact.float()


def _inverse_root(matrix: Tensor) -> Tensor | None:
    """Upper U with U^T U the inverse of the matrix; None where rounding leaves it none."""
    lower, failed = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if failed:
        return None
    upper = lower.flip(0, 1).contiguous()  # upper @ upper.T is the matrix
    found = torch.zeros_like(upper)
    for first in reversed(range(0, len(upper), PIECE)):
        here, behind = slice(first, first + PIECE), slice(first + PIECE, None)
        corner = upper[here, here]
        found[here, here] = torch.linalg.solve_triangular(corner, torch.eye(len(corner)).to(upper), upper=True)
        found[here, behind] = found[here, here] @ (upper[here, behind] @ found[behind, behind]).neg_()
    return found


def _residue(matrix: Tensor, root: Tensor) -> float:
    """How far U^T U matrix is from one, seen along a direction at random."""
    direction = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0))
    return float((root.T @ (root @ (matrix @ direction)) - direction).norm() / direction.norm())


Grid = Callable[[Tensor], Tensor]  # the nearest of the scales [out] that a block may have


def round_compensated(
    weight: Tensor,
    inverse: Tensor,
    bits: int,
    block: int,
    shares: Sequence[float] = SHARES,
    super_block: int | None = None,
) -> Tensor:
    """A matrix whose values are those of symmetric blocks, chosen so that products with typical inputs change least.

    GPTQ (Frantar et al. 2022, algorithm 1): input after input is rounded, and what that changes in the products is
    taken back by the inputs that are still to be rounded. Those who quantize find exactly these values again: the
    scales are numbers of 16 bits, or multiples of one, and in every block the largest value is the end of the range.

    Args:
        weight: [out, in].
        inverse: [in, in], `inverse_root` of typical inputs.
        bits: 4 or 8; 4 with super-blocks.
        block: neighbouring inputs that share a scale, or a multiple of one.
        shares: of a block's range that are tried.
        super_block: inputs whose blocks have multiples of one scale; None: they have their own.

    Returns:
        [out, in], float32.
    """
    rest = weight.float().T.contiguous()  # [in, out]: an input's weights lie together
    grids: list[Grid] = []
    for first in range(0, len(rest), block):
        if super_block is None:
            grids = [_sixteen_bits]
        elif first % super_block == 0:
            whole = slice(first, first + super_block)
            grids = _multiples(rest[whole].split(block), _moments(inverse[whole, whole]).split(block), shares)
        inputs = slice(first, first + block)
        rest[inputs], errors = _round_block(rest[inputs], inverse[inputs, inputs], bits, shares, grids.pop(0))
        rest[first + block :].addmm_(inverse[inputs, first + block :].T, errors, alpha=-1)
    return rest.T.contiguous()


def _moments(inverse: Tensor) -> Tensor:
    """How much each input's error counts: by what the others cannot make up for."""
    return inverse.diagonal() ** -2


def _sixteen_bits(scale: Tensor) -> Tensor:
    return scale.half().float()


def _multiples(blocks: Sequence[Tensor], moments: Sequence[Tensor], shares: Sequence[float]) -> list[Grid]:
    """For each block [n, out] of a super-block, the multiples of its scale.

    It is the scale with which the block of the largest value changes least, as the largest multiple of it.
    """
    alone = [
        _scales(block, counts, 4, shares, lambda scale: _sixteen_bits(scale / LARGEST_MULTIPLE) * LARGEST_MULTIPLE)[0]
        for block, counts in zip(blocks, moments, strict=True)
    ]
    top = torch.stack([block.abs().amax(dim=0) for block in blocks]).argmax(dim=0)  # [out]
    most = torch.stack(alone).gather(0, top[None])[0]
    scale = most / LARGEST_MULTIPLE
    divisor = torch.where(scale == 0, 1, scale)

    def nearest(index: int, wanted: Tensor) -> Tensor:
        multiple = (wanted / divisor).round_().clamp_(SMALLEST_MULTIPLE, LARGEST_MULTIPLE)
        return torch.where(top == index, most, multiple * scale)

    return [partial(nearest, index) for index in range(len(blocks))]


def round_clipped(weight: Tensor, bits: int, block: int, moments: Tensor | None = None) -> Tensor:
    """Each weight rounded by itself; of every block the scale is the one with which it changes least.

    Args:
        weight: [out, in].
        bits: 4 or 8.
        block: neighbouring inputs that share a scale.
        moments: [in], how much a change of each input's weights counts; None: the same.

    Returns:
        [out, in], float32.
    """
    found = weight.float().T.contiguous()
    for first in range(0, len(found), block):
        part = found[first : first + block]
        counts = None if moments is None else moments[first : first + block]
        scale, largest = _scales(part, counts, bits, SHARES, _sixteen_bits)
        divisor = torch.where(scale == 0, 1, scale)
        steps = (part / divisor).round_().clamp_(*_range(bits))
        steps.scatter_(0, largest[None], _range(bits)[0])
        part.copy_(steps.mul_(scale))
    return found.T.contiguous()


def _range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _round_block(
    weight: Tensor, inverse: Tensor, bits: int, shares: Sequence[float], grid: Grid
) -> tuple[Tensor, Tensor]:
    """The values of one block [n, out], and the errors [n, out] that later inputs have to make up for."""
    lowest, highest = _range(bits)
    scale, largest = _scales(weight, _moments(inverse), bits, shares, grid)
    divisor = torch.where(scale == 0, 1, scale)
    values, errors, rest = torch.zeros_like(weight), torch.zeros_like(weight), weight.clone()
    for i in range(len(weight)):
        steps = (rest[i] / divisor).round_().clamp_(lowest, highest)
        steps.masked_fill_(largest == i, lowest)  # the end of the range, by which the scale is found again
        values[i] = steps * scale
        errors[i] = (rest[i] - values[i]) / inverse[i, i]
        rest[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
    return values, errors


def _scales(
    weight: Tensor, moments: Tensor | None, bits: int, shares: Sequence[float], grid: Grid
) -> tuple[Tensor, Tensor]:
    """The scales [out] with which the columns of a block [n, out] change least, and where each has its largest value.

    Scales are zero for columns of zeros.

    Args:
        weight: the block.
        moments: [n], how much a change of each row counts; None: the same.
        bits: 4 or 8.
        shares: of the range that are tried.
        grid: of the scales that may be.
    """
    lowest, highest = _range(bits)
    largest = weight.abs().argmax(dim=0)
    peak = weight.gather(0, largest[None])[0]
    found, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
    for share in shares:
        scale = grid(peak * (share / lowest))
        divisor = torch.where(scale == 0, 1, scale)
        change = (weight / divisor).round_().clamp_(lowest, highest).mul_(scale).sub_(weight).square_()
        total = change.sum(dim=0) if moments is None else moments @ change
        better = total < least
        found, least = torch.where(better, scale, found), torch.where(better, total, least)
    return found, largest
