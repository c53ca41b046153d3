"""Memory and machine, as Linux tells them."""

import os
import platform
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from salmonrun.runtime import __version__
from salmonrun.runtime.latency.machine import MemoryMeter, describe_machine

LARGE_MB = 300


def take() -> None:
    """Use much memory, and give it back."""
    np.ones(LARGE_MB * 2**20, np.uint8)


def test_the_peak_counts_from_when_the_meter_was_made() -> None:
    take()
    meter = MemoryMeter("cpu")
    before = meter.read()
    if not before.peak_is_since_load:
        pytest.skip("this system does not let a process count its peak anew (proc(5), clear_refs)")
    assert before.load_peak_mb >= before.loaded_mb > 10
    assert before.peak_mb < before.loaded_mb + LARGE_MB / 2  # what was taken before it does not count
    assert abs(before.steady_mb - before.loaded_mb) < LARGE_MB / 2
    take()
    after = meter.read()
    assert after.peak_mb > before.loaded_mb + LARGE_MB / 2
    assert after.steady_mb < before.loaded_mb + LARGE_MB / 2
    assert (after.loaded_mb, after.load_peak_mb) == (before.loaded_mb, before.load_peak_mb)
    assert after.device_mb is None


def test_the_machine() -> None:
    machine = describe_machine()
    assert machine["processor"]
    assert machine["cores"] == len(os.sched_getaffinity(0))
    (total,) = (int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert machine["memory_mb"] == pytest.approx(total // 1024, abs=1)
    versions = {"salmonrun": __version__, "onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    assert machine | versions | {"python": platform.python_version()} == machine


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["{pid}, 1024", "1, 99", "{pid}, 512"], 1536.0),
        (["1, 99"], None),  # in a container, process ids are others
        (["{pid}, [N/A]"], None),
        ([""], None),
    ],
)
def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[str], found: float | None) -> None:
    driver = tmp_path / "nvidia-smi"
    lines = "\n".join(row.format(pid=os.getpid()) for row in rows)
    driver.write_text(f"#!/bin/sh\ncat <<END\n{lines}\nEND\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert MemoryMeter("cuda").read().device_mb == found


def test_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert MemoryMeter("cuda").read().device_mb is None
