"""The Q-Former's cross-attention of constant queries, against PyTorch's module in float64."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'salmonrun[triton]'")

from salmonrun.kernels.gpu.window_attention import attend_windows
from salmonrun.runtime.config import WindowConfig
from salmonrun.training.model.config import QFormerConfig
from salmonrun.training.model.qformer import BertAttention, slice_windows
from tests.helpers.gpu_matrices import DEVICE


@pytest.mark.parametrize(
    ("total", "frames", "stride", "queries", "width"),
    [(17, 17, 17, 1, 130), (60, 17, 17, 1, 64), (40, 5, 3, 2, 7), (1, 1, 1, 3, 256), (35, 33, 1, 1, 32)],
)
def test_windows_are_those_of_the_module(total: int, frames: int, stride: int, queries: int, width: int) -> None:
    config = QFormerConfig(dim=24, heads=4, window=WindowConfig(frames, stride, queries))
    torch.manual_seed(0)
    module = BertAttention(config, width).double()
    states, query = torch.randn(total, width).double(), torch.randn(queries, config.dim).double()
    windows = slice_windows(states[None], config.window)[0]
    with torch.no_grad():
        expected = module(query.expand(len(windows), -1, -1), windows)
        absorbed = torch.einsum(
            "qhd,hdw->qhw",
            module.query(query).unflatten(-1, (config.heads, -1)),
            module.key.weight.unflatten(0, (config.heads, -1)),
        ) / math.sqrt(config.dim // config.heads)
        found = attend_windows(states.float().to(DEVICE), absorbed.flatten(0, 1).float().to(DEVICE), frames, stride)
        assert found.shape == (len(windows), queries * config.heads, width)
        weighted = found.cpu().double().unflatten(1, (queries, config.heads))
        values = module.value.weight.unflatten(0, (config.heads, -1))
        joined = torch.einsum("lqhw,hdw->lqhd", weighted, values).flatten(2) + module.value.bias
        ours = module.norm(query + module.out(joined))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_half_precision_and_frames_that_fill_no_window() -> None:
    torch.manual_seed(1)
    states, absorbed = torch.randn(40, 96), torch.randn(12, 96) / 8
    exact = attend_windows(states.to(DEVICE), absorbed.to(DEVICE), 17, 17)
    assert len(exact) == 2
    half = attend_windows(states.to(DEVICE, torch.float16), absorbed.to(DEVICE, torch.float16), 17, 17)
    torch.testing.assert_close(half.float(), exact, atol=4e-3, rtol=0)
    assert attend_windows(states[:16].to(DEVICE), absorbed.to(DEVICE), 17, 17).shape == (0, 12, 96)
