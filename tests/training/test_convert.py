"""Published .pth files become checkpoints, and what does not fit is named."""

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training import load
from salmonrun.training.inspection.inspect import inspect_path
from salmonrun.training.model.config import LoraConfig, load_config
from salmonrun.training.starting.convert import format_conversion
from salmonrun.training.starting.presets import TASKS
from tests.helpers.published import Edit, Published

BERT = "speech_Qformer.bert.encoder.layer.0."
LORA = "llama_model.base_model.model.model.layers.0.self_attn."


def test_every_key_is_accounted_for(published: Published, golden: Path) -> None:
    conversion = published.convert()
    loaded = torch.load(published.file, weights_only=True)
    expected = json.loads((golden / "salmonn" / "expected.json").read_text())
    beside = {"optimizer", "scaler", "epoch"}
    assert set(conversion.leftovers) == set(expected["leftovers"]) | beside
    assert conversion.used + len(conversion.leftovers) == len(loaded["model"]) + len(beside)
    assert conversion.warnings == ()
    stored = load_file(published.out / "model.safetensors")
    assert len(stored) == conversion.used
    assert {name.split(".")[0] for name in stored} == {"qformer", "lora"}
    text = format_conversion(conversion)
    assert f"{conversion.used} tensors used" in text
    for name in expected["leftovers"]:
        assert name in text


def test_what_the_config_says(published: Published) -> None:
    published.convert()
    config = load_config(published.out)
    assert config.name == "llm"
    assert config.lora == LoraConfig(r=8, alpha=32.0, dropout=0.1, targets=("q_proj", "v_proj"))
    assert (config.qformer.dim, config.qformer.heads, config.qformer.layers, config.qformer.ffn) == (128, 2, 2, 256)
    assert config.qformer.window == WindowConfig(17, 17, 1)
    assert config.prompt.template == "USER: {}\nASSISTANT:"
    assert config.prompt.tasks == TASKS
    assert config.prompt.bos_token_id == 512
    assert config.prompt.stop_token_ids == (513, 517, 518)  # end_sym first, then the LLM's own
    assert config.prompt.end_symbol == "<|end_of_text|>"
    assert config.audio.window == "padded"
    for source in (config.sources.whisper, config.sources.audio_encoder, config.sources.llm):
        assert source is not None
        assert Path(source.path).is_absolute()
    tokenizer = (published.llm / "tokenizer.json").read_bytes()
    assert (published.out / "tokenizer.json").read_bytes() == tokenizer


def test_leftovers_that_only_some_files_have(published: Published) -> None:
    leftovers = {
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "llama_model.base_model.model.model.rotary_emb.inv_freq": torch.zeros(8),
    }
    published.edit_model(lambda model: model.update(leftovers))
    published.edit_model(lambda model: model.pop("llama_model.base_model.model.lm_head.weight"))
    conversion = published.convert()
    assert set(leftovers) < set(conversion.leftovers)
    assert "llama_model.base_model.model.lm_head.weight" not in conversion.leftovers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"speech_adapter.weight": torch.zeros(2)}), r"not known: speech_adapter\.weight"),
        (lambda m: m.update({f"{BERT}intermediate.dense.weight": torch.zeros(2)}), r"not known: .*intermediate\.dense"),
        (lambda m: m.update({f"{LORA}q_proj.lora_A.other.weight": torch.zeros(2)}), r"not known: .*lora_A\.other"),
        (lambda m: m.update({f"{LORA}k_proj.lora_A.default.weight": torch.zeros(8, 64)}), r"missing .*k_proj\.B"),
        (lambda m: m.pop("ln_speech.bias"), r"missing \['qformer\.ln_speech\.bias'\]"),
        (lambda m: m.pop("speech_llama_proj.weight"), r"missing \['qformer\.proj\.weight'\]"),
        (lambda m: m.pop(f"{BERT}crossattention.self.key.bias"), r"missing .*layers\.0\.cross_attn\.key\.bias"),
        (lambda m: m.pop(f"{LORA}v_proj.lora_B.default.weight"), r"missing .*v_proj\.B"),
        (lambda m: m.pop("speech_query_tokens"), r"no query_tokens"),
        (lambda m: m.update({"ln_speech.bias": torch.zeros(63)}), r"ln_speech\.bias has shape \[63\], expected \[64\]"),
        (
            lambda m: m.update({f"{BERT}attention.output.dense.weight": torch.zeros(128, 127)}),
            r"layers\.0\.self_attn\.out\.weight has shape \[128, 127\], expected \[128, 128\]",
        ),
        (
            lambda m: m.update({"ln_speech.bias": torch.zeros(64, dtype=torch.int64)}),
            r"ln_speech\.bias has dtype torch\.int64",
        ),
        (
            lambda m: m.update({f"{LORA}q_proj.lora_B.default.weight": torch.zeros(64, 8, dtype=torch.uint8)}),
            r"q_proj\.B has dtype torch\.uint8",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(published: Published, change: Edit, message: str) -> None:
    published.edit_model(change)
    published.refuses(message)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('arbitrary code ran')",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_arbitrary_code_is_refused(published: Published, zipped: bool) -> None:
    loaded = torch.load(published.file, weights_only=True)
    torch.save(loaded | {"optimizer": Trap()}, published.file, _use_new_zipfile_serialization=zipped)
    published.refuses(r"salmonn\.pth .*weights_only=True.*arbitrary code")


def test_code_that_a_folder_brings_never_runs(published: Published, tmp_path: Path) -> None:
    """What `trust_remote_code` would import is not, wherever the folder says that it should."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\nimport transformers\nclass X(transformers.PreTrainedModel): pass\n"
    maps = {"AutoConfig": "code.X", "AutoModel": "code.X", "AutoModelForCausalLM": "code.X"}
    tokenizers = {"AutoTokenizer": ["code.X", "code.X"]}
    for folder in (published.llm, published.whisper):
        (folder / "code.py").write_text(code)
        for name, auto_map in (("config.json", maps), ("tokenizer_config.json", tokenizers)):
            if (folder / name).is_file():
                config = json.loads((folder / name).read_text())
                (folder / name).write_text(json.dumps(config | {"auto_map": auto_map}))
        inspect_path(folder)
    with suppress(CheckpointError):  # it may as well be refused
        published.convert()
    assert not mark.exists()
    exec((published.llm / "code.py").read_text(), {})  # it would have left one
    assert mark.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_is_refused(published: Published) -> None:
    (published.file).write_bytes(pickle.dumps({"model": Trap()}))
    published.refuses(r"salmonn\.pth .*weights_only=True")


def test_a_legacy_file_is_read(published: Published) -> None:
    """What torch wrote before 1.6 cannot be memory-mapped."""
    expected = published.convert()
    shutil.rmtree(published.out)
    loaded = torch.load(published.file, weights_only=True)
    torch.save(loaded, published.file, _use_new_zipfile_serialization=False)
    assert published.convert() == expected


@pytest.mark.parametrize("content", [b"", b"not a file of PyTorch", b"PK\x03\x04 cut"])
def test_a_file_that_is_not_pytorchs_is_refused(published: Published, content: bytes) -> None:
    (published.file).write_bytes(content)
    published.refuses(r"salmonn\.pth")


@pytest.mark.parametrize(
    ("value", "message"), [([1, 2], "holds a list"), ({"state": {}}, "no 'model'"), ({"model": 3}, "no 'model'")]
)
def test_a_file_of_something_else_is_refused(published: Published, value: Any, message: str) -> None:
    torch.save(value, published.file)
    published.refuses(message)


def test_a_missing_file_is_named(published: Published) -> None:
    (published.file).unlink()
    published.refuses(r"salmonn\.pth does not exist")


def test_a_missing_tokenizer_is_named(published: Published) -> None:
    (published.llm / "tokenizer.json").unlink()
    published.refuses(r"tokenizer\.json does not exist.*save_pretrained")


def test_an_llm_of_another_width_is_refused(published: Published) -> None:
    published.edit_json("llm/config.json", lambda raw: raw.update(hidden_size=96))
    published.refuses(r"(proj\.weight|q_proj\.A).* expected")


def test_an_llm_of_fewer_layers_is_refused(published: Published) -> None:
    published.edit_json("llm/config.json", lambda raw: raw.update(num_hidden_layers=2))
    published.refuses(r"superfluous .*layers\.2\.self_attn")


def test_an_untied_llm_refuses_a_stored_output_layer(published: Published) -> None:
    published.edit_json("llm/config.json", lambda raw: raw.update(tie_word_embeddings=False))
    published.refuses(r"lm_head\.weight is in the file.*not tied")


def test_a_quantized_llm_is_refused(published: Published) -> None:
    published.edit_json("llm/config.json", lambda raw: raw.update(quantization_config={"bits": 4}))
    published.refuses("llm is quantized")


def resize_whisper(published: Published, d_model: int, n_mels: int) -> None:
    """A folder of zeros in other sizes: a conversion looks at shapes alone."""
    tensors = load_file(published.whisper / "model.safetensors")
    tensors["model.encoder.conv1.weight"] = torch.zeros(d_model, n_mels, 3)
    save_file(tensors, published.whisper / "model.safetensors")
    published.edit_json("whisper/config.json", lambda raw: raw.update(d_model=d_model, num_mel_bins=n_mels))


def test_a_whisper_of_128_mels_is_fine(published: Published, speech: Path) -> None:
    resize_whisper(published, 64, 128)
    published.convert()
    config = load_config(published.out)
    assert config.whisper.n_mels == config.audio.n_mels == 128
    model = load(published.out)
    assert model.encode(model.load_audio(speech)).shape == (1, 88, 64)


def test_a_whisper_of_another_width_is_named(published: Published) -> None:
    resize_whisper(published, 96, 80)
    published.refuses(r"(ln_speech\.(weight|bias) has shape \[64\], expected \[96\]|cross_attn\.key)")


def test_a_missing_beats_is_named(published: Published) -> None:
    published.audio_encoder = None
    published.refuses(r"superfluous \['qformer\.ln_audio\.bias', 'qformer\.ln_audio\.weight'\]")


def without_beats(model: dict[str, Any]) -> None:
    """What a model trained without BEATs has: keys and values of Whisper's width alone."""
    for name in [name for name in model if name.startswith(("beats.", "ln_audio."))]:
        del model[name]
    for name in model:
        if ".crossattention.self.key.weight" in name or ".crossattention.self.value.weight" in name:
            model[name] = model[name][:, :64].clone()


def test_a_model_without_beats(published: Published, speech: Path) -> None:
    published.edit_model(without_beats)
    published.refuses(r"missing \['qformer\.ln_audio")  # with a BEATs file it does not fit
    published.audio_encoder = None
    conversion = published.convert()
    assert not any(name.startswith("beats.") for name in conversion.leftovers)
    config = load_config(published.out)
    assert config.audio_encoder is None
    assert config.sources.audio_encoder is None
    model = load(published.out)
    assert model.encode(model.load_audio(speech)).shape == (1, 88, 64)


def test_a_model_without_adapters(published: Published) -> None:
    def remove(model: dict[str, Any]) -> None:
        for name in [name for name in model if ".lora_" in name]:
            del model[name]

    published.edit_model(remove)
    published.convert()
    assert load_config(published.out).lora is None
    assert not any(name.startswith("lora.") for name in load_file(published.out / "model.safetensors"))
    load(published.out)


def test_adapters_of_another_rank_and_alpha(published: Published) -> None:
    def shrink(loaded: dict[str, Any]) -> None:
        for name, value in loaded["model"].items():
            if ".lora_A." in name:
                loaded["model"][name] = value[:4].clone()
            if ".lora_B." in name:
                loaded["model"][name] = value[:, :4].clone()
        loaded["config"]["model"]["lora_alpha"] = 48

    published.edit(shrink)
    published.convert()
    lora = load_config(published.out).lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.scale) == (4, 48.0, 12.0)


@pytest.mark.parametrize(
    ("window", "stride", "expected"),
    [
        (0.333333, 0.333333, WindowConfig(17, 17)),
        (0.5, 0.25, WindowConfig(25, 12)),  # 12.5 rounds to even, as in the published code
        (0.2, 0.4, WindowConfig(10, 20)),
        (1, 1, WindowConfig(50, 50)),
    ],
)
def test_the_window_of_the_config(published: Published, window: float, stride: float, expected: WindowConfig) -> None:
    options = {"second_per_window": window, "second_stride": stride}
    published.edit(lambda loaded: loaded["config"]["model"].update(options))
    published.convert()
    assert load_config(published.out).qformer.window == expected


def test_defaults_where_the_file_says_nothing(published: Published) -> None:
    published.edit(lambda loaded: loaded.pop("config"))
    published.convert(end_symbol="<|end_of_text|>")
    config = load_config(published.out)
    assert config.qformer.window == WindowConfig(17, 17)
    assert config.lora == LoraConfig(r=8, alpha=32.0, dropout=0.1, targets=("q_proj", "v_proj"))
    assert config.prompt.template == "USER: {}\nASSISTANT:"


def test_two_queries(published: Published, speech: Path) -> None:
    published.edit_model(lambda m: m.update(speech_query_tokens=m["speech_query_tokens"].repeat(1, 2, 1)))
    published.convert()
    assert load_config(published.out).qformer.window.num_queries == 2
    model = load(published.out)
    assert model.encode(model.load_audio(speech)).shape == (1, 2 * 88, 64)


def test_a_whole_utterance_qformer_is_refused(published: Published) -> None:
    published.edit(lambda loaded: loaded["config"]["model"].update(window_level_Qformer=False))
    published.refuses("window_level_Qformer=False")


def test_half_precision_files_are_read(published: Published) -> None:
    def halve(model: dict[str, Any]) -> None:
        model.update({name: value.half() for name, value in model.items() if value.is_floating_point()})

    published.edit_model(halve)
    published.convert()
    stored = load_file(published.out / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}


def test_an_existing_folder_is_refused(published: Published) -> None:
    published.out.mkdir()
    published.refuses("out exists")
