"""The torch decoder's own: stored values to the bit, pages that are shared and bounded, kernels that are chosen."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from salmonrun.export.graphs.linear import quantize
from salmonrun.kernels.formats import NF4, dequantize_blocks, dequantize_table, quantize_nf4
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.config import Limits
from salmonrun.runtime.decoder import Chunk, prefill, step, verify
from salmonrun.runtime.decoders import choose
from salmonrun.runtime.decoders.torch_decoder.attention import Places, flash, sdpa
from salmonrun.runtime.decoders.torch_decoder.decoder import TorchDecoder
from salmonrun.runtime.decoders.torch_decoder.pages import PAGE, PagedSlot, PageTable
from salmonrun.runtime.decoders.torch_decoder.products import Bitsandbytes, Dequantized, Stored
from salmonrun.runtime.decoders.torch_decoder.weights import load_model
from salmonrun.runtime.errors import BundleError, BusyError, CapacityError, ClosedError, ConfigError
from tests.helpers.llms import BASE, LLMS, random_llm, write_torch_llm

MODEL = BASE | {"tie_word_embeddings": False, "intermediate_size": 101}  # no whole number of blocks


def decoder_of(folder: Path, precision: Any = "fp32", config: dict[str, Any] = MODEL, **options: Any) -> TorchDecoder:
    return TorchDecoder.load(write_torch_llm(random_llm(config), config, folder, precision), "cpu", 1, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> TorchDecoder:
    return decoder_of(tmp_path_factory.mktemp("llm"))


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50, count).tolist()


def assert_close(found: F32, expected: F32) -> None:
    """Logits of order one."""
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=0)


# Values


def rounded(weight: F32, precision: str) -> F32:
    """The values that a matrix of a precision stands for, by salmonrun.kernels.formats."""
    rows, columns = weight.shape
    if precision != "nf4":
        bits = int(precision.removeprefix("int"))
        return dequantize_blocks(*quantize(weight, bits, 32), bits)[:, :columns]
    whole = np.pad(weight, ((0, 0), (0, -columns % 64)))
    return dequantize_table(*_table(whole), 64, whole.size).reshape(rows, -1)[:, :columns]


def _table(whole: F32) -> tuple[Any, F32, F32]:
    packed, scales = quantize_nf4(whole, 64)
    return packed, NF4, scales


@pytest.mark.parametrize("precision", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", ["odd sizes", "qwen2_moe"])
def test_quantized_is_transformers_with_the_stored_values(tmp_path: Path, precision: str, name: str) -> None:
    """Nothing but the weights is rounded: activations, keys and values are float32."""
    config = BASE | LLMS.get(name, MODEL)
    llm = random_llm(config)
    bundle = write_torch_llm(llm, config, tmp_path, precision)  # type: ignore[arg-type]
    ids = tokens_of(1, 40)
    with torch.no_grad():
        for key, weight in llm.named_parameters():
            if "_proj" in key and key.endswith(("weight", "gate_up_proj", "down_proj")):
                matrices = weight if weight.ndim == 3 else weight[None]
                for matrix in matrices:
                    matrix.copy_(torch.from_numpy(rounded(matrix.numpy(), precision)))
        if precision != "nf4":
            head = torch.nn.Parameter(torch.from_numpy(rounded(llm.get_output_embeddings().weight.numpy(), "int8")))
            llm.get_output_embeddings().weight = head
        expected = llm(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    decoder = TorchDecoder.load(bundle, "cpu", 1)
    with decoder.open(1, 40) as (slot,):
        assert_close(verify(decoder, slot, ids), expected)
    assert decoder.describe().kernels["products"] == "dequantized" + (", plain" if precision == "nf4" else "")


def test_matrices_of_8_bits_among_those_of_4(tmp_path: Path) -> None:
    eight = tuple(f"model.layers.1.self_attn.{part}_proj" for part in "qkv")
    llm = random_llm(MODEL)
    bundle = write_torch_llm(llm, MODEL, tmp_path, "int4", eight)
    weights = dict(llm.named_parameters())
    with torch.inference_mode():
        layers = load_model(bundle, torch.device("cpu"), torch.float32).layers
        found = [layer.qkv.weight().numpy() for layer in layers]
    for layer, precision in enumerate(("int4", "int8")):
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        expected = np.concatenate([rounded(weights[name].detach().numpy(), precision) for name in names])
        np.testing.assert_array_equal(found[layer].view(np.uint32), expected.view(np.uint32))
    mixed = bundle.manifest.llm.weights.torch
    assert mixed is not None
    odd = replace(bundle.manifest.llm, weights=replace(bundle.manifest.llm.weights, torch=replace(mixed, int8=("x",))))
    with pytest.raises(BundleError, match="has 'x' in int8, and there is no such matrix"):
        load_model(replace(bundle, manifest=replace(bundle.manifest, llm=odd)), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("columns", [128, 101])
def test_bitsandbytes_reads_what_is_stored(columns: int) -> None:
    """Its kernels for CPUs take our file's bytes, and multiply with the very values that we compute without it."""
    weight = np.random.default_rng(0).normal(size=(24, columns)).astype(np.float32)
    packed, scales = quantize_nf4(np.pad(weight, ((0, 0), (0, -columns % 64))), 64)
    stored = Stored("nf4", torch.from_numpy(packed).view(24, 2, 32), torch.from_numpy(scales).view(24, 2), columns)
    bias = torch.arange(24.0)
    own, theirs = (kind(stored, bias, torch.float32) for kind in (Dequantized, Bitsandbytes))
    np.testing.assert_array_equal(own.weight().numpy(), rounded(weight, "nf4"))
    identity = torch.eye(columns)
    np.testing.assert_array_equal((theirs(identity) - bias).numpy().T, (own(identity) - bias).numpy().T)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(x), own(x), atol=1e-5, rtol=0)


# Rounds


def test_ragged_rounds_are_those_of_each_alone(base: TorchDecoder) -> None:
    """Prompts, drafts and steps of many lengths, across pages: logits and tokens as one by one."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 90, 11).tolist()
    chunks = [1, 5, 1, 1, 30, 1, 2, 1, 1, 9, 1]
    sequences = [tokens_of(i, length + count) for i, (length, count) in enumerate(zip(lengths, chunks, strict=True))]

    def run(together: bool) -> list[F32]:
        with base.open(11, 128) as slots:
            for slot, ids, length in zip(slots, sequences, lengths, strict=True):
                prefill(base, slot, base.embed(ids[:length]))
            added = [
                Chunk(slot, ids[length:], wanted=count)
                for slot, ids, length, count in zip(slots, sequences, lengths, chunks, strict=True)
            ]
            return base.forward(added) if together else [base.forward([chunk])[0] for chunk in added]

    for found, expected in zip(run(True), run(False), strict=True):
        assert_close(found, expected)
        np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_a_round_again_gives_the_same_bits(base: TorchDecoder) -> None:
    def run() -> list[F32]:
        with base.open(3, 60) as slots:
            for i, slot in enumerate(slots):
                prefill(base, slot, base.embed(tokens_of(i, 20 + i)))
            return base.forward([Chunk(slots[0], [1]), Chunk(slots[1], [2]), Chunk(slots[2], [3, 4], wanted=2)])

    for found, expected in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_more_steps_than_the_largest_batch_and_longer_prompts_than_a_piece(tmp_path: Path) -> None:
    config = MODEL | {"num_hidden_layers": 1}
    decoder = decoder_of(tmp_path, config=config, limits=Limits(max_cache_mib=9))
    ids = tokens_of(0, 100)
    with decoder.open(130, 128) as slots, pytest.MonkeyPatch.context() as patch:
        whole = verify(decoder, slots[0], ids)
        patch.setattr("salmonrun.runtime.decoders.torch_decoder.decoder.PIECE", 7)
        assert_close(decoder.forward([Chunk(slots[1], ids, wanted=20)])[0], whole[-20:])
        (nothing,) = decoder.forward([Chunk(slots[2], ids, wanted=0)])
        assert nothing.shape == (0, BASE["vocab_size"])
        decoder.truncate(slots[0], 0)
        decoder.truncate(slots[1], 0)
        decoder.truncate(slots[2], 0)
        for position in range(2):
            logits = step(decoder, slots, ids[position : position + 1] * 130)
            assert_close(logits, np.repeat(whole[position : position + 1], 130, axis=0))


# Pages


def test_pages_are_shared_until_one_writes(base: TorchDecoder) -> None:
    ids, ours, theirs = tokens_of(7, 20), tokens_of(8, 3), tokens_of(9, 3)
    with base.open(2, 60) as (first, second):
        prefill(base, first, base.embed(ids))
        free = base._table.free
        base.fork(first, second, 15)
        assert second.pages == first.pages
        assert base._table.free == free
        found = verify(base, second, theirs)
        assert second.pages != first.pages
        assert base._table.free == free - 1
        again = verify(base, first, ours)
        base.truncate(second, 0)
        assert base._table.free == free
        assert_close(verify(base, second, [*ids, *ours])[-3:], again)
        base.truncate(second, 0)
        assert_close(verify(base, second, [*ids[:15], *theirs])[-3:], found)


def test_a_page_table_never_runs_out() -> None:
    """Any mixture of growing, forking, truncating and closing, against lists of what each position holds."""
    rng = np.random.default_rng(0)
    capacities = [3 * PAGE, PAGE, 2 * PAGE + 1, 1]
    table = PageTable(3 + 1 + 3 + 1)
    pool: dict[int, int] = {}  # what each row holds
    slots = [PagedSlot(capacity) for capacity in capacities]
    held: list[list[int]] = [[] for _ in slots]
    for turn in range(600):
        i, j = rng.integers(0, len(slots), 2).tolist()
        kind = rng.integers(0, 4)
        if kind < 2 and slots[i].length < slots[i].capacity:
            count = int(rng.integers(1, slots[i].capacity - slots[i].length + 1))
            changes = table.grow(slots[i], slots[i].length + count)
            for source, target in changes.copied:
                pool |= {target * PAGE + k: pool.get(source * PAGE + k, -1) for k in range(PAGE)}
            for position in range(slots[i].length, slots[i].length + count):
                pool[slots[i].place(position)] = turn
            slots[i].length += count
            held[i] += [turn] * count
        elif kind == 2:
            length = int(rng.integers(0, min(slots[i].length, slots[j].capacity) + 1))
            table.share(slots[i], slots[j], length)
            held[j] = held[i][:length]
        else:
            length = int(rng.integers(0, slots[i].length + 1))
            table.truncate(slots[i], length)
            del held[i][length:]
        for slot, expected in zip(slots, held, strict=True):
            assert [pool[slot.place(position)] for position in range(slot.length)] == expected
    for slot in slots:
        table.close(slot)
    assert table.free == 8
    with pytest.raises(ClosedError, match="was given back"):
        slots[0].check_open()


def test_what_others_left_in_pages_is_not_read(tmp_path: Path) -> None:
    decoder = decoder_of(tmp_path)
    ids = tokens_of(60, 12)
    with decoder.open(1, 40) as (slot,):
        expected = verify(decoder, slot, ids)
    with torch.inference_mode():
        decoder._pool.keys.fill_(torch.nan)
        decoder._pool.values.fill_(torch.nan)
    with decoder.open(3, 40) as slots:
        assert_close(verify(decoder, slots[1], ids[:-1]), expected[:-1])
        assert_close(step(decoder, slots[1:2], ids[-1:])[0], expected[-1])


def test_the_pool_is_as_large_as_the_limit(tmp_path: Path) -> None:
    llm = BASE | {"num_hidden_layers": 1}
    page = PAGE * 2 * llm["num_key_value_heads"] * llm["head_dim"] * 4
    count = 2**20 // page
    decoder = decoder_of(tmp_path, config=llm, limits=Limits(max_cache_mib=1))
    assert decoder.describe().cache_bytes == (count + 1) * page
    with pytest.raises(CapacityError, match=r"the limit is 1\.0 MiB"):
        decoder.open(count + 1, 1)
    leases = [decoder.open(1, 128) for _ in range(count)]
    with pytest.raises(BusyError, match=r"0\.0 of 1\.0 MiB are free"):
        decoder.open(1, 1)
    for lease in leases:
        step(decoder, lease.slots, [1])
    assert decoder.describe().cache_usage == 1
    leases.pop().close()
    with decoder.open(1, 128) as (slot,):
        step(decoder, [slot], [1])


# What is chosen


def test_the_report_says_what_runs(base: TorchDecoder) -> None:
    found = base.describe()
    assert (found.name, found.device, found.threads) == ("torch", "cpu", 1)
    assert found.kernels == {
        "torch": torch.__version__,
        "activations": "float32",
        "attention": "sdpa",
        "products": "plain",
        "steps": "eager",
        "step kernels": "torch",
    }


def test_threads_are_ours_for_the_round_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    decoder = decoder_of(tmp_path)
    decoder._threads = before + 1
    seen = []
    run = decoder._run
    monkeypatch.setattr(decoder, "_run", lambda *args: seen.append(torch.get_num_threads()) or run(*args))
    with decoder.open(1, 4) as (slot,):
        step(decoder, [slot], [1])
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_flash_attention_is_given_pages_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package needs a GPU: what it is given is checked by computing what it documents for these arguments."""

    def kernel(
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        cache_seqlens: Tensor,
        block_table: Tensor,
        causal: bool,
        window_size: tuple[int, int],
        num_splits: int,
    ) -> Tensor:
        assert causal
        assert num_splits > 0
        assert cache_seqlens.dtype == block_table.dtype == torch.int32
        assert keys.shape[1] % 256 == 0
        rows = []
        for query, length, table in zip(q, cache_seqlens.tolist(), block_table, strict=True):
            k, v = (pool[table].flatten(0, 1)[:length].repeat_interleave(2, dim=1) for pool in (keys, values))
            scores = torch.einsum("shd,thd->hst", query, k) / query.shape[-1] ** 0.5
            ages = (length - len(query) + torch.arange(len(query)))[:, None] - torch.arange(length)
            seen = (ages >= 0) & ((window_size[0] < 0) | (ages <= window_size[0]))
            rows.append(torch.einsum("hst,thd->shd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
        return torch.stack(rows)

    module = ModuleType("flash_attn")
    module.flash_attn_with_kvcache = kernel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.8.3")
    chosen = flash()
    assert (chosen.name, chosen.whole_tables) == ("flash-attn 2.8.3", True)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(4, PAGE, 2, 16, generator=generator) for _ in range(2))
    for new, lengths in ((1, [5, 300]), (7, [7, 263])):
        queries = torch.randn(2, new, 4, 16, generator=generator)
        positions = torch.tensor([list(range(length - new, length)) for length in lengths])
        table = torch.tensor([[3, 0], [1, 2]], dtype=torch.int32)
        places = Places(positions, torch.tensor([]), torch.tensor(lengths, dtype=torch.int32), table)
        for window in (None, 4):
            arguments = queries, keys, values, places, window
            torch.testing.assert_close(chosen.attend(*arguments), sdpa(*arguments), atol=1e-5, rtol=0)


class GraphOfCalls:
    """Stands for a CUDA graph: notes the call that is captured, and repeats it; nothing is passed to it."""

    made: Sequence["GraphOfCalls"] = ()
    replays = 0
    work: Callable[[], None]

    def replay(self) -> None:
        self.replays += 1
        self.work()


def test_a_captured_step_reads_and_writes_in_place(base: TorchDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for each batch size; replays find new tokens, places and lengths where those of the capture were."""
    made: dict[int, GraphOfCalls] = {}

    def capture(self: Any) -> None:
        graph = made[len(self._rows)] = GraphOfCalls()
        graph.work = self._replay
        self._replay = graph.replay

    expected = logits_of_steps(base)
    monkeypatch.setattr("salmonrun.runtime.decoders.torch_decoder.steps._Step.capture", capture)
    base._steps._made.clear()
    base._steps.captured = True
    try:
        for found, own in zip(logits_of_steps(base), expected, strict=True):
            np.testing.assert_array_equal(found, own)
    finally:
        base._steps.captured = False
        base._steps._made.clear()
    assert {batch: graph.replays for batch, graph in made.items()} == {1: 3, 2: 2, 4: 1}


def logits_of_steps(decoder: TorchDecoder) -> list[F32]:
    with decoder.open(3, 60) as slots:
        prefill(decoder, slots[0], decoder.embed(tokens_of(5, 9)))
        counts = (1, 2, 3, 1, 2, 1)
        return [step(decoder, slots[:count], [count, 7, 8][:count]) for count in counts]


def test_mixtures_of_experts_are_not_captured(tmp_path: Path) -> None:
    with torch.inference_mode():
        config = BASE | LLMS["mixtral"]
        bundle = write_torch_llm(random_llm(config), config, tmp_path, "fp32")
        assert not load_model(bundle, torch.device("cpu"), torch.float32).launches_alike


def test_half_precision_is_near_float32(tmp_path: Path) -> None:
    """As on a GPU: bfloat16 and float16 activations, keys, values and plain weights."""
    bundle = write_torch_llm(random_llm(MODEL), MODEL, tmp_path, "int8")
    ids = tokens_of(2, 30)
    found = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with torch.inference_mode():
            decoder = TorchDecoder(bundle, load_model(bundle, torch.device("cpu"), dtype), 1, None)
        with decoder.open(1, 40) as (slot,):
            prefill(decoder, slot, decoder.embed(ids[:20]))
            found[dtype] = np.concatenate([step(decoder, [slot], [token]) for token in ids[20:]])
    scale = np.sqrt(np.mean(np.square(found[torch.float32])))
    for dtype, limit in ((torch.float16, 0.01), (torch.bfloat16, 0.08)):
        error = np.sqrt(np.mean(np.square(found[dtype] - found[torch.float32]))) / scale
        assert 0 < error < limit


def test_what_it_does_not_have_is_refused(base: TorchDecoder, tmp_path: Path) -> None:
    bundle = write_torch_llm(random_llm(MODEL), MODEL, tmp_path, "int4")
    assert choose(bundle, "auto", "cpu", 1).describe().name == "torch"  # it has weights for no other
    with pytest.raises(ConfigError, match="kv_cache is 'int8', but this bundle runs on the torch decoder"):
        choose(bundle, "torch", "cpu", 1, kv_cache="int8")
    with pytest.raises(ConfigError, match="release_weights is True, but this bundle runs on the torch decoder"):
        choose(bundle, "torch", "cpu", 1, release_weights=True)
    without = replace(bundle.manifest.llm, weights=SimpleNamespace(torch=None, decoders=("onnx",)))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"no weights for the torch decoder, only for onnx: .* --decoder torch"):
        load_model(replace(bundle, manifest=replace(bundle.manifest, llm=without)), torch.device("cpu"), torch.float32)


def test_without_pytorch_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from salmonrun.runtime.decoders import choose\n"
        "from salmonrun.runtime.errors import MissingExtraError\n"
        "from types import SimpleNamespace as N\n"
        "bundle = N(manifest=N(llm=N(weights=N(torch=1, native=None, onnx=None))))\n"
        "try: choose(bundle, 'torch', 'cpu', 1)\n"
        "except MissingExtraError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (
        run.stdout.strip() == "the torch decoder needs PyTorch, which is not installed: pip install 'salmonrun[torch]'"
    )
