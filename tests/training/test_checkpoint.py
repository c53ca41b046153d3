"""Checkpoint folders: what is written is read back, and nothing that does not fit is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training import ModelConfig, load
from salmonrun.training.checkpoint import open_checkpoint, save
from salmonrun.training.model.config import LoraConfig, PartSource, Sources, load_config, save_config
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.starting.conversion_checks import expected_shapes
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import PRESETS, preset

PUBLISHED = ("salmonn-7b", "salmonn-13b", "nota-3b", "v3-turbo-llama-1b")
TINY = preset("tiny")


def with_lora(config: ModelConfig) -> ModelConfig:
    return replace(config, lora=LoraConfig(r=4, alpha=12.0, targets=("q_proj", "v_proj", "down_proj")))


def state(folder: Path) -> dict[str, Tensor]:
    return dict(load(folder).state_dict())


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def copy_of(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def edit_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors; in a name, __ stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, edit: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    edit(raw)
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        with_lora(TINY),
        replace(TINY, audio_encoder=None),
        replace(TINY, llm=TINY.llm | {"tie_word_embeddings": False}),
        replace(TINY, qformer=replace(TINY.qformer, window=WindowConfig(12, 8, num_queries=2))),
    ],
    ids=["tiny", "lora", "no beats", "untied", "two queries"],
)
def test_init_load_save_load(tmp_path: Path, config: ModelConfig) -> None:
    init_checkpoint(config, tmp_path / "first", seed=3)
    model = load(tmp_path / "first")
    assert model.config == config
    assert not model.training
    save(model, tmp_path / "second", tmp_path / "first" / "tokenizer.json")
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert_equal(dict(model.state_dict()), state(tmp_path / "second"))
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_seeds(tmp_path: Path, tiny_checkpoint: Path) -> None:
    init_checkpoint(TINY, tmp_path / "same", seed=0)
    init_checkpoint(TINY, tmp_path / "other", seed=1)
    assert_equal(state(tmp_path / "same"), state(tiny_checkpoint))
    assert not torch.equal(load(tmp_path / "other").qformer.query_tokens, load(tmp_path / "same").qformer.query_tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_may_be_stored_in_16_bits(tmp_path: Path, tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    init_checkpoint(TINY, tmp_path / "half", dtype=dtype)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    rounded = {name: value.to(dtype).float() for name, value in state(tiny_checkpoint).items()}
    assert_equal(state(tmp_path / "half"), rounded)


def test_adapters_round_trip_and_are_not_merged(tmp_path: Path) -> None:
    init_checkpoint(with_lora(TINY), tmp_path / "lora")
    stored = load_file(tmp_path / "lora" / "model.safetensors")
    model = load(tmp_path / "lora")
    adapters = lora_parameters(model.llm)
    assert {name.rsplit(".", 2)[-2] for name in adapters} == {"q_proj", "v_proj", "down_proj"}
    assert {f"lora.{name}" for name in adapters} == {name for name in stored if name.startswith("lora.")}
    for name, value in adapters.items():
        assert torch.equal(value, stored[f"lora.{name}"])
        assert value.any(), f"{name} is zero: it would hide a wrong scale"
    base = stored["llm.model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(model.llm.get_parameter("model.layers.0.self_attn.q_proj.weight"), base)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qformer.proj.bias", None, r"missing.*proj\.bias"),
        ("whisper.layers.1.fc2.weight", None, r"missing.*layers\.1\.fc2\.weight"),
        ("beats.encoder.relative_attention_bias.weight", None, r"missing.*relative_attention_bias"),
        ("llm.model.norm.weight", None, r"missing.*model\.norm\.weight"),
        ("qformer.proj.scale", torch.zeros(1), r"not known.*proj\.scale"),
        ("llm.model.layers.2.mlp.up_proj.weight", torch.zeros(1), r"not known.*layers\.2\.mlp\.up_proj"),
        ("lora.model.layers.0.self_attn.q_proj.A", torch.zeros(1), r"not known.*q_proj\.A"),
        ("vision.weight", torch.zeros(1), r"has tensors of \['vision'\]; its config knows"),
        ("qformer.proj.bias", torch.zeros(63), r"proj\.bias has shape \[63\], expected \[64\]"),
        ("llm.model.norm.weight", torch.zeros(1, 64), r"model\.norm\.weight has shape \[1, 64\], expected \[64\]"),
        ("qformer.proj.bias", torch.zeros(64, dtype=torch.int32), r"proj\.bias has dtype torch\.int32"),
        ("whisper.conv1.bias", torch.zeros(64, dtype=torch.int8), r"conv1\.bias has dtype torch\.int8"),
        ("llm.lm_head.weight", torch.ones(258, 64), r"lm_head\.weight is stored, tied .* differs"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, tiny_checkpoint: Path, name: str, value: Tensor | None, message: str
) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    edit_tensors(folder, **{name.replace(".", "__"): value})
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_a_tied_output_layer_may_be_stored(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    table = load_file(folder / "model.safetensors")["llm.model.embed_tokens.weight"]
    edit_tensors(folder, llm__lm_head__weight=table.clone())
    assert_equal(state(folder), state(tiny_checkpoint))


def test_beats_tensors_without_a_beats_config_are_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    edit_config(folder, lambda raw: raw.update(audio_encoder=None))
    with pytest.raises(CheckpointError, match="beats"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw.update(colour="blue"), r"unknown key 'colour'"),
        (lambda raw: raw["whisper"].update(dropout=0.1), r"whisper: unknown key 'dropout'"),
        (lambda raw: raw["qformer"]["window"].update(hop=3), r"qformer\.window: unknown key 'hop'"),
        (lambda raw: raw["whisper"].pop("heads"), r"whisper: key 'heads' is missing"),
        (lambda raw: raw["qformer"].update(layers="two"), r"qformer\.layers: expected int"),
        (lambda raw: raw["whisper"].update(heads=3), r"whisper: d_model 64 is not a multiple of heads 3"),
        (lambda raw: raw["audio"].update(n_mels=128), r"audio\.n_mels 128 and whisper\.n_mels 80 differ"),
        (lambda raw: raw.update(format_version=99), r"format_version 99 is newer"),
        (lambda raw: raw["llm"].pop("hidden_size"), r"llm has no 'hidden_size'"),
    ],
)
def test_a_config_that_is_wrong_is_refused(tmp_path: Path, tiny_checkpoint: Path, edit: Any, message: str) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    edit_config(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("model.safetensors", "not tensors")])
def test_a_broken_file_is_named(tmp_path: Path, tiny_checkpoint: Path, name: str, content: str) -> None:
    folder = copy_of(tiny_checkpoint, tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        load(folder)


@pytest.fixture
def with_sources(tmp_path: Path, golden: Path, golden_checkpoint: Path) -> Path:
    """The golden checkpoint beside its own copies of the frozen parts, referred to by relative paths."""
    parts = {"whisper": golden / "salmonn" / "whisper", "llm": golden / "salmonn" / "llm"}
    for name, source in parts.items():
        shutil.copytree(source, tmp_path / "here" / "parts" / name)
    shutil.copyfile(golden / "beats" / "beats.pt", tmp_path / "here" / "parts" / "beats.pt")
    folder = Path(shutil.copytree(golden_checkpoint, tmp_path / "here" / "models" / "checkpoint"))
    config = load_config(folder)
    paths = {"whisper": "../../parts/whisper", "audio_encoder": "../../parts/beats.pt", "llm": "../../parts/llm"}
    sources = {part: replace(getattr(config.sources, part), path=path) for part, path in paths.items()}
    save_config(replace(config, sources=Sources(**sources)), folder)
    return folder


def test_relative_and_absolute_sources(with_sources: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    absolute = load_config(golden_checkpoint).sources
    for source in (absolute.whisper, absolute.audio_encoder, absolute.llm):
        assert source is not None
        assert Path(source.path).is_absolute()
        assert source.sha256
    assert_equal(state(with_sources), state(golden_checkpoint))
    (tmp_path / "here").rename(tmp_path / "there")
    assert_equal(state(tmp_path / "there" / "models" / "checkpoint"), state(golden_checkpoint))


@pytest.mark.parametrize("file", ["beats.pt", "whisper/model.safetensors", "whisper/config.json", "llm/config.json"])
def test_a_changed_source_file_is_refused(with_sources: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / "here" / "parts" / file
    with path.open("ab") as stream:
        stream.write(b" ")  # harmless to JSON and to safetensors' reader alike, but not what was hashed
    with pytest.raises(CheckpointError, match=rf"{Path(file).name} has changed"):
        open_checkpoint(with_sources)


def test_a_missing_source_is_refused(with_sources: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "parts" / "whisper" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"whisper/model\.safetensors does not exist"):
        open_checkpoint(with_sources)
    shutil.rmtree(tmp_path / "here" / "parts" / "whisper")
    with pytest.raises(CheckpointError, match=r"whisper does not exist"):
        open_checkpoint(with_sources)


def test_a_source_of_other_dimensions_is_refused(with_sources: Path) -> None:
    edit_config(with_sources, lambda raw: raw["whisper"].update(layers=1))
    with pytest.raises(CheckpointError, match="whisper does not match"):
        open_checkpoint(with_sources)


def test_a_part_both_stored_and_referred_to_is_refused(with_sources: Path) -> None:
    edit_tensors(with_sources, whisper__conv1__bias=torch.zeros(64))
    with pytest.raises(CheckpointError, match="whisper is both stored and referred to"):
        open_checkpoint(with_sources)


def test_saving_keeps_sources_as_references(with_sources: Path) -> None:
    model = load(with_sources)
    second = with_sources.parent / "second"
    save(model, second, with_sources / "tokenizer.json")
    stored = load_file(second / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"qformer", "lora"}
    assert_equal(state(second), dict(model.state_dict()))


def test_relative_sources_are_found_from_another_folder(with_sources: Path, tmp_path: Path) -> None:
    model = load(with_sources)
    elsewhere = tmp_path / "elsewhere" / "deep" / "second"
    save(model, elsewhere, with_sources / "tokenizer.json")
    assert_equal(state(elsewhere), dict(model.state_dict()))


def test_hashes_name_every_file(with_sources: Path) -> None:
    hashes = open_checkpoint(with_sources).hashes()
    assert set(hashes) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "whisper/config.json",
        "whisper/model.safetensors",
        "audio_encoder/beats.pt",
        "llm/config.json",
        "llm/model.safetensors",
    }


def test_an_existing_folder_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out exists"):
        init_checkpoint(TINY, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    model = load(tiny_checkpoint)
    monkeypatch.setattr("salmonrun.training.tensors.save_file", fail)
    with pytest.raises(type(error)):
        save(model, tmp_path / "deep" / "out", tiny_checkpoint / "tokenizer.json")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_missing_tokenizer_leaves_nothing_behind(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save(load(tiny_checkpoint), tmp_path / "out", tmp_path / "none.json")
    assert list(tmp_path.iterdir()) == []


def test_random_weights_do_not_touch_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    init_checkpoint(TINY, tmp_path / "out", seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match=r"'huge'.*tiny"):
        preset("huge")


def test_sharded_source_files_are_read(with_sources: Path, tmp_path: Path) -> None:
    """LLM folders of several shards have an index."""
    llm = tmp_path / "here" / "parts" / "llm"
    expected = state(with_sources)
    tensors = load_file(llm / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, llm / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (llm / "model.safetensors").unlink()
    (llm / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = load_config(with_sources)
    source = PartSource(str(llm), {})
    save_config(replace(config, sources=replace(config.sources, llm=source)), with_sources)
    assert_equal(state(with_sources), expected)


def test_a_broken_shard_index_is_named(with_sources: Path, tmp_path: Path) -> None:
    index = tmp_path / "here" / "parts" / "llm" / "model.safetensors.index.json"
    for content in ("{", "{}"):
        index.write_text(content)
        with pytest.raises(CheckpointError, match=index.name):
            load(with_sources)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = preset(name)
    assert config.name == name
    shapes = expected_shapes(config)
    assert shapes["qformer.proj.weight"] == (config.llm["hidden_size"], config.qformer.dim)
    assert any(part.startswith("lora.") for part in shapes) == (config.lora is not None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name: str) -> None:
    config = preset(name)
    shapes = expected_shapes(config)
    for i in range(2):
        assert shapes[f"qformer.layers.{i}.cross_attn.key.weight"] == (768, 1280 + 768)
        assert shapes[f"qformer.layers.{i}.self_attn.key.weight"] == (768, 768)
        assert shapes[f"qformer.layers.{i}.fc1.weight"] == (3072, 768)
    assert "qformer.layers.2.norm.weight" not in shapes
    assert shapes["qformer.query_tokens"] == (1, 768)
    assert shapes["qformer.ln_speech.weight"] == (1280,)
    assert shapes["qformer.ln_audio.weight"] == (768,)
    assert config.qformer.window.count(1500) == 88
    assert config.lora == LoraConfig(r=8, alpha=32.0, dropout=0.1, targets=("q_proj", "v_proj"))
    assert config.prompt.bos_token_id in (1, 128000)
    hidden = config.llm["hidden_size"]
    layers = config.llm["num_hidden_layers"]
    assert shapes[f"lora.model.layers.{layers - 1}.self_attn.q_proj.A"] == (8, hidden)
    assert sum(part.startswith("lora.") for part in shapes) == 4 * layers


def test_published_sizes_of_salmonn_7b() -> None:
    shapes = expected_shapes(preset("salmonn-7b"))
    assert shapes["qformer.proj.weight"] == (4096, 768)
    assert shapes["lora.model.layers.0.self_attn.v_proj.B"] == (4096, 8)
    trained = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert trained == pytest.approx(30.19e6, rel=1e-3)  # facts of the published model: 30.19 M trainable


def test_published_sizes_of_nota_3b() -> None:
    shapes = expected_shapes(preset("nota-3b"))
    assert shapes["lora.model.layers.0.self_attn.v_proj.B"] == (1024, 8)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == pytest.approx(27.50e6, rel=1e-3)


def test_weights_are_plain_safetensors(tiny_checkpoint: Path) -> None:
    with safetensors.safe_open(tiny_checkpoint / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
