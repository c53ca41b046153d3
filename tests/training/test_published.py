"""Each published layout: it converts, and the bundle made of it answers with PyTorch's tokens."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import sentencepiece
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError, ConfigError, MissingExtraError
from salmonrun.runtime.prompt import prompt_halves, prompt_ids
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training import load
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.foreign.adapters import read_adapter
from salmonrun.training.foreign.part_files import read_llm
from salmonrun.training.model.config import load_config
from salmonrun.training.starting.chat import tokenizer_file
from salmonrun.training.starting.presets import TASKS
from tests.helpers import eat, published
from tests.helpers.parts import edit_json, write_llm, write_openai_whisper, write_whisper
from tests.helpers.published import Published

LORA = f"llama_model.{published.PEFT}"
VICUNA = {"end_sym": "</s>", "llama_path": "lmsys/vicuna-7b-v1.5", "whisper_path": "openai/whisper-large-v2"}


@pytest.fixture
def files(golden: Path, tmp_path: Path) -> Published:
    return Published(tmp_path, golden / "beats" / "beats.pt")


def vicuna(files: Published) -> None:
    """SALMONN 7B and 13B: Llama 2 in fp16, untied, in shards of PyTorch's, with a SentencePiece model alone."""
    write_llm(files.llm, max_position_embeddings=4096)
    shard(files.llm)
    as_bins(files.llm)
    (files.llm / "tokenizer.json").unlink()
    write_sentencepiece(files.llm, [*(prompt for task in TASKS.values() for prompt in task), "USER: ASSISTANT:"])
    write_whisper(files.whisper)
    inv_freq = {f"{LORA}model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(8) for i in range(3)}
    write(files, inv_freq, VICUNA)


def llama_3b(files: Published) -> None:
    """Nota 3B: Llama 3 in bf16, tied; its output layer is in the .pth, with a [PAD] row; Whisper in fp16, in shards."""
    write_llm(files.llm, dtype=torch.bfloat16, tie_word_embeddings=True)
    write_whisper(files.whisper, dtype=torch.float16)
    shard(files.whisper)
    write(files, published.padded_head(files.llm))


def openai(files: Published) -> None:
    """Whisper as OpenAI has it, in fp16; no BEATs; more adapters; the file in half precision."""
    files.audio_encoder = None
    write_llm(files.llm)
    folder = write_whisper(files.folder / "openai", dtype=torch.float16)
    write_openai_whisper(folder, files.folder / "whisper.pt")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    write(files, targets=targets, dtype=torch.float16)


def large_v3(files: Published) -> None:
    """128 mels."""
    write_llm(files.llm)
    write_whisper(files.whisper, n_mels=128)
    write(files, options={"whisper_path": "openai/whisper-large-v3-turbo"})


def unsloth(files: Published) -> None:
    """QLoRA on a folder of unsloth's: bitsandbytes' 4 bits, tied, keys of their own in config.json."""
    pytest.importorskip("bitsandbytes")
    plain = write_llm(files.folder / "plain", tie_word_embeddings=True, hidden_size=64, intermediate_size=128)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "multi_modal_projector", "merger", "modality_projection"],
    )
    llm = transformers.AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, dtype=torch.bfloat16)
    llm.save_pretrained(files.llm)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (files.llm / name).write_bytes((plain / name).read_bytes())
    config = transformers.AutoConfig.from_pretrained(files.llm).to_dict()
    quantization = {"_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_quant_storage": "uint8"}
    edit_json(
        files.llm / "config.json",
        quantization_config=config["quantization_config"] | quantization,
        unsloth_fixed=True,
        unsloth_version="2024.9",
        _name_or_path="meta-llama/Llama-3.2-3B-Instruct",
        pad_token_id=3,
    )
    write_whisper(files.whisper)
    states = [f"{LORA}model.layers.0.self_attn.q_proj.base_layer.weight.{name}" for name in ("absmax", "quant_map")]
    write(files, {name: torch.zeros(1) for name in states}, plain_llm=plain)


def with_eat(files: Published) -> None:
    """EAT, as its Hugging Face folder has it, in the place of BEATs."""
    files.audio_encoder = eat.write_folder(files.folder / "eat", eat.published_state())
    write_llm(files.llm)
    write_whisper(files.whisper)
    write(files)


def shard(folder: Path) -> None:
    """The folder's weights in two files and an index, as large models have them."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


def as_bins(folder: Path) -> None:
    """The folder's shards as PyTorch files, as Vicuna is published."""
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    names = {file: f"pytorch_{file.removesuffix('.safetensors')}.bin" for file in set(raw["weight_map"].values())}
    for file, name in names.items():
        torch.save(load_file(folder / file), folder / name)
        (folder / file).unlink()
    raw["weight_map"] = {tensor: names[file] for tensor, file in raw["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(raw))
    index.unlink()


def write_sentencepiece(folder: Path, texts: Sequence[str], add_dummy_prefix: bool = True) -> Path:
    """tokenizer.model as Llama 2's (BPE with bytes, a space in front) and tokenizer_config.json as Vicuna's."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 10),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=add_dummy_prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()

    def token(text: str) -> dict[str, Any]:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": text, **flags}

    raw = {"add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"), "eos_token": token("</s>")}
    raw |= {"unk_token": token("<unk>"), "pad_token": None, "tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}}
    raw |= {"clean_up_tokenization_spaces": False, "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    return folder / "tokenizer.model"


def write(
    files: Published,
    extra: dict[str, torch.Tensor] | None = None,
    options: dict[str, Any] | None = None,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    dtype: torch.dtype = torch.float32,
    plain_llm: Path | None = None,
) -> None:
    """The .pth that was trained on parts like the folder's."""
    torch.manual_seed(5)
    encoder = files.audio_encoder
    state = published.qformer_state(48, published.BEATS if encoder else 0, 64)
    state |= published.duplicate_tables() if encoder and encoder.name == "beats.pt" else {}
    if targets:
        layers = range(read_llm(files.llm)[0]["num_hidden_layers"])
        state |= published.lora_state(LORA, published.llm_targets(plain_llm or files.llm, layers, targets))
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    published.write_salmonn(files.file, state | (extra or {}), options)


def answers_like_pytorch(files: Published, speech: Path, lora_scale: float | None = None) -> None:
    """Exported in full precision, the bundle's greedy tokens are those of the checkpoint in PyTorch."""
    bundle = export_bundle(files.out, files.folder / "bundle", ExportOptions(lora_scale=lora_scale))
    config = GenerationConfig(max_new_tokens=12, min_new_tokens=12, no_repeat_ngram_size=1)
    model = load(files.out)
    if lora_scale is not None:
        for module in model.llm.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] = lora_scale
    result = Engine.load(bundle).generate(speech, prompt="What is heard?", config=config)
    expected = model.generate(speech, prompt="What is heard?", config=config)
    assert result.token_ids == expected
    assert len(set(expected)) == 12


@pytest.mark.parametrize("layout", [vicuna, llama_3b, openai, large_v3, unsloth, with_eat])
def test_a_layout_converts_and_its_bundle_answers_like_pytorch(
    layout: Callable[[Published], None], files: Published, speech: Path
) -> None:
    layout(files)
    conversion = files.convert()
    assert conversion.warnings == ()
    loaded = torch.load(files.file, weights_only=True)
    assert conversion.used + len(conversion.leftovers) == len(loaded["model"]) + 3  # optimizer, scaler, epoch
    answers_like_pytorch(files, speech)


def test_what_is_hashed_of_pytorchs_shards(files: Published) -> None:
    vicuna(files)
    files.convert()
    source = load_config(files.out).sources.llm
    assert source
    shards = {f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)}
    assert source.sha256.keys() == {"config.json", "pytorch_model.bin.index.json", *shards}
    loaded = torch.load(files.llm / min(shards), weights_only=True) | {"x": Trap()}
    torch.save(loaded, files.llm / min(shards))
    with pytest.raises(CheckpointError, match="weights_only=True"):
        read_llm(files.llm)


class Trap:
    """Not a tensor, nor a plain value."""


def test_prompt_halves_are_those_of_the_slow_tokenizer(files: Published) -> None:
    """Llama's own SentencePiece, which upstream's use_fast=False asks, for every prompt of ours."""
    vicuna(files)
    files.convert()
    config, tokenizer = load_config(files.out), Tokenizer(files.out / "tokenizer.json")
    slow = sentencepiece.SentencePieceProcessor(model_file=str(files.llm / "tokenizer.model"))
    assert tokenizer.vocab_size == slow.vocab_size()
    assert (config.prompt.bos_token_id, config.prompt.stop_token_ids) == (slow.bos_id(), (slow.eos_id(),))
    prompts = [prompt for task in TASKS.values() for prompt in task if "{}" not in prompt]
    for prompt in [*prompts, "<Speech><SpeechHere></Speech> Wörter, 漢字 and 12,345 \U0001f600\n\ntwo  spaces"]:
        before, after = prompt_halves(config.prompt, prompt)
        ids = prompt_ids(config.prompt, tokenizer, prompt)
        assert list(ids.before) == [slow.bos_id(), *slow.encode(before)]
        assert list(ids.after) == slow.encode(after)
        assert tokenizer.decode(slow.encode(after)) == after
    # Where they differ, no prompt goes: a piece that begins with a space has one more from the slow tokenizer.
    assert slow.encode(" a") != tokenizer.encode(" a")


def test_without_sentencepiece_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, ["USER: ASSISTANT:"])
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingExtraError, match=r"sentencepiece.*salmonrun\[train\]"), tokenizer_file(tmp_path, 99):
        pass


def test_a_conversion_that_gives_other_tokens_is_refused(tmp_path: Path) -> None:
    """A model that puts no space in front is not as Llama's."""
    write_sentencepiece(tmp_path, ["USER: ASSISTANT:"], add_dummy_prefix=False)
    with (
        pytest.raises(CheckpointError, match="gives other tokens than SentencePiece for 'USER"),
        tokenizer_file(tmp_path, 99),
    ):
        pass


def test_a_tokenizer_model_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model cannot be converted"), tokenizer_file(tmp_path, 99):
        pass


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_another_scale_of_the_adapters(files: Published, speech: Path, scale: float) -> None:
    """SALMONN's lora_scaling: at 0 it is the LLM alone."""
    large_v3(files)
    files.convert()
    answers_like_pytorch(files, speech, scale)
    assert open_bundle(files.folder / "bundle").manifest.provenance.lora_scale == scale


def test_a_scale_needs_adapters(files: Published) -> None:
    write_llm(files.llm)
    write_whisper(files.whisper)
    write(files, targets=())
    files.convert()
    with pytest.raises(ConfigError, match=r"lora_scale is 2\.0, but the checkpoint's LLM has no adapters"):
        export_bundle(files.out, files.folder / "bundle", ExportOptions(lora_scale=2.0))


def write_adapter(files: Published, **settings: Any) -> Path:
    torch.manual_seed(6)
    return published.write_peft(
        files.folder / "adapter", published.llm_targets(files.llm, range(3), ("q_proj", "v_proj")), **settings
    )


@torch.inference_mode()
def logits(llm: Any) -> torch.Tensor:
    return llm(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_adapters_kept_apart(files: Published, speech: Path, rslora: bool) -> None:
    write_llm(files.llm, dtype=torch.float32)
    write_whisper(files.whisper)
    write(files, targets=())
    adapter = write_adapter(files, use_rslora=rslora)
    files.convert(adapter=adapter)
    config = load_config(files.out)
    assert config.lora
    assert (config.lora.r, config.lora.scale) == (4, 4.0 if rslora else 2.0)
    llm = transformers.AutoModelForCausalLM.from_pretrained(files.llm)
    reference = peft.PeftModel.from_pretrained(llm, adapter)
    assert torch.allclose(logits(load(files.out).llm), logits(reference), atol=1e-4)
    answers_like_pytorch(files, speech)


def test_peft_adapters_merged_under_the_files_own(files: Published, speech: Path) -> None:
    write_llm(files.llm, dtype=torch.float32)
    write_whisper(files.whisper)
    write(files)
    adapter = write_adapter(files)
    with pytest.raises(CheckpointError, match=r"has adapters of its own; merge those of .*--merge-adapter"):
        files.convert(adapter=adapter)
    with pytest.raises(ConfigError, match="merge_adapter"):
        files.convert(merge_adapter=True)
    files.convert(adapter=adapter, merge_adapter=True)
    checkpoint = open_checkpoint(files.out)
    llm = transformers.AutoModelForCausalLM.from_pretrained(files.llm)
    merged = peft.PeftModel.from_pretrained(llm, adapter).merge_and_unload().state_dict()
    for name, get in checkpoint.parts["llm"].items():
        assert torch.allclose(get().float(), merged[name], atol=1e-6)
    assert "llm/adapter_model.safetensors" in checkpoint.hashes()
    answers_like_pytorch(files, speech)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 8}, "shape .* at rank 8"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
)
def test_adapters_that_are_more_than_two_matrices_are_refused(
    files: Published, settings: dict[str, Any], message: str
) -> None:
    write_llm(files.llm)
    adapter = write_adapter(files)
    edit_json(adapter / "adapter_config.json", **settings)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(adapter)
