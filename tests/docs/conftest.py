"""Where the documentation's blocks run: folders with what the pages speak of, and environments."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from tests.helpers.environments import Environment
from tests.helpers.pages import ROOT

RECORDINGS = ROOT / "demo" / "recordings"
# What a published checkpoint consists of, by the names the pages use.
PUBLISHED = {
    "salmonn_7b_v0.pth": "salmonn/salmonn.pth",
    "whisper-large-v2": "salmonn/whisper",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt": "beats/beats.pt",
    "vicuna-7b-v1.5": "salmonn/llm",
}
RECORDERS = ("arecord", "ffmpeg")  # give the PCM of talk.wav, since a test has no microphone and may have no ffmpeg


@pytest.fixture
def furnish(demo_bundle: Path, golden: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Put what the pages speak of into a folder: the folder of its recorders."""

    def put(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        shutil.copytree(demo_bundle, folder / "bundle")
        pcm, rate = soundfile.read(RECORDINGS / "shopping.flac", dtype="int16")
        for name in ("talk.wav", "talk.flac"):
            soundfile.write(folder / name, pcm, rate)
        for name in ("checkpoint", "start", "runs/best"):
            shutil.copytree(ROOT / "demo" / "checkpoint", folder / name)
        for name in ("mine.json", "test.json"):
            _annotate(folder / name)
        for name, source in PUBLISHED.items():
            copy = shutil.copytree if (golden / source).is_dir() else shutil.copyfile
            copy(golden / source, folder / name)
        (folder / "train_prompt.json").write_bytes((ROOT / "recipes" / "prompts.json").read_bytes())
        return _recorders(tmp_path / "recorders", pcm.tobytes())

    return put


def _annotate(path: Path) -> None:
    annotation = json.loads((RECORDINGS / "annotation.json").read_text())
    for entry in annotation["annotation"]:
        entry["path"] = str(RECORDINGS / entry["path"])
    path.write_text(json.dumps(annotation))


def _recorders(folder: Path, pcm: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pcm").write_bytes(pcm)
    for name in RECORDERS:
        (folder / name).write_text(f"#!/bin/sh\nexec cat '{folder}/pcm'\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The one that make wheel built."""
    (path,) = (ROOT / "build" / "dist").glob("salmonrun-*.whl")
    return path


@pytest.fixture(scope="session")
def engine_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Empty, then the wheel as an app has it: no PyTorch."""
    made = Environment.fresh(tmp_path_factory.mktemp("engine") / "venv")
    made.pip("install", f"{wheel}[cpu,plot]")
    assert made.packages().isdisjoint({"torch", "transformers", "onnx"})
    return made


@pytest.fixture(scope="session")
def whole_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel, and beside it PyTorch and all else that extras bring, which is too much to be installed anew."""
    made = Environment.fresh(tmp_path_factory.mktemp("whole") / "venv")
    made.pip("install", "--no-deps", wheel)
    made.lend()
    return made


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the changes that are not committed yet, the kernels that installing it builds, and its .venv."""
    folder = tmp_path_factory.mktemp("clone") / "salmonrun"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
    built = [str(path.relative_to(ROOT)) for path in (ROOT / "kernels" / "cpu").glob("_native.*")]
    for name in filter(None, [*done.stdout.decode().split("\0"), *built]):
        if (ROOT / name).is_symlink() or (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    made = Environment(folder / ".venv")
    made.lend(folder)
    program = made.programs / "salmonrun"
    program.write_text(f"#!{made.programs}/python\nimport sys\nfrom salmonrun.__main__ import main\nsys.exit(main())\n")
    program.chmod(0o755)
    for stamp in (".export", ".dev"):  # what the Makefile would install is lent
        (folder / ".venv" / stamp).touch()
    return folder
