"""Fresh checkpoints around pretrained parts: parts in their published layouts, written by their own libraries."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file

from salmonrun.export.bundle import export_bundle
from salmonrun.runtime import Engine
from salmonrun.runtime.config import GenerationConfig, WindowConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import load
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import Recipe, RunConfig
from salmonrun.training.model.config import LoraConfig, load_config
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.starting.assemble import PromptOptions, assemble, qformer_config
from salmonrun.training.starting.presets import TASKS
from tests.helpers.parts import (
    CHATML,
    HEARD,
    SPECIAL,
    edit_json,
    write_llm,
    write_openai_whisper,
    write_tokenizer,
    write_whisper,
)

# One that puts the beginning symbol in front by itself, as in Llama 3 and Mistral.
WITH_BOS = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] | trim }} [/INST]{% endfor %}"


@dataclass(frozen=True)
class Parts:
    """Where the parts are."""

    whisper: Path
    audio_encoder: Path | None
    llm: Path


@dataclass
class Bench:
    """Parts in a folder of their own, and what is made of them."""

    folder: Path
    parts: Parts

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def edit_json(self, name: str, **changes: Any) -> None:
        edit_json(self.folder / name, **changes)

    def refuses(self, message: str, parts: Parts | None = None, **options: Any) -> None:
        """Assembling fails with `message` and leaves nothing behind."""
        before = set(self.folder.iterdir())
        with pytest.raises((CheckpointError, ConfigError), match=message):
            assemble(self.out, **vars(parts or self.parts), **options)
        assert set(self.folder.iterdir()) == before


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_llm(folder / "llm", layers=2, dtype=torch.float32)
    whisper = write_whisper(folder / "whisper")
    write_openai_whisper(whisper, folder / "whisper.pt")
    return folder


@pytest.fixture
def bench(written: Path, golden: Path, tmp_path: Path) -> Bench:
    folder = tmp_path / "bench"
    shutil.copytree(written, folder)
    return Bench(folder, Parts(folder / "whisper", golden / "beats" / "beats.pt", folder / "llm"))


SMALL = qformer_config(dim=64, layers=1)


def test_the_parts_compute_what_their_libraries_compute(bench: Bench, speech: Path) -> None:
    assembly = assemble(bench.out, **vars(bench.parts), qformer=SMALL, lora=LoraConfig())
    model = load(bench.out)
    assert model.config == replace(assembly.config, sources=model.config.sources)
    assert model.encode(model.load_audio(speech)).shape == (1, 88, 64)
    torch.manual_seed(3)
    with torch.inference_mode():
        mel = torch.randn(1, 80, 3000)
        whisper = transformers.WhisperForConditionalGeneration.from_pretrained(bench.folder / "whisper").eval()
        expected = whisper.model.encoder(mel).last_hidden_state
        torch.testing.assert_close(model.whisper(mel), expected, atol=1e-4, rtol=1e-4)
        ids = torch.randint(512, (1, 20))
        llm = transformers.AutoModelForCausalLM.from_pretrained(bench.folder / "llm").eval()
        torch.testing.assert_close(model.llm(ids).logits, llm(ids).logits)  # new adapters change nothing


def test_frozen_parts_are_referred_to(bench: Bench) -> None:
    assembly = assemble(bench.out, **vars(bench.parts), qformer=SMALL, lora=LoraConfig())
    stored = load_file(bench.out / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"qformer", "lora"}
    assert sum(value.numel() for value in stored.values()) == assembly.new_parameters
    for part in ("whisper", "audio_encoder", "llm"):
        source = getattr(load_config(bench.out).sources, part)
        assert Path(source.path) == getattr(bench.parts, part).resolve()
        assert source.sha256
    with (bench.folder / "llm" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(CheckpointError, match="has changed since"):
        load(bench.out)


def test_copied_parts_need_their_folders_no_more(bench: Bench, speech: Path) -> None:
    assemble(bench.folder / "referring", **vars(bench.parts), qformer=SMALL, lora=LoraConfig(), seed=3)
    audio_embeds = (referring := load(bench.folder / "referring")).encode(referring.load_audio(speech))
    assemble(bench.out, **vars(bench.parts), qformer=SMALL, lora=LoraConfig(), seed=3, copy=True)
    shutil.rmtree(bench.parts.llm)
    shutil.rmtree(bench.parts.whisper)
    copied = load(bench.out)
    assert torch.equal(copied.encode(copied.load_audio(speech)), audio_embeds)
    for (name, one), (_, other) in zip(copied.named_parameters(), referring.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_an_openai_whisper_is_the_same_encoder(bench: Bench, speech: Path) -> None:
    assemble(bench.folder / "folder", **vars(bench.parts), qformer=SMALL)
    assemble(bench.out, **vars(bench.parts) | {"whisper": bench.folder / "whisper.pt"}, qformer=SMALL)
    one, other = load(bench.folder / "folder"), load(bench.out)
    audio = one.load_audio(speech)
    assert torch.equal(one.encode(audio), other.encode(audio))


def test_a_whisper_of_128_mels_without_its_head_and_no_beats(bench: Bench, speech: Path) -> None:
    whisper = write_whisper(bench.folder / "v3", n_mels=128, whole=False)
    assemble(bench.out, whisper=whisper, audio_encoder=None, llm=bench.parts.llm, qformer=SMALL)
    model = load(bench.out)
    assert model.config.audio.n_mels == 128
    assert model.config.audio_encoder is None
    assert model.config.lora is None
    assert model.encode(model.load_audio(speech)).shape == (1, 88, 64)


def test_the_new_weights(bench: Bench) -> None:
    lora = LoraConfig(r=4, alpha=16, targets=("q_proj", "o_proj", "down_proj"))
    window = WindowConfig(25, 12, 2)
    for out, seed in (("one", 1), ("same", 1), ("other", 2)):
        assemble(bench.folder / out, **vars(bench.parts), qformer=qformer_config(128, 3, window), lora=lora, seed=seed)
    one, same, other = (load_file(bench.folder / out / "model.safetensors") for out in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["qformer.proj.weight"], other["qformer.proj.weight"])
    config = load_config(bench.folder / "one")
    assert config.lora == lora
    assert config.qformer == qformer_config(128, 3, window)
    assert (config.qformer.heads, config.qformer.ffn) == (2, 512)
    adapters = {name.removeprefix("lora."): value for name, value in one.items() if name.startswith("lora.")}
    theirs = lora_parameters(transformers_with_adapters(bench.parts.llm, lora))
    assert {name: value.shape for name, value in adapters.items()} == {n: p.shape for n, p in theirs.items()}
    for name, value in adapters.items():
        if name.endswith(".B"):
            assert not value.any()
            assert not theirs[name].any()
        else:
            assert value.abs().max() <= value.shape[1] ** -0.5
            torch.testing.assert_close(value.std(), theirs[name].std(), rtol=0.15, atol=0)


def transformers_with_adapters(llm: Path, lora: LoraConfig) -> torch.nn.Module:
    """What peft itself puts on the LLM."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(llm)
    options = peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    return peft.inject_adapter_in_model(options, model)


@pytest.mark.parametrize(
    ("template", "special"),
    [
        (CHATML, {"bos_token": "<|im_start|>"}),  # SmolLM2: the beginning symbol is the template's first token
        (CHATML, {"bos_token": None}),  # Qwen2: there is none
        (CHATML, {"bos_token": "<|endoftext|>"}),  # there is one that the template does not use
        (WITH_BOS, {"bos_token": "<|endoftext|>"}),
        (WITH_BOS, {"bos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}}),
    ],
)
def test_a_prompt_is_token_for_token_what_transformers_makes(bench: Bench, template: str, special: Any) -> None:
    write_tokenizer(bench.parts.llm, template, **special)
    assembly = assemble(bench.out, **vars(bench.parts), qformer=SMALL)
    assert assembly.template_origin == "the LLM's chat template"
    ids = prompt_ids(assembly.config.prompt, Tokenizer(bench.out / "tokenizer.json"), HEARD)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(bench.parts.llm)
    message = {"role": "user", "content": HEARD.replace("<SpeechHere>", "<|audio|>")}
    expected = theirs.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    audio = SPECIAL.index("<|audio|>")
    assert [*ids.before, audio, *ids.after] == expected


def test_what_ends_an_answer(bench: Bench) -> None:
    bench.edit_json("llm/generation_config.json", eos_token_id=[0, 2])
    prompt = assemble(bench.out, **vars(bench.parts), qformer=SMALL).config.prompt
    assert (prompt.end_symbol, prompt.stop_token_ids) == ("<|im_end|>", (2, 0))
    assert prompt.tasks == TASKS
    options = PromptOptions(end_symbol="<|endoftext|>")
    prompt = assemble(bench.folder / "other", **vars(bench.parts), qformer=SMALL, prompt=options).config.prompt
    assert (prompt.end_symbol, prompt.stop_token_ids) == ("<|endoftext|>", (0, 2))


@pytest.mark.parametrize(
    ("template", "origin"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('an image is needed') }}", "fails on a plain message: an image is needed"),
        ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "makes 'user' of the message"),
    ],
)
def test_salmonns_template_where_the_llms_does_not_serve(bench: Bench, template: str | None, origin: str) -> None:
    write_tokenizer(bench.parts.llm, template, bos_token="<|endoftext|>")
    assembly = assemble(bench.out, **vars(bench.parts), qformer=SMALL)
    assert origin in assembly.template_origin
    prompt = assembly.config.prompt
    assert (prompt.template, prompt.bos_token_id) == ("USER: {}\nASSISTANT:", 0)


@pytest.mark.parametrize(("template", "bos"), [("Q: {} A:", 1), ("<|im_start|>user\n{}", None), ("<|endoftext|>{}", 1)])
def test_a_template_that_is_given(bench: Bench, template: str, bos: int | None) -> None:
    assembly = assemble(bench.out, **vars(bench.parts), qformer=SMALL, prompt=PromptOptions(template=template))
    assert (assembly.config.prompt.template, assembly.config.prompt.bos_token_id) == (template, bos)


def write_annotation(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(12000), 16000)
    entries = [{"path": f"{name}.wav", "text": f"say {name}", "task": "asr"} for name in ("a", "b")]
    (folder / "annotation.json").write_text(json.dumps({"annotation": entries}))
    return folder / "annotation.json"


def train_a_step(bench: Bench) -> Path:
    run = RunConfig(str(bench.folder / "run"), steps=1, batch_size=2, lr=1e-2, warmup_steps=1)
    return finetune(Recipe(str(bench.out), DataConfig((DataSet(str(write_annotation(bench.folder))),)), run))


def test_it_trains_exports_and_answers_the_same(bench: Bench, speech: Path) -> None:
    """The Q-Former and the adapters learn, the parts do not; the parity gate passes; tokens are PyTorch's."""
    assemble(bench.out, **vars(bench.parts), qformer=SMALL, lora=LoraConfig(), audio_window="trimmed")
    final = train_a_step(bench)
    before, after = load_file(bench.out / "model.safetensors"), load_file(final / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "qformer.proj.weight" in changed
    assert {name for name in after if name.endswith(".B")} <= changed
    bundle = export_bundle(final, bench.folder / "bundle")
    config = GenerationConfig(max_new_tokens=12)
    expected = load(final).generate(speech, task="asr", config=config)
    assert len(set(expected)) > 3
    assert Engine.load(bundle).generate(speech, task="asr", config=config).token_ids == expected


def test_a_qwen2_trains(bench: Bench) -> None:
    shutil.rmtree(bench.parts.llm)
    write_llm(bench.parts.llm, layers=2, kind="qwen2", dtype=torch.float32)
    assemble(bench.out, **vars(bench.parts), qformer=SMALL, lora=LoraConfig(), audio_window="trimmed")
    final = train_a_step(bench)
    name = "lora.model.layers.1.self_attn.q_proj.B"
    assert load_file(final / "model.safetensors")[name].any()


def test_parts_of_the_wrong_kind_are_named(bench: Bench, golden: Path) -> None:
    llm, whisper, beats = bench.parts.llm, bench.parts.whisper, golden / "beats" / "beats.pt"
    bench.refuses(r"llm/config\.json has model_type 'llama'; expected 'whisper'", Parts(llm, beats, llm))
    bench.refuses(r"whisper/config\.json has model_type 'whisper'; expected an LLM's", Parts(whisper, beats, whisper))
    bench.refuses(r"whisper is no audio encoder that is known; expected BEATs or EAT", Parts(whisper, whisper, llm))
    bench.refuses(
        r"whisper\.pt has no 'model'; expected a published audio encoder",
        Parts(whisper, bench.folder / "whisper.pt", llm),
    )
    bench.refuses(r"beats\.pt has no 'dims'", Parts(beats, beats, llm))
    bench.refuses(r"beats\.pt is a file; expected the LLM's transformers folder", Parts(whisper, beats, beats))
    for part in ("whisper", "audio_encoder", "llm"):
        bench.refuses(r"gone does not exist", replace(bench.parts, **{part: bench.folder / "gone"}))


def test_sizes_that_make_no_model_are_named(bench: Bench) -> None:
    bench.edit_json("whisper/config.json", encoder_attention_heads=5)
    bench.refuses(r"whisper: d_model 48 is not a multiple of heads 5")
    bench.edit_json("whisper/config.json", encoder_attention_heads=3, encoder_layers=1)
    bench.refuses(r"whisper: .*not known \(layers\.1\.")
    bench.edit_json("whisper/config.json", encoder_layers=2)
    bench.edit_json("llm/config.json", intermediate_size=100)
    bench.refuses(r"llm: .*mlp\.\w+\.weight has shape")
    bench.edit_json("llm/config.json", intermediate_size=96, hidden_size=63)
    bench.refuses(r"(llm|transformers cannot build)")


def test_options_that_make_no_model_are_named(bench: Bench) -> None:
    for dim in (0, 100):
        with pytest.raises(ConfigError, match=f"dim is {dim}; expected a multiple of 64"):
            qformer_config(dim)
    with pytest.raises(ConfigError, match="layers are 0"):
        qformer_config(layers=0)
    with pytest.raises(ConfigError, match="rank r is 0; expected at least 1, or no adapters"):
        LoraConfig(r=0)
    bench.refuses(r"targets has 'no_proj'; linear layers here are down_proj", lora=LoraConfig(targets=("no_proj",)))
    bench.refuses("must contain {} exactly once", prompt=PromptOptions(template="no place"))
    bench.refuses("end symbol '</s>' is no token", prompt=PromptOptions(end_symbol="</s>"))
    bench.refuses("window of 2000 frames does not fit", qformer=qformer_config(window=WindowConfig(2000)))


def test_files_about_tokens_that_do_not_fit_are_named(bench: Bench) -> None:
    bench.edit_json("llm/tokenizer_config.json", eos_token="</s>")
    bench.refuses(r"tokenizer_config\.json: eos_token '</s>' is no token of tokenizer\.json")
    bench.edit_json("llm/tokenizer_config.json", eos_token=None)
    bench.refuses(r"names no eos_token; .*--end-symbol")
    bench.edit_json("llm/tokenizer_config.json", eos_token=5)
    bench.refuses(r"llm: transformers cannot read tokenizer_config\.json.*--template")
    bench.edit_json("llm/config.json", vocab_size=300)
    bench.refuses(r"tokenizer\.json has \d+ tokens, the LLM 300")
    (bench.parts.llm / "tokenizer.json").unlink()
    bench.refuses(r"tokenizer\.json does not exist.*save_pretrained")


def test_an_existing_folder_is_refused(bench: Bench) -> None:
    bench.out.mkdir()
    bench.refuses("out exists; choose another name")


def arguments(bench: Bench, *more: str) -> list[str]:
    beats = ["--audio-encoder", str(bench.parts.audio_encoder)]
    return ["init", str(bench.out), "--whisper", f"{bench.parts.whisper}", *beats, "--llm", f"{bench.parts.llm}", *more]


def test_the_command_with_defaults_is_the_published_shape(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(bench)) == 0
    config = load_config(bench.out)
    assert config.qformer == qformer_config() == type(config.qformer)()
    assert config.qformer.window == WindowConfig(17, 17, 1)
    assert config.lora == LoraConfig(r=8, alpha=32.0, targets=("q_proj", "v_proj"))
    assert config.audio.window == "padded"
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in (
        f"{bench.out}: Whisper (2 layers of 48)",
        "LLM llm (llama",
        "88 embeddings",
        "'<|im_end|>'",
        "tokens 2",
    ):
        assert words in printed.out


def test_the_command_with_everything(bench: Bench) -> None:
    prompts = bench.folder / "prompts.json"
    prompts.write_text(json.dumps({"asr": HEARD}))
    options = "--queries 2 --window-frames 0.5s --stride 12 --qformer-dim 128 --qformer-layers 1 --lora-r 4 "
    options += "--lora-alpha 8 --lora-targets q_proj,o_proj --audio-window trimmed --max-s 10.24 "
    options += "--end-symbol <|endoftext|> --seed 5"
    more = ["--template", "Q: {}", "--prompts", str(prompts), "--copy"]
    assert main(arguments(bench, *options.split(), *more)) == 0
    config = load_config(bench.out)
    assert config.qformer == qformer_config(128, 1, WindowConfig(25, 12, 2))
    assert config.lora == LoraConfig(r=4, alpha=8.0, targets=("q_proj", "o_proj"))
    assert (config.audio.window, config.audio.max_s) == ("trimmed", 10.24)
    assert config.sources == type(config.sources)()
    prompt = config.prompt
    assert (prompt.template, prompt.tasks, prompt.end_symbol) == ("Q: {}", {"asr": (HEARD,)}, "<|endoftext|>")


def test_the_command_without_beats_and_adapters(bench: Bench) -> None:
    bench.parts = replace(bench.parts, audio_encoder=None)
    wanted = [word if word != "None" else "none" for word in arguments(bench, "--no-lora", "--window-frames", "25")]
    assert main(wanted) == 0
    config = load_config(bench.out)
    assert config.audio_encoder is None
    assert config.lora is None
    assert config.qformer.window == WindowConfig(25, 25)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--preset", "tiny"], "--preset is for random weights"),
        (["--no-lora", "--lora-r", "4"], "--no-lora and --lora-r contradict"),
        (["--stride", "0"], "expected 1 to"),
    ],
)
def test_options_that_contradict_are_refused(
    bench: Bench, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(bench, *more)) == 1
    assert message in capsys.readouterr().err
    assert not bench.out.exists()


def test_a_part_that_is_left_out_is_asked_for(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(bench.out), "--whisper", "w", "--llm", "l"]) == 1
    assert "--audio-encoder is missing; give a .pt, a folder or none" in capsys.readouterr().err


def test_a_window_that_is_no_length(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments(bench, "--window-frames", "short"))
    assert "'short' is neither frames (17) nor seconds (0.33s)" in capsys.readouterr().err
