"""What the torch decoder brings to the host, counted where it runs: on a CPU the code is the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from tests.helpers.exports import noise

TOKENS = 7
# What makes the host wait for a GPU, and tells it a value, without `Tensor.cpu`.
TELLING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::unique")


class Told(TorchDispatchMode):
    """Operators that tell the host something."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in TELLING:
            self.operators.append(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    options = ExportOptions(target="cuda", decoder="torch", parity_budget=1.0)
    with Engine.load(export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("torch") / "bundle", options)) as engine:
        assert engine.report().decoder == "torch"
        yield engine


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of all tensors that are brought to the host."""
    shapes: list[tuple[int, ...]] = []
    real = torch.Tensor.cpu

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(tensor.shape))
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    return shapes


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (GenerationConfig(num_beams=1), [(1, 2)] * (TOKENS - 1)),  # the token and its log probability
        (GenerationConfig(num_beams=3), [(3, 258)] * (TOKENS - 1)),
        (GenerationConfig(do_sample=True, seed=1), [(1, 258)] * (TOKENS - 1)),
    ],
    ids=["greedy", "beams", "sampled"],
)
def test_an_answer_brings_no_keys_and_values(
    engine: Engine, brought: list[tuple[int, ...]], config: GenerationConfig, steps: list[tuple[int, int]]
) -> None:
    """One row of logits behind the prompt, then what each step's search asks for, and nothing else."""
    config = replace(config, max_new_tokens=TOKENS, stop_token_ids=(), stop_repetition=False)
    with Told() as told:
        result = engine.generate(noise(1.0, 0), prompt="?", config=config)
    assert len(result.token_ids) == TOKENS
    assert told.operators == []
    assert brought == [(1, 258), *steps]
