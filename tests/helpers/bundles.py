"""Bundles of an LLM alone. No PyTorch here: the processes of the fuzzer do without it."""

from pathlib import Path

from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import AudioConfig, PromptConfig, WindowConfig
from salmonrun.runtime.manifest import FORMAT_VERSION, FileSpec, GraphSpec, LlmSpec, Manifest, Precision, Provenance


def bundle_of(folder: Path, llm: LlmSpec, graphs: dict[str, GraphSpec]) -> Bundle:
    """As a decoder takes it; its files are all that lie in the folder."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        manifest_sha256="",
        target="cpu",
        audio=AudioConfig(),
        window=WindowConfig(),
        prompt=PromptConfig(),
        llm=llm,
        precision=Precision("fp32", None, "fp32"),
        provenance=Provenance("random", "test"),
        graphs=graphs,
        files={path.name: FileSpec(path.stat().st_size, "") for path in folder.iterdir()},
    )
    return Bundle(folder, manifest)
