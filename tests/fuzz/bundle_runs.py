"""What a case of a bundle is asked, and the bundles that cases are changes of."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.errors import SalmonrunError
from salmonrun.runtime.golden import check
from salmonrun.runtime.manifest import MANIFEST
from tests.helpers.damage import sealed

KINDS = ("onnx", "native", "blocks")  # see tests/fuzz/material.py
ANSWER = GenerationConfig(max_new_tokens=3)


def make_bundles(folder: Path) -> None:
    """One of each kind. By PyTorch, without which the workers do."""
    from tests.fuzz.material import export_bundles

    export_bundles(folder)


def fresh(bundle: Path, folder: Path) -> Path:
    """A copy to change by `put`: until then its files are links to the same bytes."""
    copy = folder / "case"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy, copy_function=os.link)
    return copy


def put(bundle: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Replace files, and the manifest, which lists them as they are now; its own hash is right."""
    for name, content in files.items():
        (bundle / name).unlink(missing_ok=True)
        (bundle / name).write_bytes(content)
        if isinstance(manifest.get("files"), dict):
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).write_bytes(sealed(manifest))


def ask(bundle: Path) -> str:
    """Load it, let it answer and follow a stream, and replay its golden run."""
    try:
        engine = Engine.load(bundle, threads=1)
    except SalmonrunError:
        return "refused"
    pcm = np.sin(np.arange(8000, dtype=np.float32) / 7)
    try:
        with engine:
            try:
                check(engine)
            except SalmonrunError:
                return "refused"  # the golden run is a check's alone, and read by it
            engine.generate(pcm, prompt="Say it.", sample_rate=16000, config=ANSWER)
            if engine.bundle.manifest.streaming:
                with engine.stream(prompt="Say it.", generation=ANSWER) as stream:
                    stream.push(pcm)
                    stream.finish()
    except SalmonrunError:
        return "late"
    return "ran"
