"""What tests of damaged bundles share: flipped bits, and manifests of any content whose own hash is right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salmonrun.runtime.bundle import file_sha256
from salmonrun.runtime.manifest import MANIFEST, manifest_hash


def flipped(data: bytes, position: int, mask: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def sealed(data: dict[str, Any]) -> bytes:
    """A manifest of any data, its own hash right."""
    zeros = "0" * 64
    text = json.dumps(data | {"manifest_sha256": zeros}, indent=2).encode()
    return text.replace(zeros.encode(), manifest_hash(text).encode(), 1)


def manifest_data(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return data


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest so that only the change itself is wrong with it."""
    data = manifest_data(folder)
    change(data)
    (folder / MANIFEST).write_bytes(sealed(data))


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Put a file into the bundle, in place of the one there if there is one, and list it."""
    (folder / name).write_bytes(content)
    spec = {"size": len(content), "sha256": file_sha256(folder / name)}
    reseal(folder, lambda data: data["files"].update({name: spec}))
