"""No bundle that is not proven: an export that fails says why and leaves nothing behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export import bundle as bundle_module
from salmonrun.export.graphs.linear import Matrix, plain_linear
from salmonrun.export.graphs.qformer import build_qformer
from salmonrun.export.graphs.rope import rope_tables
from salmonrun.export.parity.gate import prove
from salmonrun.runtime import BundleError, ConfigError
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError, ParityError
from salmonrun.runtime.parity import Parity
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY

F32 = npt.NDArray[np.float32]


@pytest.mark.parametrize(("encoder", "llm", "stage"), [("int8", "fp32", "whisper"), ("fp32", "int4", "llm")])
def test_a_quantized_bundle_over_its_budget_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, encoder: Any, llm: Any, stage: str
) -> None:
    options = ExportOptions(encoder_precision=encoder, llm_precision=llm, parity_budget=1e-4)
    with pytest.raises(ParityError, match=rf"{stage}: relative error .* exceeds the budget 0\.0001"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []


def wrong_qformer(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_wrong(config: Any, qformer: Any, *rest: Any) -> Any:
        with torch.no_grad():
            qformer.layers[1].fc1.weight[0, 0] += 0.5
        return build_qformer(config, qformer, *rest)

    monkeypatch.setattr("salmonrun.export.bundle.build_qformer", build_wrong)


def wrong_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salmonrun.export.graphs.llm.rope_tables", lambda *arguments: rope_tables(*arguments)[::-1])


@pytest.mark.parametrize(
    ("stage", "corrupt"),
    [
        ("whisper", lambda patch: patch.setattr("salmonrun.export.graphs.whisper.EPS", 0.1)),
        (
            "audio_encoder",
            lambda patch: patch.setattr("salmonrun.export.graphs.encoders.beats.deepnorm_alpha", lambda layers: 1.4),
        ),
        ("qformer", wrong_qformer),
        ("llm", wrong_llm),
    ],
)
def test_a_wrong_graph_is_never_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stage: str, corrupt: Callable[[Any], None]
) -> None:
    corrupt(monkeypatch)
    with pytest.raises(ParityError, match=rf"^{stage}: largest difference"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_wrong_embeddings_are_never_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one part of the LLM that is no graph."""

    def write_shifted(source: Any, path: Path) -> None:
        source.parts["llm"]["model.embed_tokens.weight"]().roll(1, dims=0).numpy().tofile(path)

    monkeypatch.setattr("salmonrun.export.bundle._write_embedding", write_shifted)
    with pytest.raises(ParityError):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_other_tokens_are_never_written(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits within the tolerance are not enough."""

    def rolled(graph: Any, x: str, name: str, weight: Matrix, bias: F32 | None) -> str:
        return plain_linear(graph, x, name, np.roll(weight[:, :], 1, axis=0), bias)

    monkeypatch.setattr("salmonrun.export.parity.gate.EXACT_TOLERANCE", 1e9)
    monkeypatch.setattr("salmonrun.export.graphs.llm.LM_HEAD_LINEARS", {"fp32": rolled})
    with pytest.raises(ParityError, match=r"greedy tokens differ from PyTorch's at \d+ of 16 positions"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda", "encoder_precision": "int8"}, "int8 encoders run on the CPU only"),
        ({"encoder_precision": "fp16"}, "fp16 encoders are for GPUs; use --target cuda"),
        ({"max_length": 64}, "max_length is 64"),
        ({"parity_budget": 0.0}, "parity_budget is 0"),
        ({"parity_budget": float("nan")}, "parity_budget is nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**options)


def test_an_existing_folder_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="bundle exists"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["salmonrun.export.bundle.build_qformer", "salmonrun.export.bundle.prove"])
def test_a_killed_export_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    def kill(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(place, kill)
    with pytest.raises(error):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_leaves_is_no_bundle(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is written when the gate begins, and nothing is proven: the manifest comes last."""
    real, seen = prove, []

    def then_killed(*arguments: Any) -> Parity:
        (folder,) = tmp_path.iterdir()
        with pytest.raises(BundleError, match=r"has no bundle\.json; it is not a bundle"):
            open_bundle(folder)
        seen.append({path.name for path in folder.rglob("*")})
        parity = real(*arguments)
        with pytest.raises(BundleError, match=r"has no bundle\.json; it is not a bundle"):
            open_bundle(folder, verify=False)
        return parity

    monkeypatch.setattr(bundle_module, "prove", then_killed)
    open_bundle(export_bundle(tiny_checkpoint, tmp_path / "bundle"))
    assert {"whisper.onnx", "decoder.onnx", "embed_tokens.bin", "tokenizer.json"} <= seen[0]


def longrope(longest: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": longest, **factors}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "olmo2"}, ConfigError, "LLM family 'olmo2' cannot be exported; supported: llama, mistral"),
        ({"hidden_act": "gelu"}, ConfigError, r"llm\.hidden_act is 'gelu'"),
        ({"head_dim": 8}, ConfigError, "head_dim is 8"),
        ({"rope_parameters": longrope(64)}, ConfigError, "longer than 64, .* export with --max-length 64"),
        ({"vocab_size": 200}, CheckpointError, "tokenizer.json has 258 tokens, the LLM 200"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    init_checkpoint(replace(TINY, llm=TINY.llm | change), tmp_path / "checkpoint")
    with pytest.raises(error, match=message):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("changes", [{"bos_token_id": 400}, {"stop_token_ids": (257, -1)}])
def test_ids_without_an_embedding_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    init_checkpoint(replace(TINY, prompt=replace(TINY.prompt, **changes)), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"prompt uses token id (400|-1), the LLM has 258"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    init_checkpoint(TINY, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["whisper.layer_norm.bias"][0] = torch.inf
    save_file(tensors, file)
    with pytest.raises(ParityError, match="not finite"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
