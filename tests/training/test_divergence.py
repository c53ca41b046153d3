"""Divergences against torch's own on full distributions, and what is lost where only the likely tokens are known."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from salmonrun.training.distillation.divergence import divergence, soften

TOKENS, VOCAB = 7, 300
KINDS = {"forward": (1.0, 0.0), "reverse": (0.0, 0.0), "mixed": (0.3, 0.0), "skewed": (1.0, 0.1), "both": (0.5, 0.2)}


@pytest.fixture
def student() -> Tensor:
    return 4 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def teacher() -> Tensor:
    return 4 * torch.randn(TOKENS, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(student: Tensor, teacher: Tensor, temperature: float, forward: float, skew: float) -> float:
    """By torch's kl_div(input, target), which is KL(target || input), in float64."""
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    one = kl_div((skew * p + (1 - skew) * q).log(), p, reduction="sum")
    other = kl_div((skew * q + (1 - skew) * p).log(), q, reduction="sum")
    return float(temperature**2 * (forward * one + (1 - forward) * other))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_give_torchs_divergence(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> None:
    forward, skew = KINDS[kind]
    got = divergence(student, soften(teacher, temperature, None), temperature, forward, skew)
    assert float(got) == pytest.approx(reference(student, teacher, temperature, forward, skew), rel=1e-5)
    assert float(got) > 1


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_says_the_same_has_nothing_to_learn(teacher: Tensor, kind: str, top_k: int | None) -> None:
    same = teacher.clone().requires_grad_()
    total = divergence(same, soften(teacher, 2.0, top_k), 2.0, *KINDS[kind])
    (gradient,) = torch.autograd.grad(total, same)
    assert total.item() == pytest.approx(0, abs=1e-4)
    assert gradient.abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_with_k_to_nothing(student: Tensor, teacher: Tensor, kind: str) -> None:
    """What counts as one can only seem nearer (data processing inequality)."""
    forward, skew = KINDS[kind]
    student = teacher + student / 4  # as a copy is, some of which was left out
    whole = reference(student, teacher, 1.0, forward, skew)
    kept = [1, 2, 4, 8, 16, 32, 64, 128, VOCAB - 1]
    errors = [whole - float(divergence(student, soften(teacher, 1.0, k), 1.0, forward, skew)) for k in kept]
    assert all(after <= before + 1e-4 for before, after in pairwise(errors))
    assert errors[0] > 0.2 * whole
    assert errors[kept.index(64)] < 0.1 * errors[0]
    assert errors[-1] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("top_k", [None, VOCAB - 1])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_gradient_is_the_difference_of_probabilities(
    student: Tensor, teacher: Tensor, temperature: float, top_k: int | None
) -> None:
    """Of the forward divergence: T² (q - p) / T, by hand."""
    student.requires_grad_()
    total = divergence(student, soften(teacher, temperature, top_k), temperature, 1.0, 0.0)
    (gradient,) = torch.autograd.grad(total, student)
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    assert (gradient - temperature * difference).abs().max() <= 1e-5


def test_a_skew_stays_finite_where_the_student_rules_out_what_the_teacher_says() -> None:
    student, teacher = torch.tensor([[0.0, -1e4]]), torch.tensor([[0.0, 0.0]])
    plain = divergence(student, soften(teacher, 1.0, None), 1.0, 1.0, 0.0)
    skewed = divergence(student, soften(teacher, 1.0, None), 1.0, 1.0, 0.1)
    assert plain > 1000
    assert 0 < skewed < 2  # -log(0.1) for each half of the mass, at most
