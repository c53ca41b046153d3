"""Each LLM family in our decoders against transformers: ways to append, sliding windows passed, whole exports."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.graphs.llm_family import FAMILIES, LlmShape
from salmonrun.runtime import ConfigError, Engine, GenerationConfig
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.golden import check
from salmonrun.runtime.manifest import ExpertSpec
from salmonrun.training import load
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.exports import TINY, noise, parity
from tests.helpers.llms import BASE, LLMS, SLIDING, WINDOW, Pair

TOLERANCE = 1e-4


def test_every_family_is_here() -> None:
    assert {(BASE | case)["model_type"] for case in LLMS.values()} == set(FAMILIES)


@pytest.fixture(scope="module", params=[(name, runs) for name in LLMS for runs in ("onnx", "torch")], ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, runs = request.param
    return Pair(BASE | LLMS[name], tmp_path_factory.mktemp("llm"), runs)


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, BASE["vocab_size"], count).tolist()


def assert_close(found: F32, expected: F32) -> None:
    assert expected.std() > 0.5  # else closeness would say nothing
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + 1, 40])
def test_prefill(pair: Pair, length: int) -> None:
    ids = tokens_of(length, length)
    with pair.open(1) as (slot,):
        assert_close(pair.prefill(slot, ids), pair.expected(ids)[-1])


def test_steps_in_and_past_the_window(pair: Pair) -> None:
    ids = tokens_of(1, WINDOW + 12)
    expected = pair.expected(ids)
    with pair.open(1) as (slot,):
        found = [pair.prefill(slot, ids[:3])]
        found += [pair.step([slot], [token])[0] for token in ids[3:]]
    assert_close(np.stack(found), expected[2:])


def test_steps_of_slots_of_different_lengths(pair: Pair) -> None:
    """Several slots in one batch: far past a sliding window, about to pass it, and within."""
    lengths = (2, WINDOW + 20, WINDOW - 2, 1)
    sequences = [tokens_of(10 + length, length + 5) for length in lengths]
    expected = [pair.expected(sequence) for sequence in sequences]
    with pair.open(len(lengths)) as slots:
        for slot, length, sequence in zip(slots, lengths, sequences, strict=True):
            pair.prefill(slot, sequence[:length])
        for i in range(5):
            column = [sequence[length + i] for sequence, length in zip(sequences, lengths, strict=True)]
            found = pair.step(slots, column)
            assert_close(found, np.stack([e[length + i] for e, length in zip(expected, lengths, strict=True)]))


def test_verify_across_the_window(pair: Pair) -> None:
    ids = tokens_of(4, 3 * WINDOW)
    expected = pair.expected(ids)
    with pair.open(1) as (slot,):
        pair.prefill(slot, ids[: WINDOW - 2])
        assert_close(pair.verify(slot, ids[WINDOW - 2 : -2]), expected[WINDOW - 2 : -2])
        assert_close(pair.verify(slot, ids[-2:]), expected[-2:])


def test_greedy_tokens_are_those_of_transformers(pair: Pair) -> None:
    ids = tokens_of(11, 10)
    with torch.no_grad():
        expected = pair.llm.generate(
            torch.tensor([ids]), max_new_tokens=32, min_new_tokens=32, do_sample=False, pad_token_id=0
        )
    with pair.open(1) as (slot,):
        assert pair.greedy(slot, pair.prefill(slot, ids), 32) == expected[0, len(ids) :].tolist()


def llm(name: str) -> dict[str, Any]:
    """A case of this file in the dimensions of the tiny checkpoint's vocabulary."""
    return BASE | LLMS[name] | {"vocab_size": TINY.llm["vocab_size"], "bos_token_id": 256, "eos_token_id": 257}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
WHOLE = {
    "llama with biases": EVERY_LINEAR,
    "mistral": EVERY_LINEAR,
    "qwen2 sliding, tied": EVERY_LINEAR,
    "qwen3": EVERY_LINEAR,
    "mixtral": ATTENTION,  # its experts are no linear layers to peft
    "qwen2_moe": EVERY_LINEAR,
    "qwen3_moe": ATTENTION,
}


IN_TORCH = ("qwen2 sliding, tied", "qwen3", "mixtral")  # the torch decoder's own tests have the others


@pytest.mark.parametrize(
    ("name", "decoder"), [*((name, "onnx") for name in WHOLE), *((name, "torch") for name in IN_TORCH)]
)
def test_a_whole_model_of_each_family(tmp_path: Path, name: str, decoder: Literal["onnx", "torch"]) -> None:
    """Stored by us under the published names, adapters merged, proven, and asked."""
    config = replace(TINY, llm=llm(name), lora=LoraConfig(r=4, alpha=16.0, targets=WHOLE[name]))
    init_checkpoint(config, tmp_path / "checkpoint")
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(decoder=decoder))
    measured = parity(bundle)
    assert measured["stages"]["llm"]["max_abs"] <= TOLERANCE * max(1.0, measured["stages"]["llm"]["scale"])
    assert measured["greedy_tokens_equal"]
    model, engine = load(tmp_path / "checkpoint"), Engine.load(bundle, device="cpu")
    assert engine.report().decoder == decoder
    assert check(engine).passed
    search = GenerationConfig(max_new_tokens=12, num_beams=2)
    audio = noise(1.0, 0)
    expected = model.generate(audio, prompt="What is it?", config=search)
    assert engine.generate(audio, prompt="What is it?", config=search).token_ids == expected


@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
@pytest.mark.parametrize("options", [{"llm_precision": "int4"}, {"target": "cuda"}], ids=["int4", "float16"])
def test_other_precisions(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    init_checkpoint(replace(TINY, llm=llm(name)), tmp_path / "checkpoint")
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(parity_budget=1.0, **options))
    assert parity(bundle)["stages"]["llm"]["relative"] > 1e-6
    assert check(Engine.load(bundle, device="cpu")).passed


def test_adapters_on_a_tied_output_layer_are_refused(tmp_path: Path) -> None:
    config = replace(TINY, llm=TINY.llm | {"tie_word_embeddings": True}, lora=LoraConfig(r=4, targets=("lm_head",)))
    init_checkpoint(config, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"adapters of lm_head cannot be merged: there is no lm_head\.weight"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3"])
def test_tensors_are_checked_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    init_checkpoint(replace(TINY, llm=llm(model_type)), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["llm.model.layers.1.post_attention_layernorm.weight"] = torch.ones(63)
    save_file(tensors, file)
    monkeypatch.setattr("salmonrun.export.bundle.build_whisper", None)  # would not be survived
    with pytest.raises(CheckpointError, match=r"layernorm\.weight has shape \[63\], expected \[64\]"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"model_type": "mistral"}, (4096,) * 4),  # transformers' own default
        ({"model_type": "qwen2", "sliding_window": 8}, (None,) * 4),  # not without use_sliding_window
        ({"model_type": "qwen2", **SLIDING}, (None, 8, 8, 8)),
        (
            {"model_type": "qwen3", **SLIDING, "layer_types": ["sliding_attention", *["full_attention"] * 3]},
            (8, *[None] * 3),
        ),
        ({"model_type": "mixtral"}, (None,) * 4),
        ({"model_type": "llama", "sliding_window": 8}, (None,) * 4),  # which Llama does not know
    ],
)
def test_windows_are_read_as_transformers_reads_them(change: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert LlmShape.from_config(BASE | {"num_hidden_layers": 4} | change).windows == windows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama_moe"}, "LLM family 'llama_moe' cannot be exported; supported: llama, .*mixtral"),
        ({"model_type": None}, "LLM family None"),
        ({"model_type": "qwen2", "layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_what_no_graph_has_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlmShape.from_config(BASE | change)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", None),
        ("mixtral", ExpertSpec(2, True)),
        ("qwen2_moe", ExpertSpec(2, False)),
        ("qwen3_moe", ExpertSpec(2, True)),
        ("qwen3_moe sliding", ExpertSpec(2, False)),
    ],
)
def test_how_experts_are_chosen(name: str, expected: ExpertSpec | None) -> None:
    assert LlmShape.from_config(BASE | LLMS[name]).experts == expected
