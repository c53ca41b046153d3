"""A machine that has nothing left is not a bundle, a recording or a kept feature that is damaged."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch

from salmonrun.runtime import Engine, Limits
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.errors import AudioError, BundleError, ResourceError
from salmonrun.runtime.exhausted import exhausted, resources
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.cache import FeatureCache
from salmonrun.training.model.features import States
from tests.helpers.exports import noise
from tests.helpers.limits import files_left


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", noise(0.5, 0).pcm, 16000)
    return tmp_path / "a.wav"


def lacked(work: Callable[[], object]) -> str:
    """What the machine had not; empty: it was enough."""
    try:
        work()
    except ResourceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("left", range(14))
def test_a_bundle_is_loaded_with_few_files_left(tiny_bundle: Path, left: int) -> None:
    with files_left(left):
        said = lacked(lambda: Engine.load(tiny_bundle).close())
    assert re.search("cannot be loaded: .*(Too many open files|system error number 24)", said) or (
        not said and left > 5
    )


@pytest.mark.parametrize("left", range(8))
def test_a_recording_is_decoded_elsewhere_with_few_files_left(recording: Path, left: int) -> None:
    limits = Limits(isolate_decoding=True)
    load_audio(recording, limits=limits)  # the process is there
    with files_left(left):
        said = lacked(lambda: load_audio(recording, limits=limits))
    assert "Too many open files" in said or (not said and left > 1)
    load_audio(recording, limits=limits)


def test_a_recording_is_decoded_here_with_no_file_left(recording: Path) -> None:
    with files_left(0), pytest.raises(ResourceError, match=r"a\.wav' cannot be opened: Too many open files"):
        load_audio(recording)
    load_audio(recording)
    recording.write_bytes(b"no audio")
    with pytest.raises(AudioError, match="is not audio that libsndfile can read"):
        load_audio(recording)


def test_kept_features_are_not_damaged(tmp_path: Path, recording: Path) -> None:
    entry, cache = Entry("a", 0, recording, "x", "asr"), FeatureCache(tmp_path / "cache")
    cache.fill([entry], lambda _: States(torch.ones(1, 3, 4), None))
    with files_left(0), pytest.raises(ResourceError):
        cache.read(entry)
    assert cache.fill([entry], lambda _: pytest.fail("it is there")) == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("mib", [0, 1, 4, 10, 20, 40, 80])
def test_a_bundle_is_loaded_with_little_memory_left(tiny_bundle: Path, mib: int) -> None:
    program = (
        "import resource, sys\n"
        "from salmonrun.runtime import Engine\n"
        "from salmonrun.runtime.errors import ResourceError\n"
        "import onnxruntime\n"
        f"mapped = int(open('/proc/self/statm').read().split()[0]) * {os.sysconf('SC_PAGE_SIZE')}\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (mapped + {mib} * 2**20,) * 2)\n"
        "try: Engine.load(sys.argv[1], threads=1)\n"
        "except ResourceError as error: print(error)\n"
        "else: print('loaded')\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tiny_bundle)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "This machine, or a limit of this process" in run.stdout or run.stdout == "loaded\n"


def test_what_an_error_came_of_is_found() -> None:
    changed = BundleError("changed")
    assert lacked(lambda: _fail(RuntimeError("can't start new thread"))).startswith("it: can't start new thread. This")
    with pytest.raises(BundleError, match="changed"):
        _fail(changed)
    changed.__cause__ = MemoryError()
    assert lacked(lambda: _fail(changed)).startswith("it: Cannot allocate memory. This machine")
    assert not exhausted(FileNotFoundError(2, "none"))
    for said in (
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8",
        "libtorch_cpu.so: failed to map segment from shared object",
        "libgomp.so.1: cannot allocate memory in static TLS block",
        "CUDA out of memory. Tried to allocate 2.00 MiB",
    ):
        assert exhausted(RuntimeError(said)) == said
    assert exhausted(OSError(28, "No space left on device", "x")) == "No space left on device: 'x'"


def _fail(error: Exception) -> None:
    with resources("it"):
        raise error
