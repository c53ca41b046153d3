"""Rounding that knows what the weights will be multiplied with: errors of one input are made up for by the others."""

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of the diagonal, as GPTQ has it: directions that calibration hardly saw
SHRUNK = (1.0, 0.95, 0.9, 0.85)  # of the range of a block: the largest values may be cut, where the others gain more


def inverse_root(gram: Tensor) -> Tensor:
    """What rounding one input does to the others: the upper Cholesky factor of the damped matrix's inverse, float32.

    Args:
        gram: [in, in], the sum of x x^T over typical inputs x.
    """
    damped = gram.to(torch.float64, copy=True)
    absent = damped.diagonal() == 0
    damped.diagonal()[absent] = 1
    damped.diagonal().add_(DAMPING * damped.diagonal()[~absent].mean() if (~absent).any() else 0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


def round_compensated(weight: Tensor, inverse: Tensor, bits: int, block: int) -> Tensor:
    """A matrix whose values are those of symmetric blocks, chosen so that products with typical inputs change least.

    GPTQ (Frantar et al. 2022, algorithm 1): input after input is rounded, and what that changes in the products is
    taken back by the inputs that are still to be rounded. `quantize_blocks` and `quantize_t16` find exactly these
    values again: the scales are numbers of 16 bits, and in every block the largest value is the end of the range.

    Args:
        weight: [out, in].
        inverse: [in, in], `inverse_root` of typical inputs.
        bits: 4 or 8.
        block: neighbouring inputs that share a scale.

    Returns:
        [out, in], float32.
    """
    rest = weight.float().T.contiguous()  # [in, out]: an input's weights lie together
    for first in range(0, len(rest), block):
        inputs = slice(first, first + block)
        rest[inputs], errors = _round_block(rest[inputs], inverse[inputs, inputs], bits)
        rest[first + block :].addmm_(inverse[inputs, first + block :].T, errors, alpha=-1)
    return rest.T.contiguous()


def _round_block(weight: Tensor, inverse: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The values of one block [n, out], and the errors [n, out] that later inputs have to make up for."""
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = weight.abs().argmax(dim=0)
    scale = _scales(weight, weight.gather(0, largest[None])[0], lowest, highest)
    divisor = torch.where(scale == 0, 1, scale)
    values, errors, rest = torch.zeros_like(weight), torch.zeros_like(weight), weight.clone()
    for i in range(len(weight)):
        steps = (rest[i] / divisor).round_().clamp_(lowest, highest)
        steps[largest == i] = lowest  # the end of the range, by which the scale is found again
        values[i] = steps * scale
        errors[i] = (rest[i] - values[i]) / inverse[i, i]
        rest[i + 1 :].addr_(inverse[i, i + 1 :], errors[i], alpha=-1)
    return values, errors


def _scales(weight: Tensor, peak: Tensor, lowest: int, highest: int) -> Tensor:
    """The scales [out] with which the columns of a block [n, out] change least; zero for columns of zeros.

    Args:
        weight: the block.
        peak: [out], of each column the value of largest magnitude, which maps to `lowest` or beyond.
        lowest: of the integers.
        highest: of the integers.
    """
    found, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
    for share in SHRUNK:
        scale = (peak * (share / lowest)).half().float()
        divisor = torch.where(scale == 0, 1, scale)
        steps = (weight / divisor).round_().clamp_(lowest, highest)
        change = steps.mul_(divisor).sub_(weight).square_().sum(dim=0)
        better = change < least
        found, least = torch.where(better, scale, found), torch.where(better, change, least)
    return found
