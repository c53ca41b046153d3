"""`Engine.load(release_weights=True)`: what has done its work takes no memory, and answers stay what they were."""

from pathlib import Path
from shutil import copytree

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import ConfigError
from tests.helpers.kernels import needs_kernels

SMAPS = Path("/proc/self/smaps")
NATIVE = "salmonrun.kernels.cpu._native"


def resident(file: Path) -> int:
    """Bytes of a file that this process has mapped and touched."""
    total, ours = 0, False
    for line in SMAPS.read_text().splitlines():
        key, _, value = line.partition(" ")
        if not key.endswith(":"):  # where a mapping is, and last its file
            ours = value.endswith(str(file))
        elif ours and key == "Rss:":
            total += 1024 * int(value.split()[0])
    return total


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say what of a file is resident")
def test_weights_are_resident_while_they_work(demo_bundle: Path, speech: Path, tmp_path: Path) -> None:
    pytest.importorskip(NATIVE)
    bundle = copytree(demo_bundle, tmp_path / "bundle")  # other tests' engines may have mapped the demo's own files
    files = [(bundle / name).resolve() for name in ("whisper.bin", "audio_encoder.bin", "llm/native.bin")]
    with Engine.load(bundle, verify=False) as engine:
        expected = engine.generate(speech)
        kept = {file: resident(file) for file in files}
    with Engine.load(bundle, verify=False, release_weights=True) as engine:
        for _ in range(2):
            assert engine.generate(speech).text == expected.text
            assert {file: resident(file) for file in files} == dict.fromkeys(files, 0)
    assert all(size > 2**20 for size in kept.values()), kept


def test_a_held_recording_keeps_the_llm(demo_bundle: Path, speech: Path) -> None:
    pytest.importorskip(NATIVE)
    with Engine.load(demo_bundle, verify=False, release_weights=True) as engine, engine.listen(speech) as heard:
        assert heard.ask(task="asr").text == heard.ask(task="asr").text == engine.generate(speech).text


@pytest.mark.onnx
@needs_kernels
def test_onnx_runtime_keeps_copies(tiny_bundle: Path, demo_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"release_weights is True, but this bundle runs on the onnx decoder"):
        Engine.load(tiny_bundle, release_weights=True)
    with pytest.raises(ConfigError, match=r"release_weights is True, but this bundle's encoders run on ONNX Runtime"):
        Engine.load(demo_bundle, encoder="onnx", release_weights=True)
