"""Files that change under a running engine: noticed, or of no account for one that has copied them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from salmonrun.runtime import ConfigError, Engine
from salmonrun.runtime.errors import BundleIntegrityError
from salmonrun.runtime.golden import GOLDEN

# It answers, its files are cut and overwritten, it answers again. Mapped ones, that would be the end of the process.
COPIED = """
import sys
from pathlib import Path
import numpy as np
from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
bundle, runtime = Path(sys.argv[1]), sys.argv[2]
engine = Engine.load(bundle, decoder=runtime, encoder=runtime, copy=True)
pcm = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
def tokens():
    with engine.stream(config=StreamConfig(endpoint=None), sample_rate=16000) as stream:
        stream.push(pcm)
        stream.finish()
    return engine.generate(pcm, sample_rate=16000, config=GenerationConfig(max_new_tokens=8)).token_ids
before = tokens()
for file in filter(Path.is_file, bundle.rglob("*")):
    size = file.stat().st_size
    file.write_bytes(b"\\xff" * (size // 2) if size % 2 else b"")
assert tokens() == before
engine.check_files()
print(len(before))
"""
Change = Callable[[Path], object]


@pytest.mark.onnx
@pytest.mark.parametrize("runtime", ["onnx", "native"])
def test_a_copy_does_not_need_its_files(runtime: str, runtimes: dict[str, Path], tmp_path: Path) -> None:
    if runtime not in runtimes:
        pytest.skip("the native kernels were not built")
    copy = shutil.copytree(runtimes[runtime], tmp_path / "bundle")
    done = subprocess.run([sys.executable, "-c", COPIED, copy, runtime], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


@pytest.mark.onnx
@pytest.mark.parametrize("runtime", ["onnx", "native"])
def test_a_copy_computes_the_same(runtime: str, runtimes: dict[str, Path], speech: Path) -> None:
    if runtime not in runtimes:
        pytest.skip("the native kernels were not built")
    plain, copied = (
        Engine.load(runtimes[runtime], decoder=runtime, encoder=runtime, copy=copy)  # type: ignore[arg-type]
        for copy in (False, True)
    )
    assert plain.generate(speech).token_logprobs == copied.generate(speech).token_logprobs


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    with file.open("r+b") as same:
        same.write(content)


def touch_back(file: Path) -> None:
    """Changed, and its time set back to a second ago."""
    time = file.stat().st_mtime_ns - 10**9
    os.utime(file, ns=(time, time))


def replace(file: Path) -> None:
    shutil.copy2(file, file.with_name("new"))  # with the same time
    os.replace(file.with_name("new"), file)


@pytest.mark.onnx
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"was changed in place while the engine runs \(it had \d+ bytes and has \d+\)"),
        (overwrite, r"was changed in place while the engine runs \(it was written to\)"),
        (touch_back, r"was changed in place while the engine runs \(it was written to\)"),
        (replace, r"is not what the engine has loaded \(another file is in its place\)"),
        (Path.unlink, "has gone while the engine runs"),
    ],
)
@pytest.mark.parametrize("name", ["llm/decoder.onnx.data", "tokenizer.json", "bundle.json"])
def test_what_becomes_of_a_file_is_noticed(bundle: Path, name: str, change: Change, message: str) -> None:
    engine = Engine.load(bundle)
    engine.check_files()
    change(bundle / name)
    for _ in range(2):
        with pytest.raises(BundleIntegrityError, match=rf"{name} {message}.*: load the bundle again; put a new one"):
            engine.check_files()


def test_what_no_engine_loads_may_change(bundle: Path) -> None:
    engine = Engine.load(bundle)
    for name in (GOLDEN, "parity.json", "README.md"):
        (bundle / name).write_bytes(b"")
    engine.check_files()


def test_a_folder_that_is_renamed_is_held(bundle: Path, speech: Path) -> None:
    """A new bundle is put in its place: answers are still the old one's, and it is noticed."""
    engine = Engine.load(bundle)
    before = engine.generate(speech).token_ids
    bundle.rename(bundle.with_name("old"))
    shutil.copytree(bundle.with_name("old"), bundle)
    shutil.rmtree(bundle.with_name("old"))
    assert engine.generate(speech).token_ids == before
    with pytest.raises(BundleIntegrityError, match="another file is in its place"):
        engine.check_files()


def test_descriptors_are_given_back(bundle: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    engine = Engine.load(bundle)
    assert len(os.listdir("/proc/self/fd")) > before + 5
    engine.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_is_copied_cannot_be_released(bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"copy and release_weights are True; .* leave out one"):
        Engine.load(bundle, copy=True, release_weights=True)
