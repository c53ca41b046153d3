"""The native decoder: equal to its specification to the bit, near transformers, and never out of its file's bounds."""

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmonrun.kernels import reference
from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import dequantize_nf4_t16, quantize_nf4_t16
from salmonrun.runtime import Engine
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import NATIVE_PAGE, Bundle
from salmonrun.runtime.config import KvCacheType, Limits
from salmonrun.runtime.decoder import Chunk, prefill, step, verify
from salmonrun.runtime.decoders import choose
from salmonrun.runtime.decoders.native_decoder import NativeDecoder
from salmonrun.runtime.errors import BundleError, BusyError, CapacityError, ClosedError, ConfigError
from salmonrun.runtime.tensor_file import TensorFile, huge_page_bytes
from tests.helpers.llms import BASE, LLMS, random_llm, write_native_llm
from tests.helpers.native_llms import stored_model

pytest.importorskip("salmonrun.kernels.cpu._native")

OWN: dict[str, dict[str, Any]] = {
    "llama with biases, odd sizes": {
        "attention_bias": True,
        "mlp_bias": True,
        "hidden_size": 80,
        "intermediate_size": 101,
        "vocab_size": 53,
        "head_dim": 48,
    },
    "qwen3_moe, odd sizes": LLMS["qwen3_moe"] | {"moe_intermediate_size": 36, "hidden_size": 80, "vocab_size": 53},
}
CASES = LLMS | OWN


@dataclass(frozen=True, eq=False)
class Native:
    """A bundle of native weights, what they specify, and transformers' model that they came from."""

    bundle: Bundle
    decoder: NativeDecoder
    specified: reference.Model
    llm: torch.nn.Module

    def expected(self, token_ids: Sequence[int]) -> F32:
        """Logits after each token [S, V]."""
        return self.specified.logits(self.decoder.embed(token_ids))


def native_of(config: dict[str, Any], folder: Path, precision: Any = "int8") -> Native:
    llm = random_llm(config)
    bundle = write_native_llm(llm, config, folder, precision)
    return Native(bundle, NativeDecoder.load(bundle, 2), stored_model(bundle), llm)


@pytest.fixture(scope="module", params=list(CASES))
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native_of(BASE | CASES[request.param], tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native_of(BASE, tmp_path_factory.mktemp("llm"), "int4")


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, count).tolist()


def same_bits(found: F32, expected: F32) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_all_ways_to_append_are_the_specification(native: Native) -> None:
    decoder, ids = native.decoder, tokens_of(1, 40)
    expected = native.expected(ids)
    with decoder.open(2, 64) as (slot, other):
        same_bits(prefill(decoder, slot, decoder.embed(ids[:20])), expected[19])
        prefill(decoder, other, decoder.embed(tokens_of(2, 7)))
        for position in range(20, 30):
            same_bits(step(decoder, [other, slot], [position, ids[position]])[1], expected[position])
        same_bits(verify(decoder, slot, ids[30:]), expected[30:])
        assert (decoder.length(slot), decoder.length(other)) == (40, 17)


def test_int8_is_near_transformers(native: Native) -> None:
    ids = tokens_of(3, 40)
    with torch.no_grad():
        expected = native.llm(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    with native.decoder.open(1, 40) as (slot,):
        found = verify(native.decoder, slot, ids)
    squares = np.square(found - expected).mean(axis=1)  # of each position
    # Where two experts are almost alike, rounding may choose the other one: of few positions.
    error = np.median(squares) if native.bundle.manifest.llm.experts else squares.mean()
    assert np.sqrt(error) <= 0.05 * np.sqrt(np.mean(np.square(expected)))


def test_nf4_is_near_transformers_with_its_values(tmp_path: Path) -> None:
    """Nothing is left but the cache's rounding, and that of the output layer's 8 bits."""
    native = native_of(BASE | {"tie_word_embeddings": False}, tmp_path, "nf4")
    ids = tokens_of(6, 40)
    with native.decoder.open(1, 40) as (slot,):
        found = verify(native.decoder, slot, ids)
    same_bits(found, native.expected(ids))
    with torch.no_grad():
        for name, weight in native.llm.named_parameters():
            if name.endswith("_proj.weight"):
                values = dequantize_nf4_t16(*quantize_nf4_t16(weight.numpy(), 64))
                weight.copy_(torch.from_numpy(values[: weight.shape[0], : weight.shape[1]]))
        expected = native.llm(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    assert np.sqrt(np.mean(np.square(found - expected))) <= 0.01 * np.sqrt(np.mean(np.square(expected)))


def test_rounds_begin_where_chunks_say(base: Native) -> None:
    """Beams: slots become copies of each other, of their old content, and go on, in one round."""
    decoder, ids = base.decoder, tokens_of(4, 30)
    with decoder.open(3, 40) as (first, second, third):
        prefill(decoder, first, decoder.embed(ids[:20]))
        (empty,) = decoder.forward([Chunk(second, ids[:5], wanted=0)])
        assert empty.shape == (0, BASE["vocab_size"])
        logits = decoder.forward(
            [
                Chunk(second, ids[12:15], keep=12, source=first),
                Chunk(third, [1], keep=20, source=first),
                Chunk(first, [2], keep=3),
            ]
        )
        for found, tokens in zip(logits, (ids[:15], [*ids[:20], 1], [*ids[:3], 2]), strict=True):
            same_bits(found[0], base.expected(tokens)[-1])
        decoder.truncate(second, 0)
        assert decoder.length(second) == 0
    assert decoder.forward([]) == []


def test_what_cannot_be_is_refused(base: Native) -> None:
    decoder = base.decoder
    with pytest.raises(CapacityError, match="need 129 positions, the KV cache has 128"):
        decoder.open(1, 129)
    with decoder.open(2, 10) as (slot, other):
        with pytest.raises(CapacityError, match="0 \\+ 11 positions exceed the 10 reserved"):
            prefill(decoder, slot, decoder.embed([1] * 11))
        with pytest.raises(ValueError, match="a slot may occur once"):
            decoder.forward([Chunk(slot, [1]), Chunk(slot, [2])])
        with pytest.raises(ValueError, match="2 logits are wanted of 1 positions"):
            decoder.forward([Chunk(slot, [1], wanted=2)])
        with pytest.raises(ValueError, match="cannot truncate 0 positions to 1"):
            decoder.truncate(slot, 1)
        assert decoder.length(slot) == 0
    for call in (
        lambda: step(decoder, [slot], [1]),
        lambda: decoder.length(slot),
        lambda: decoder.fork(slot, other, 0),
    ):
        with pytest.raises(ClosedError):
            call()
    with pytest.raises(BundleError, match=r"no graph 'llm', only .* for native: choose another decoder"):
        choose(base.bundle, "onnx", "cpu", 1)


def test_the_report_says_what_runs(base: Native) -> None:
    report = choose(base.bundle, "auto", "cpu", 2).describe()
    assert (report.name, report.device, report.threads) == ("native", "cpu", 2)
    assert report.instruction_set == load_native().instruction_sets()[0]
    assert report.cache_bytes == 0
    assert report.weights is not None
    assert (huge_page_bytes(report.weights) is None) == (not Path("/proc/self/smaps").exists())


def test_keys_and_values_as_bytes(base: Native) -> None:
    """Equal to the specification to the bit, near what float16 gives, in little more than half the memory."""
    small = NativeDecoder.load(base.bundle, 2, kv_cache="int8")
    ids = tokens_of(3, 90)
    with small.open(1, 100) as (slot,), base.decoder.open(1, 100) as (other,):
        found = verify(small, slot, ids)
        assert np.array_equal(found, replace(base.specified, cache_dtype=np.int8).logits(base.decoder.embed(ids)))
        halves = verify(base.decoder, other, ids)
    assert 0 < np.sqrt(np.mean((found - halves) ** 2) / np.mean(halves**2)) < 0.05


@pytest.mark.onnx
def test_a_cache_of_bytes_needs_the_native_decoder(base: Native, tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache is 'int8', but this bundle runs on the onnx decoder"):
        Engine.load(tiny_bundle, kv_cache="int8")
    with pytest.raises(ConfigError, match=r"kv_cache is 'int4'; expected 'fp16' or 'int8'"):
        Engine.load(tiny_bundle, kv_cache="int4")  # type: ignore[arg-type]
    assert choose(base.bundle, "auto", "cpu", 1, kv_cache="int8").describe().name == "native"


@pytest.mark.parametrize("kv_cache", ["fp16", "int8"])
def test_memory_for_keys_and_values_is_bounded(base: Native, kv_cache: KvCacheType) -> None:
    """Sequences have whole pages; all that are open may be filled to their ends, within the limit."""
    llm = base.bundle.manifest.llm
    page = 64 * 2 * llm.layers * llm.kv_heads * (2 * llm.head_dim if kv_cache == "fp16" else llm.head_dim + 4)
    decoder = NativeDecoder.load(base.bundle, 1, limits=Limits(max_cache_mib=1), kv_cache=kv_cache)
    count = 2**20 // page
    leases = [decoder.open(1, 1 + 63 * (i % 2)) for i in range(count)]
    with pytest.raises(BusyError, match=r"0\.\d of 1\.0 MiB are free"):
        decoder.open(1, 1)
    for lease in leases:
        step(decoder, lease.slots, [1])
    assert decoder.describe().cache_bytes <= 2 * 2**20  # slabs of one huge page
    leases.pop().close()
    with decoder.open(1, 64):
        pass


def test_threads_of_the_caller_take_turns(base: Native) -> None:
    """Each has a sequence of its own; leases are given back while others compute."""
    failures: list[str] = []

    def ask(seed: int) -> None:
        for _ in range(3):
            ids = tokens_of(seed, 25)
            with base.decoder.open(1, 30) as (slot,):
                prefill(base.decoder, slot, base.decoder.embed(ids[:-3]))
                found = verify(base.decoder, slot, ids[-3:])
            if not np.array_equal(found, expected[seed]):
                failures.append(f"thread {seed}")

    expected = [base.expected(tokens_of(seed, 25))[-3:] for seed in range(3)]
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# The file


def changed(bundle: Bundle, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Bundle:
    """A copy whose header says something else."""
    shutil.copytree(bundle.folder, folder)
    path = folder / "native.bin"
    content = bytearray(path.read_bytes())
    header = json.loads(content[8:NATIVE_PAGE])
    edit(header)
    content[8:NATIVE_PAGE] = json.dumps(header).encode().ljust(NATIVE_PAGE - 8)
    path.write_bytes(content)
    return replace(bundle, folder=folder)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: header.pop(Q), f"has no tensor '{Q}'"),
        (lambda header: header.update({Q: 3}), f"has no tensor '{Q}'"),
        (lambda header: header[Q].update(dtype="F32"), rf"{Q} is F32 \[4, 2, 4, 64\], expected U8"),
        (lambda header: header[Q].update(shape=[4, 2, 256]), r"is U8 \[4, 2, 256\], expected U8 \[4, 2, 4, 64\]"),
        (
            lambda header: header[Q].update(data_offsets=[0, 10]),
            r"lies at \[0, 10\], expected 2048 bytes within the file",
        ),
        (lambda header: header[Q].update(data_offsets=[2**40, 2**40 + 2048]), "expected 2048 bytes within the file"),
        (lambda header: header[Q].update(data_offsets=[-2048, 0]), "expected 2048 bytes within the file"),
        (lambda header: header[Q].update(data_offsets=[32, 2080]), "begins at 2097184, expected a multiple of 64"),
        (lambda header: header[Q].update(data_offsets=None), "lies at None"),
        (lambda header: header.pop("rope.cos"), "has no tensor 'rope.cos'"),
        (
            lambda header: header["model.layers.0.mlp.gate_proj.weight"].update(shape=[]),
            "expected U8 \\[0, 2, 4, 64\\]",
        ),
        (
            lambda header: header["model.layers.0.mlp.gate_proj.weight"].update(
                shape=[-(2**70), 2, 4, 64], data_offsets=[2**79, 0]
            ),
            "expected U8 \\[0, 2, 4, 64\\]",
        ),
    ],
)
def test_files_that_are_not_as_they_say(
    base: Native, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        NativeDecoder.load(changed(base.bundle, tmp_path / "copy", edit), 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be mapped"),
        (b"\xff" * 100, "it is not a safetensors file"),
        ((20).to_bytes(8, "little") + b"{}", "a header of 20 bytes"),
        ((2).to_bytes(8, "little") + b"{]", "a header that is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
        ((50_000).to_bytes(8, "little") + b"[" * 50_000, "a header that is not JSON"),
    ],
)
def test_files_that_are_no_tensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        TensorFile(tmp_path / "file")


def test_garbage_in_the_weights_is_computed_with_and_no_more(base: Native, tmp_path: Path) -> None:
    shutil.copytree(base.bundle.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "native.bin"
    content = bytearray(path.read_bytes())
    content[NATIVE_PAGE:] = np.random.default_rng(0).bytes(len(content) - NATIVE_PAGE)
    path.write_bytes(content)
    decoder = NativeDecoder.load(replace(base.bundle, folder=tmp_path / "copy"), 2)
    with decoder.open(1, 40) as (slot,):
        assert verify(decoder, slot, tokens_of(5, 40)).shape == (40, BASE["vocab_size"])
