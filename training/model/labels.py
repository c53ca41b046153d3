"""Which tokens a loss is computed on."""

from collections.abc import Sequence

from torch import Tensor, nn

IGNORE = -100  # in place of a token at positions without a loss, as transformers' Trainer expects


def pad_labels(rows: Sequence[Tensor]) -> Tensor:
    """Rows of tokens as [B, longest], IGNORE behind the shorter ones."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=IGNORE)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies of `labels` [N] under `logits` [N, V]; positions with IGNORE have none."""
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
