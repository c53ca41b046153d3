"""The LLM's graph cut into pieces against the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.parity.pieces import PiecewiseGraph, cut
from salmonrun.runtime import Engine
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.decoder import prefill, step, verify
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.errors import ParityError
from salmonrun.runtime.golden import check
from tests.helpers.exports import parity
from tests.helpers.llms import BASE, Pair

CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "num_hidden_layers": 3},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(BASE | CASES[request.param], tmp_path_factory.mktemp("llm"))


def file(pair: Pair) -> Path:
    return pair.bundle.path("decoder.onnx")


def test_the_limit_decides_how_many_pieces(pair: Pair) -> None:
    layers = pair.bundle.manifest.llm.layers
    sizes = [piece.size for piece in cut(file(pair), layers, 1)]
    assert len(sizes) == layers + 1  # none is smaller than a layer; the output layer is one of its own
    assert len(cut(file(pair), layers, 2**30)) == 1
    whole = cut(file(pair), layers, sum(sizes))
    assert len(whole) == 1
    assert 0 < whole[0].size <= (pair.bundle.folder / "decoder.onnx.data").stat().st_size
    half = cut(file(pair), layers, max(max(sizes), sizes[0] + sizes[1]))
    assert 1 < len(half) < len(sizes)


def test_every_node_is_in_one_piece(pair: Pair) -> None:
    parts = [onnx.load_from_string(piece.model).graph for piece in cut(file(pair), pair.bundle.manifest.llm.layers, 1)]
    nodes = list(onnx.load(file(pair), load_external_data=False).graph.node)
    assert [node.SerializeToString() for part in parts for node in part.node] == [n.SerializeToString() for n in nodes]


def test_pieces_compute_what_the_whole_does(pair: Pair) -> None:
    done: list[int] = []
    pieces = cut(file(pair), pair.bundle.manifest.llm.layers, 1)
    graph = PiecewiseGraph(pair.bundle, pieces, done.append)
    decoder = OnnxDecoder(pair.bundle, graph)
    ids = np.random.default_rng(0).integers(0, 70, 20).tolist()
    found: list[F32] = []
    expected: list[F32] = []
    for each, logits in ((decoder, found), (pair.decoder, expected)):
        with each.open(2, 40) as slots:
            for slot in slots:
                logits.append(prefill(each, slot, each.embed(ids[:9])))
            logits.extend(step(each, slots, ids[9:11]))
            each.truncate(slots[0], 5)
            logits.extend(verify(each, slots[0], ids[11:]))
            assert [each.length(slot) for slot in slots] == [14, 10]
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-5, rtol=0)
    assert sum(done) == 4 * sum(piece.size for piece in pieces)


@pytest.mark.parametrize("kind", [{}, {"llm_precision": "int4"}, {"target": "cuda"}], ids=["fp32", "int4", "float16"])
def test_an_export_in_pieces(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any]
) -> None:
    options = ExportOptions(parity_budget=1.0, **kind)
    whole = export_bundle(tiny_checkpoint, tmp_path / "whole", options)
    monkeypatch.setattr("salmonrun.export.parity.llm.PIECE_BYTES", 1)
    parts = export_bundle(tiny_checkpoint, tmp_path / "parts", options)
    assert parity(whole)["llm_pieces"] == 1
    assert parity(parts)["llm_pieces"] == open_bundle(parts).manifest.llm.layers + 1
    golden = [np.load(folder / "golden.npz") for folder in (whole, parts)]
    assert np.array_equal(golden[0]["tokens"], golden[1]["tokens"])
    np.testing.assert_allclose(
        golden[0]["logits"], golden[1]["logits"], atol=3e-2 if "target" in kind else 1e-4, rtol=0
    )
    assert check(Engine.load(parts, device="cpu")).passed


def test_a_wrong_graph_is_refused_in_pieces_too(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("salmonrun.export.parity.llm.PIECE_BYTES", 1)

    monkeypatch.setattr("salmonrun.export.graphs.llm.rope_tables", lambda *arguments: rope_tables(*arguments)[::-1])
    with pytest.raises(ParityError, match=r"^llm: largest difference"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
