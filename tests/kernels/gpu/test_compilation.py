"""Every kernel compiled to machine code for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'salmonrun[triton]'")

REGISTERS = 255  # that a thread may have


@pytest.mark.parametrize("wanted", [80, 90])
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path, wanted: int) -> None:
    """The attention and a product of nf4, to machine code that spills no register; `make gpu-compile` has the rest."""
    run = subprocess.run(
        [sys.executable, "-m", "salmonrun.kernels.gpu", "--quick", "--capability", str(wanted)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    _, *lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["attention", "down"]
    for line in lines:
        capability, registers, spilled, shared, size = map(int, line.split()[1:])
        assert capability == wanted
        assert 0 < registers <= REGISTERS
        assert spilled == 0
        assert shared > 0
        assert size > 1000
