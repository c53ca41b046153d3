"""Block-causal encoders: who sees whom, and the draw of block and look-back while training."""

import torch
from torch import Tensor

from salmonrun.runtime.config import Block, BlockConfig


def attended(length: int, valid: Tensor | None, block: Block | None, device: torch.device) -> Tensor | None:
    """Which keys a query attends to: bool [B or 1, 1, length or 1, length]; None: all.

    Args:
        length: positions, one for each of Whisper's frames.
        valid: [B, length], the positions that a padded row has; None if all are.
        block: frames see their own block and the look-back before it; None: everything.
        device: of the result.
    """
    if block is None:
        return None if valid is None else valid[:, None, None, :]
    position = torch.arange(length, device=device)
    start = position // block.size * block.size
    seen = (position < start[:, None] + block.size) & (position >= start[:, None] - block.lookback)
    if valid is None:
        return seen[None, None]
    # A padded position whose whole block is padding sees itself: a softmax over nothing is not a number.
    itself = torch.eye(length, dtype=torch.bool, device=device)
    return ((seen & valid[:, None, :]) | itself)[:, None]


def valid_positions(counts: Tensor, length: int) -> Tensor:
    """Which of `length` positions are among a row's own `counts` [B]: bool [B, length]."""
    return torch.arange(length, device=counts.device)[None, :] < counts[:, None]


def draw_block(config: BlockConfig) -> Block | None:
    """One of the sizes to be trained with one of the look-backs, or, as often as each size, None: a recording at once.

    Drawn from torch's generator, whose state a snapshot has: a resumed run draws the same.
    """
    size = int(torch.randint(len(config.sizes) + 1, ()))
    lookback = config.lookbacks[int(torch.randint(len(config.lookbacks), ()))]
    return None if size == len(config.sizes) else Block(config.sizes[size], lookback)
