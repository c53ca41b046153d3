"""What reads files of foreign bytes, one reader for each kind: it takes them, or refuses them with an error of ours."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import check_bundle, open_bundle, read_manifest
from salmonrun.runtime.decoders.native_decoder import NativeDecoder
from salmonrun.runtime.golden import _load_golden
from salmonrun.runtime.longform.reader import PcmReader
from salmonrun.runtime.manifest import MANIFEST
from salmonrun.runtime.signature import check_graph
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.evaluation.answers import read_answers
from salmonrun.training.finetuning.recipe import load_recipe
from salmonrun.training.inspection.inspect import inspect_path
from tests.fuzz import pickles
from tests.fuzz.audio import quiet
from tests.helpers.damage import sealed

Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Reader:
    """How one kind of file is read."""

    seeds: str  # files of the material to begin with, a pattern
    make: Callable[[Path], Read]  # of the folder of material: what reads bytes


def put(path: Path, content: bytes) -> None:
    """A new file: the one that was there may still be mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def file_reader(read: Callable[[Path], object], name: str) -> Callable[[Path], Read]:
    """One that takes the path of a file of this name."""

    def make(material: Path) -> Read:
        path = material / "case" / name
        path.parent.mkdir(exist_ok=True)

        def reader(content: bytes) -> object:
            put(path, content)
            return read(path)

        return reader

    return make


def manifest_reader(material: Path) -> Read:
    """Its own hash is made right, so that what it says is looked at; the files beside it are as they were."""
    bundle = material / "native"

    def reader(content: bytes) -> object:
        with suppress(ValueError, RecursionError):
            data = json.loads(content)
            content = sealed(data) if isinstance(data, dict) else content
        put(bundle / MANIFEST, content)
        return check_bundle(bundle, read_manifest(bundle), verify=False)

    return reader


def graph_reader(material: Path) -> Read:
    """As the manifest's Q-Former: the smallest graph with weights in it and beside it."""
    bundle = open_bundle(material / "onnx")
    spec = bundle.graph("qformer")
    size = bundle.manifest.files[spec.weights].size if spec.weights in bundle.manifest.files else 0
    return file_reader(lambda path: check_graph(path, spec, size), "qformer.onnx")(material)


def golden_reader(material: Path) -> Read:
    """Of an engine that runs: what is in it is compared with what that is."""
    engine = Engine.load(material / "onnx", threads=1)

    def reader(content: bytes) -> object:
        put(engine.bundle.path("golden.npz"), content)
        return _load_golden(engine)

    return reader


def weights_reader(material: Path) -> Read:
    """As our own kernels' weights of the LLM, which are taken over into a model."""
    bundle = open_bundle(material / "native")
    native = bundle.manifest.llm.weights.native
    assert native is not None

    def reader(content: bytes) -> object:
        put(bundle.path(native.file), content)
        return NativeDecoder.load(bundle, 1)

    return reader


def read_audio(path: Path) -> object:
    """All of it, in pieces."""
    with quiet():
        return sum(len(block) for block in PcmReader(path).blocks())


def inspect(path: Path) -> object:
    """As `inspect` and `convert` do."""
    inspect_path(path)
    return pickles.use(path)


READERS: dict[str, Reader] = {
    "annotation": Reader("annotation.json", file_reader(read_annotation, "annotation.json")),
    "answers": Reader("answers.jsonl", file_reader(read_answers, "answers.jsonl")),
    "audio": Reader("*.audio", file_reader(read_audio, "recording")),
    "golden": Reader("onnx/golden.npz", golden_reader),
    "graph": Reader("onnx/qformer.onnx", graph_reader),
    "manifest": Reader("*/bundle.json", manifest_reader),
    "pickle": Reader("salmonn.pth", file_reader(inspect, "salmonn.pth")),
    "recipe": Reader("*.yaml", file_reader(load_recipe, "recipe.yaml")),
    "tokenizer": Reader("onnx/tokenizer.json", file_reader(Tokenizer, "tokenizer.json")),
    "weights": Reader("native/*.bin", weights_reader),
}
