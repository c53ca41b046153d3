"""Tensors read on demand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salmonrun.runtime.errors import ResourceError
from salmonrun.training.tensors import open_safetensors
from tests.helpers.limits import files_left


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_a_tensors_pages_are_given_back_with_it(tmp_path: Path) -> None:
    """Those of a mapping that stays open would count as this process's memory until the whole file was read."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(10_000.0), "b": torch.ones(3)}, path)
    tensors = open_safetensors(path)
    assert not mapped(path)
    tensor = tensors["a"]()
    assert mapped(path)  # not read, but mapped
    assert tensor.sum() == 49_995_000
    del tensor
    assert not mapped(path)
    assert tensors["b"]().tolist() == [1, 1, 1]


@pytest.mark.parametrize("left", [0, 1])
def test_no_files_are_left(tmp_path: Path, left: int) -> None:
    """safetensors opens it once, and PyTorch once more: both say so in their own ways."""
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    tensors = open_safetensors(tmp_path / "a.safetensors")
    with files_left(left), pytest.raises(ResourceError, match="oo many open files"):
        tensors["a"]()
    torch.testing.assert_close(tensors["a"](), torch.ones(3))
