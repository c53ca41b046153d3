"""4-bit LLMs: files of bitsandbytes read without it, and adapters trained on a base that bitsandbytes holds in nf4."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from salmonrun.export import export_bundle
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.weights.native import native_weights, write_native
from salmonrun.export.weights.pytorch import torch_weights, write_torch
from salmonrun.kernels.formats import F32, NF4, dequantize_nf4_t16, dequantize_table
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.errors import CheckpointError, ConfigError, MissingExtraError
from salmonrun.training import ModelConfig, load
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.qlora import hold_in_4_bits
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts, load_recipe
from salmonrun.training.foreign.names import rename_salmonn
from salmonrun.training.foreign.part_files import read_llm
from salmonrun.training.foreign.quantized import dequantized, rounded
from salmonrun.training.foreign.sources import pin_source
from salmonrun.training.model.config import LoraConfig, PartSource, Sources, load_config, save_config
from salmonrun.training.model.llm import build_llm, published_parameters
from salmonrun.training.model.lora import lora_parameters, merged_weights
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from salmonrun.training.tensors import lazy
from tests.helpers.llms import BASE, random_llm
from tests.helpers.runs import logged, write_noises

functional = pytest.importorskip("bitsandbytes.functional")  # the extra qlora

CPU = torch.device("cpu")


def four_bit(values: Tensor, **options: Any) -> tuple[dict[str, Tensor], Any]:
    """A matrix `m` as bitsandbytes stores it, and its own state."""
    packed, state = functional.quantize_4bit(values, **options)
    stored = {f"m.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return {"m": packed} | stored, state


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_those_of_bitsandbytes_bit_by_bit(kind: str, nested: bool, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(len(kind) + nested)
    for blocksize in (32, 64, 128, 256, 512, 1024, 2048, 4096):
        rows, columns = int(rng.integers(1, 70)), blocksize * int(rng.integers(1, 4))
        values = torch.from_numpy(rng.standard_normal((rows, columns)) * rng.uniform(1e-3, 30, (rows, 1))).to(dtype)
        options = {"blocksize": blocksize, "compress_statistics": nested, "quant_type": kind}
        tensors, state = four_bit(values, **options)
        (name, get), *others = dequantized(lazy(tensors), "file").items()
        assert (name, others) == ("m", [])
        assert get().dtype == dtype
        assert torch.equal(get(), functional.dequantize_4bit(tensors["m"], state))
        assert (get() - values).abs().max() <= 0.25 * values.abs().max()  # and those are near what went in


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(48, 96), (7, 10), (3, 5), (256, 688), (1, 1), (130,)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_that_are_not_whole_blocks(kind: str, shape: tuple[int, ...], nested: bool, dtype: torch.dtype) -> None:
    """Blocks run on over rows. bitsandbytes' CPU kernel has that wrong, unless it is given one block a row."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors, state = four_bit(values, blocksize=64, compress_statistics=nested, quant_type=kind)
    blocks = -(-values.numel() // 64)
    state.shape = torch.Size((blocks, 64))
    packed = nn.functional.pad(tensors["m"].flatten(), (0, 32 * blocks - tensors["m"].numel()))
    expected = functional.dequantize_4bit(packed, state).flatten()[: values.numel()].reshape(shape)
    assert torch.equal(dequantized(lazy(tensors), "file")["m"](), expected)


def test_rounding_is_pytorchs() -> None:
    """To the nearest, halves to even: every float32 pattern of the upper half, with lower halves around the middle."""
    upper = np.arange(0, 0x7F80, dtype=np.uint32) << 16  # all finite, from subnormal on
    for sign in (0, 0x80000000):
        for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
            values = (upper | lower | sign).astype(np.uint32).view(np.float32)
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                with np.errstate(over="ignore"):
                    got = rounded(values, dtype)
                assert torch.equal(got, torch.from_numpy(values).to(dtype))


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_bytes_may_be_stored_under_another_dtype(storage: torch.dtype) -> None:
    values = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    tensors, state = four_bit(values, blocksize=64, quant_type="nf4", quant_storage=storage)
    assert tensors["m"].dtype == storage
    expected = functional.dequantize_4bit(tensors["m"], state)
    assert torch.equal(dequantized(lazy(tensors), "file")["m"](), expected)


def broken(edit: Any) -> dict[str, Tensor]:
    tensors, _ = four_bit(torch.ones(64, 64), compress_statistics=True, quant_type="nf4")
    edit(tensors)
    return tensors


def edit_state(tensors: dict[str, Tensor], **changes: Any) -> None:
    name = "m.quant_state.bitsandbytes__nf4"
    raw = json.loads(tensors[name].numpy().tobytes()) | changes
    tensors[name] = torch.tensor(list(json.dumps(raw).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("m.absmax"), r"file: 4-bit m is incomplete: \['m\.absmax'\]"),
        (lambda t: t.pop("m"), r"file: 4-bit m is incomplete: \['m'\]"),
        (lambda t: t.pop("m.nested_absmax"), "incomplete: half of its nested scales"),
        (lambda t: t.update({"m": t["m"][:-1]}), r"file: m cannot be read .* 4094 values and 64 scales; expected 4096"),
        (lambda t: t.update({"m.absmax": t["m.absmax"][:-1]}), "63 scales; expected 4096 and 64"),
        (lambda t: edit_state(t, dtype="int8"), "values of int8"),
        (lambda t: edit_state(t, blocksize=0), "blocks of 0"),
        (lambda t: edit_state(t, colour="blue"), "unknown key 'colour'"),
        (
            lambda t: t.update({"m.quant_state.bitsandbytes__nf4": torch.zeros(2, dtype=torch.uint8)}),
            "file: m cannot be read",
        ),
    ],
)
def test_a_damaged_matrix_is_named(edit: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        dequantized(lazy(broken(edit)), "file")["m"]()


@pytest.fixture(scope="module")
def four_bit_folder(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden LLM as transformers and bitsandbytes publish it in 4 bits, one module left out."""
    source, folder = golden / "salmonn" / "llm", tmp_path_factory.mktemp("four-bit") / "llm"
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp"],
    )
    llm = transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.bfloat16)
    llm.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def test_a_published_4_bit_folder_is_read_without_bitsandbytes(
    four_bit_folder: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "bitsandbytes", None)
        config, tensors = read_llm(four_bit_folder)
        read = {name: get() for name, get in tensors.items()}
    assert "quantization_config" not in config
    stored, original = (load_file(f / "model.safetensors") for f in (four_bit_folder, golden / "salmonn" / "llm"))
    four = {name.split(".quant_state")[0] for name in stored if ".quant_state." in name}
    assert "model.layers.0.mlp.up_proj.weight" in four
    assert "model.layers.1.mlp.up_proj.weight" not in four
    assert read.keys() == original.keys()
    llm = transformers.AutoModelForCausalLM.from_pretrained(four_bit_folder)
    for name, value in read.items():
        if name not in four:
            assert torch.equal(value, stored[name])
            continue
        assert (value - original[name]).abs().max() <= 0.25 * original[name].abs().max()
        weight = llm.get_submodule(name.removesuffix(".weight")).weight
        if weight.quant_state.shape[1] % 64 == 0:  # else its CPU kernel is wrong: see above
            assert torch.equal(value, functional.dequantize_4bit(weight.data, weight.quant_state))


def test_a_checkpoint_on_a_4_bit_llm_loads_and_exports(
    four_bit_folder: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    config = load_config(golden_checkpoint)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((golden_checkpoint / name).read_bytes())
    four = replace(config, llm=read_llm(four_bit_folder)[0])
    save_config(
        replace(four, sources=replace(config.sources, llm=pin_source(PartSource(str(four_bit_folder), {})))), folder
    )
    model = load(folder)
    assert model.llm.get_submodule("model.layers.0.self_attn.q_proj").weight.dtype == torch.float32
    export_bundle(folder, tmp_path / "bundle")  # which refuses other tokens than PyTorch's


def test_what_is_stored_in_nf4_keeps_its_values_in_a_bundle(tmp_path: Path) -> None:
    """Bit by bit those of bitsandbytes in float32, nested scales too; but where an adapter is merged."""
    llm = BASE | {"hidden_size": 128, "intermediate_size": 192}
    kept, adapted = (f"model.layers.0.self_attn.{name}_proj.weight" for name in ("k", "q"))
    tensors = lazy(published_parameters(random_llm(llm)))
    stored: dict[str, Tensor] = {}
    states: dict[str, Any] = {}
    for name in (kept, adapted):
        pieces, states[name] = four_bit(tensors[name]().detach().bfloat16(), compress_statistics=True, quant_type="nf4")
        stored |= {piece.replace("m", name, 1): value for piece, value in pieces.items()}
    rest = {name: get for name, get in tensors.items() if name not in states}
    q = adapted.removesuffix("weight")
    adapter = lazy({f"{q}A": torch.ones(1, 128), f"{q}B": torch.ones(64, 1)})
    config = LoraConfig(r=1, targets=("q_proj",))
    merged = merged_weights(dequantized(rest | lazy(stored), "file"), adapter, config)
    write_native(tmp_path / "native.bin", LlmShape.from_config(llm), merged, native_weights("nf4"), 64)
    plain = torch_weights("nf4", "cuda", torch.bfloat16)
    write_torch(tmp_path / "torch.bin", LlmShape.from_config(llm), merged, plain, 64)
    written, rows = (load_arrays(tmp_path / name) for name in ("native.bin", "torch.bin"))

    def values(name: str) -> F32:
        return dequantize_nf4_t16(written[name], written[f"{name}.scale"])

    def values_in_torch(name: str) -> F32:
        scales = rows[f"{name}.scale"].ravel()
        return dequantize_table(rows[name].ravel(), NF4, scales, 64, 64 * scales.size).reshape(-1, 128)

    def of_bitsandbytes(name: str) -> F32:
        states[name].dtype = torch.float32
        return functional.dequantize_4bit(stored[name], states[name]).numpy()

    np.testing.assert_array_equal(values(kept).view(np.uint32), of_bitsandbytes(kept).view(np.uint32))
    np.testing.assert_array_equal(values_in_torch(kept).view(np.uint32), of_bitsandbytes(kept).view(np.uint32))
    assert rows[kept].tobytes() == stored[kept].numpy().tobytes()  # its kernels take them as they lie
    assert np.abs(values(adapted) - of_bitsandbytes(adapted)).min() > 0.5


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quant_method 'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "load_in_4bit False"),
    ],
)
def test_other_quantizations_are_refused(
    four_bit_folder: Path, tmp_path: Path, quantization: dict[str, Any], message: str
) -> None:
    raw = json.loads((four_bit_folder / "config.json").read_text()) | {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").write_bytes((four_bit_folder / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        read_llm(tmp_path)


def tiny(**changes: Any) -> ModelConfig:
    config = preset("tiny")
    audio = replace(config.audio, window="trimmed", min_s=0.5)
    return replace(config, audio=audio, lora=LoraConfig(r=4, alpha=16.0, dropout=0.0), **changes)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that holds its LLM itself."""
    folder = tmp_path_factory.mktemp("stored") / "checkpoint"
    init_checkpoint(tiny(), folder)
    return folder


@pytest.fixture(scope="module")
def referring(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, its LLM and Whisper in folders of their own."""
    parts, folder = tmp_path_factory.mktemp("parts"), tmp_path_factory.mktemp("referring") / "checkpoint"
    config, tensors = load_config(stored), load_file(stored / "model.safetensors")
    (parts / "config.json").write_text(json.dumps(config.llm))
    llm = {name.removeprefix("llm."): value for name, value in tensors.items() if name.startswith("llm.")}
    save_file(llm, parts / "model.safetensors")
    folder.mkdir()
    save_config(replace(config, sources=Sources(llm=pin_source(PartSource(str(parts), {})))), folder)
    save_file({n: value for n, value in tensors.items() if not n.startswith("llm.")}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((stored / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), ("one", "two three"))


def recipe(checkpoint: Path, annotation: Path, out: Path, **run: Any) -> Recipe:
    settings = {"steps": 12, "batch_size": 2, "lr": 3e-3, "warmup_steps": 1, "log_every": 1, "save_every": 12, **run}
    data = DataConfig((DataSet(str(annotation)),))
    return Recipe(str(checkpoint), data, RunConfig(str(out), **settings), quantize_llm="nf4")


def test_adapters_are_trained_on_4_bits_saved_alone_and_exported(
    referring: Path, annotation: Path, tmp_path: Path
) -> None:
    only_adapters = replace(recipe(referring, annotation, tmp_path / "run"), train=TrainedParts(qformer=False))
    final = finetune(only_adapters)
    history = logged(tmp_path / "run", 12)
    assert history[-1] < 0.8 * history[0]

    start, end = load_file(referring / "model.safetensors"), load_file(final / "model.safetensors")
    assert end.keys() == start.keys()
    assert not any(name.startswith("llm.") for name in end)
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert changed == {name for name in end if name.startswith("lora.")}
    snapshot = torch.load(tmp_path / "run" / "checkpoint-12" / "trained.pt", weights_only=True)
    assert len(snapshot) == len(changed)
    assert (final / "config.json").read_text() == (referring / "config.json").read_text()

    model, base = load(final), load(referring)
    for name, value in model.llm.state_dict().items():
        assert ".lora_" in name or torch.equal(value, base.llm.state_dict()[name])
    audio = load_audio(annotation.parent / "1.wav", min_s=0.5)
    greedy = GenerationConfig(max_new_tokens=12)
    answer = Engine.load(export_bundle(final, tmp_path / "bundle")).generate(audio, task="asr", config=greedy)
    assert list(answer.token_ids) == model.generate(audio, task="asr", config=greedy)


def test_a_stored_llm_is_copied_as_it_was(stored: Path, annotation: Path, tmp_path: Path) -> None:
    final = finetune(recipe(stored, annotation, tmp_path / "run", steps=1, save_every=1, precision="bf16"))
    start, end = load_file(stored / "model.safetensors"), load_file(final / "model.safetensors")
    assert start.keys() == end.keys()
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith("llm."))
    assert not torch.equal(start["qformer.query_tokens"], end["qformer.query_tokens"])
    assert np.isfinite(logged(tmp_path / "run", 1)).all()


def test_resuming_gives_the_losses_of_the_uninterrupted_run(referring: Path, annotation: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = {"steps": 4, "save_every": 2}
    finetune(recipe(referring, annotation, whole, **run))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    finetune(recipe(referring, annotation, cut, **run), resume=True)
    assert logged(cut, 4) == pytest.approx(logged(whole, 4), abs=1e-6)


def held() -> nn.Module:
    config = tiny()
    torch.manual_seed(0)
    llm = build_llm(config.llm, config.lora)
    hold_in_4_bits(llm, torch.float32, CPU)
    return llm


def test_all_linear_layers_but_head_and_adapters_are_4_bit() -> None:
    llm = held()
    four = {name for name, module in llm.named_modules() if type(module).__name__ == "Linear4bit"}
    layer = {"self_attn.q_proj.base_layer", "self_attn.k_proj", "self_attn.v_proj.base_layer", "self_attn.o_proj"}
    layer |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert four == {f"model.layers.{i}.{name}" for i in range(2) for name in layer}
    weight: Any = llm.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert (weight.dtype, weight.quant_state.quant_type, weight.quant_state.nested) == (torch.uint8, "nf4", True)


def test_a_base_that_was_in_4_bits_gets_the_same_codes_again() -> None:
    options = {"blocksize": 64, "compress_statistics": True, "quant_type": "nf4"}
    values = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    first, state = functional.quantize_4bit(values, **options)
    base = functional.dequantize_4bit(first, state)
    again, state = functional.quantize_4bit(base, **options)
    assert torch.equal(first, again)
    assert (functional.dequantize_4bit(again, state) - base).norm() <= 0.005 * base.norm()


def test_outputs_and_gradients_are_those_of_the_dequantized_weights() -> None:
    llm, config = held(), tiny()
    plain = build_llm(config.llm, config.lora)
    state = {name: value for name, value in llm.state_dict().items() if ".weight." not in name}
    for name, module in llm.named_modules():
        if type(module).__name__ == "Linear4bit":
            state[f"{name}.weight"] = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    plain.load_state_dict(state)
    for model in (llm, plain):
        with torch.no_grad():
            for parameter in lora_parameters(model).values():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))
    embeds = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (llm, plain):
        with torch.no_grad():
            model(inputs_embeds=embeds)  # an evaluation in between changes nothing
        inputs = embeds.clone().requires_grad_()
        logits = model(inputs_embeds=inputs).logits
        logits.square().sum().backward()
        adapters = [parameter.grad for parameter in lora_parameters(model).values()]
        gradients.append([logits.detach(), inputs.grad, *adapters])
    for got, expected in zip(*gradients, strict=True):
        assert got is not None
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_rows_that_are_not_whole_blocks_are_not_trained_on(stored: Path) -> None:
    llm = build_llm(tiny().llm | {"intermediate_size": 160}, None)
    with pytest.raises(ConfigError, match=r"down_proj has 160 inputs; 4 bits need a multiple of 64"):
        hold_in_4_bits(llm, torch.float32, CPU)


def test_training_the_4_bit_weights_is_refused(stored: Path, annotation: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.llm would train the weights that quantize_llm freezes"):
        replace(recipe(stored, annotation, Path("out")), train=TrainedParts(llm=True))


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"salmonrun\[qlora\]"):
        held()


def test_the_recipe_has_a_switch(stored: Path, annotation: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"checkpoint: {stored}\ndata: {{train: [{{annotation: {annotation}}}]}}\nrun: {{out: run}}\n")
    assert load_recipe(file).quantize_llm is None
    assert load_recipe(file, ["quantize_llm=nf4"]).quantize_llm == "nf4"
    with pytest.raises(ConfigError, match="quantize_llm"):
        load_recipe(file, ["quantize_llm=int3"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is for GPUs")
def test_fp16_needs_a_gpu(stored: Path, annotation: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp16 needs a CUDA GPU; use bf16 or fp32"):
        finetune(recipe(stored, annotation, tmp_path / "run", precision="fp16"))


def test_nothing_is_printed_and_bitsandbytes_is_not_imported_before_it_is_needed() -> None:
    quiet = "import sys, training; assert 'bitsandbytes' not in sys.modules; import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", quiet], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_scales_in_a_published_file_trained_on_4_bits_are_left_out() -> None:
    prefix = "llama_model.base_model.model.model.layers.0.self_attn.q_proj"
    state = {f"{prefix}.base_layer.weight.{name}": torch.zeros(1) for name in ("absmax", "quant_map", "nested_absmax")}
    state[f"{prefix}.base_layer.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(1)
    state[f"{prefix}.lora_A.default.weight"] = torch.zeros(8, 4)
    renamed, leftovers = rename_salmonn(lazy(state), Path("x.pth"))
    assert set(renamed) == {"lora.model.layers.0.self_attn.q_proj.A"}
    assert len(leftovers) == 4
