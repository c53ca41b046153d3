"""Encoders in float16: what a GPU computes is simulated, safe on any audio, and refused where it overflows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.half import AUDIO, LIMIT, measure
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.graphs.builder import FLOAT, FLOAT16, MICROSOFT, GraphBuilder, WeightFile
from salmonrun.export.parity.half import LARGEST, SimulatedHalf
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle, open_bundle
from salmonrun.runtime.errors import ParityError
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.manifest import FileSpec
from salmonrun.training.checkpoint import open_checkpoint
from tests.helpers.exports import parity

HALF = ExportOptions(target="cuda", encoder_precision="fp16", parity_budget=0.05)
F16 = np.float16


@pytest.fixture(scope="module")
def half_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("half") / "bundle", HALF))


@pytest.fixture
def graph(tmp_path: Path, tiny_bundle: Path) -> "HandMade":
    return HandMade(tmp_path, open_bundle(tiny_bundle, verify=False))


class HandMade:
    """Graphs of few nodes in a bundle of their own."""

    def __init__(self, folder: Path, like: Bundle) -> None:
        self.folder = folder
        self._like = like

    def simulated(self, name: str, build: Callable[[GraphBuilder], None]) -> SimulatedHalf:
        with WeightFile(self.folder / f"{name}.onnx.data") as weights:
            graph = GraphBuilder(name, weights)
            build(graph)
        graph.save(self.folder / f"{name}.onnx")
        files = {file.name: FileSpec(file.stat().st_size, "") for file in self.folder.iterdir()}
        manifest = replace(self._like.manifest, graphs={name: graph.spec(f"{name}.onnx")}, files=files)
        return SimulatedHalf(Bundle(self.folder, manifest), name, 1)


def test_products_and_what_is_between_them_are_rounded(graph: HandMade) -> None:
    """To the bit what numpy rounds: of whole numbers, no sum in float32 is rounded itself."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-60, 60, shape).astype(np.float32) for shape in ((1, 50, 40), (40, 30)))

    def build(graph: GraphBuilder) -> None:
        given = graph.op("Cast", graph.input("x", [1, "n", 40]), to=FLOAT16)
        product = graph.op("MatMul", given, graph.raw_weight("w", w.astype(F16)))
        graph.output(graph.op("Cast", graph.op("Add", product, product), to=FLOAT), "y", [1, "n", 30])

    ran = graph.simulated("product", build).run(x=x)
    product = (x @ w).astype(F16)
    expected = (product.astype(np.float32) * 2).astype(F16).astype(np.float32)
    np.testing.assert_array_equal(ran.result, expected)
    assert not np.array_equal(ran.result, 2 * (x @ w))  # something was rounded
    assert ran.largest == np.abs(expected).max()
    assert not ran.overflows
    far = graph.simulated("product", build).run(x=100 * x)
    assert np.isinf(far.result).any()
    assert (far.largest, far.overflows) == (np.inf, True)


def test_scores_of_attention_are_rounded(graph: HandMade) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, 9, 8)).astype(np.float32) for _ in range(3))

    def build(graph: GraphBuilder) -> None:
        halves = [graph.op("Cast", graph.input(name, [1, "n", 8]), to=FLOAT16) for name in "qkv"]
        attended = graph.op("MultiHeadAttention", *halves, domain=MICROSOFT, num_heads=2)
        graph.output(graph.op("Cast", attended, to=FLOAT), "y", [1, "n", 8])

    simulated = graph.simulated("attention", build)
    ran = simulated.run(q=q, k=k, v=v)
    np.testing.assert_allclose(ran.result, attended_in_half(q, k, v), rtol=2e-3, atol=1e-4)
    exact = torch.nn.functional.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2)
    np.testing.assert_allclose(ran.result, exact.flatten(2).numpy(), rtol=0.05, atol=5e-3)
    assert simulated.run(q=300 * q, k=300 * k, v=v).overflows  # scores of 90000
    assert not simulated.run(q=100 * q, k=100 * k, v=v).overflows


def heads(x: F32) -> torch.Tensor:
    return torch.from_numpy(x).unflatten(-1, (2, -1)).transpose(1, 2)


def attended_in_half(q: F32, k: F32, v: F32) -> F32:
    q, k, v = (heads(x.astype(F16).astype(np.float32)).numpy() for x in (q, k, v))
    scores = (q @ k.swapaxes(2, 3) / np.sqrt(np.float32(4))).astype(F16).astype(np.float32)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares = (shares / shares.sum(-1, keepdims=True)).astype(F16).astype(np.float32)
    attended: F32 = (shares @ v).astype(F16).astype(np.float32).swapaxes(1, 2).reshape(1, 9, 8)
    return attended


def test_stages_hold_on_audio_of_any_loudness(half_bundle: Bundle, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    source, pcm = open_checkpoint(tiny_checkpoint), Recording.load(None).cut(1.5)
    found = measure(open_bundle(tiny_bundle), half_bundle, source, pcm)
    assert set(found) == {"whisper", "audio_encoder", "qformer", "all"}
    for stage in found.values():
        assert list(stage) == list(AUDIO)
        assert max(each["relative"] for each in stage.values()) <= LIMIT
        assert min(each["relative"] for each in stage.values()) > 1e-6  # something was rounded
        assert 0 < max(each["largest"] for each in stage.values()) < LARGEST / 8
        for each in stage.values():  # the same rounding, by another program
            assert 0.4 < each["pytorch"] / each["relative"] < 2.5


def test_the_bundle_says_so_and_proves_it(half_bundle: Bundle) -> None:
    manifest, stages = half_bundle.manifest, parity(half_bundle.folder)["stages"]
    assert set(vars(manifest.precision).values()) == {"fp16"}
    for part in ("whisper", "audio_encoder", "qformer"):
        assert 0 < stages[f"{part}, in float16"]["relative"] < LIMIT
    for name in ("whisper", "audio_encoder", "qformer"):  # a caller sees nothing of it
        spec = manifest.graphs[name]
        assert {tensor.dtype for tensor in (*spec.inputs, *spec.outputs)} == {"float32"}
    sizes = {name: manifest.files[manifest.graphs[name].weights].size for name in ("whisper", "audio_encoder")}
    assert max(sizes.values()) < 1_000_000


def test_what_16_bits_cannot_hold_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Sums of 128 times 30000, which float32 takes, as PyTorch does."""
    (tmp_path / "checkpoint").mkdir()
    for file in tiny_checkpoint.iterdir():
        (tmp_path / "checkpoint" / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "checkpoint" / "model.safetensors")
    tensors["whisper.layers.0.fc1.bias"].fill_(30000)
    tensors["whisper.layers.0.fc2.weight"][0].fill_(1.0)
    save_file(tensors, tmp_path / "checkpoint" / "model.safetensors")
    with pytest.raises(
        ParityError, match=r"^whisper: something in it is larger than 65504, .* --encoder-precision fp32"
    ):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", HALF)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
