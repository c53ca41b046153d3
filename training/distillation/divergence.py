"""How far a student's distributions of the next token are from a teacher's, of whom only the likely may be known.

The tokens that are not told apart count as one. So the divergence is never more than that of all tokens, grows with k,
and is that of all tokens when k is the vocabulary but for one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's distributions at a temperature."""

    log_probs: Tensor  # [N, V], or [N, k + 1]: of k tokens, and of all others together
    token_ids: Tensor | None  # [N, k]; None: all, in their order

    def to(self, device: torch.device) -> "SoftTargets":
        """The same on a device."""
        return SoftTargets(self.log_probs.to(device), None if self.token_ids is None else self.token_ids.to(device))


def soften(logits: Tensor, temperature: float, top_k: int | None) -> SoftTargets:
    """Distributions of logits [N, V], at a temperature; of the k most likely tokens, if there is a `top_k` below V."""
    log_probs = (logits.float() / temperature).log_softmax(dim=-1)
    if top_k is None:
        return SoftTargets(log_probs, None)
    token_ids = log_probs.topk(top_k, dim=-1).indices
    return SoftTargets(_told_apart(log_probs, token_ids), token_ids)


def divergence(logits: Tensor, targets: SoftTargets, temperature: float, forward: float, skew: float) -> Tensor:
    """Sum over N of forward * KL(p || skew p + (1 - skew) q) + (1 - forward) * KL(q || skew q + (1 - skew) p), by T².

    p is the teacher's, q the student's. Without a skew these are the forward and the reverse KL divergence; with one
    they are the skewed ones of DistiLLM (Ko et al. 2024, eq. 4 to 6), which stay finite where one of both gives a token
    no probability.

    Args:
        logits: the student's, [N, V].
        targets: the teacher's.
        temperature: that of the targets.
        forward: share of the first term.
        skew: share of the first distribution in the second.
    """
    q = (logits.float() / temperature).log_softmax(dim=-1)
    if targets.token_ids is not None:
        q = _told_apart(q, targets.token_ids)
    p = targets.log_probs
    total = q.new_zeros(())
    if forward:
        total = total + forward * _kl(p, _mixed(p, q, skew))
    if forward < 1:
        total = total + (1 - forward) * _kl(q, _mixed(q, p, skew))
    return total * temperature**2


def _told_apart(log_probs: Tensor, token_ids: Tensor) -> Tensor:
    """Log probabilities [N, V] of k tokens [N, k] and of all others together: [N, k + 1]."""
    others = log_probs.scatter(-1, token_ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, token_ids), others], dim=-1)


def _mixed(first: Tensor, second: Tensor, skew: float) -> Tensor:
    """Log of skew * first + (1 - skew) * second, all of them logs."""
    if not skew:
        return second
    share = first.new_tensor([skew, 1 - skew]).log()
    return torch.logaddexp(first + share[0], second + share[1])


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Sum of the Kullback-Leibler divergences of rows of log probabilities."""
    return torch.nn.functional.kl_div(second, first, reduction="sum", log_target=True)
