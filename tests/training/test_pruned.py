"""NOTA-09's pruned files against models that were pruned by their own code's way: transformers, peft, ModuleLists."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from salmonrun.export import export_bundle
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training import SalmonnModel, load
from salmonrun.training.checkpoint import save
from salmonrun.training.foreign.part_files import read_audio_encoder
from salmonrun.training.foreign.sources import read_source
from salmonrun.training.model.config import PartSource, load_config
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.starting.convert import Conversion, convert_salmonn, format_conversion
from salmonrun.training.tensors import LazyTensors
from tests.helpers import published
from tests.helpers.parts import write_llm, write_whisper

LLM_LAYERS, PRUNED = 6, [1, 3, 4]
WHISPER_LAYERS, WHISPER_PRUNED = 4, [2]
ALPHA, RANK = 48, 8
NOTA_09 = {"prune": True, "whisper_lora": True, "low_resource": True, "awq": "", "lora_alpha": ALPHA}
TOLERANCE = 2e-4


@dataclass
class Nota09:
    """A pruned file and the parts it was trained on."""

    folder: Path
    beats: Path
    state: dict[str, Tensor]

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def whisper(self) -> Path:
        return self.folder / "whisper"

    def convert(self, out: Path, options: dict[str, Any] = NOTA_09, **entries: Any) -> Conversion:
        arguments = {name: entries.pop(name) for name in ("prune",) if name in entries}
        pruned = {"pruned_layers": PRUNED, "whisper_prune": WHISPER_PRUNED, **entries}
        pth = published.write_salmonn(out.with_suffix(".pth"), self.state, options, **pruned)
        return convert_salmonn(pth, out, whisper=self.whisper, audio_encoder=self.beats, llm=self.llm, **arguments)


def whisper_targets(layers: int, width: int = 48) -> dict[str, Tensor]:
    """q_proj and v_proj of Whisper's encoder; `o_proj`, which NOTA-09 lists too, matches nothing there."""
    square = torch.zeros(width, width)
    return {f"layers.{i}.self_attn.{name}": square for i in range(layers) for name in ("q_proj", "v_proj")}


@pytest.fixture(scope="module")
def nota(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Nota09:
    folder = tmp_path_factory.mktemp("nota-09")
    write_llm(folder / "llm", LLM_LAYERS)
    write_whisper(folder / "whisper", WHISPER_LAYERS)
    kept = [i for i in range(LLM_LAYERS) if i not in PRUNED]
    torch.manual_seed(3)
    state = published.qformer_state(48, published.BEATS, 64) | published.duplicate_tables()
    targets = published.llm_targets(folder / "llm", kept)
    state |= published.lora_state(f"llama_model.{published.PEFT}", targets, RANK)
    adapted = whisper_targets(WHISPER_LAYERS - len(WHISPER_PRUNED))
    state |= published.lora_state(f"speech_encoder.{published.PEFT}", adapted, RANK)
    return Nota09(folder, golden / "beats" / "beats.pt", state)


@pytest.fixture(scope="module")
def checkpoint(nota: Nota09, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "checkpoint"
    nota.convert(out)
    return out


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SalmonnModel:
    return load(checkpoint)


def fill(module: nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    """Their load_state_dict(strict=False), with nothing of the file's left unused."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert own
    assert module.load_state_dict(own, strict=False).unexpected_keys == []


def reference_llm(nota: Nota09) -> peft.PeftModel:
    llm = transformers.AutoModelForCausalLM.from_pretrained(nota.llm, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"])
    llm = peft.get_peft_model(llm, config)
    layers = llm.base_model.model.model.layers
    llm.base_model.model.model.layers = nn.ModuleList(layer for i, layer in enumerate(layers) if i not in PRUNED)
    for i, layer in enumerate(llm.base_model.model.model.layers):
        layer.self_attn.layer_idx = i
    llm.base_model.model.config.num_hidden_layers = LLM_LAYERS - len(PRUNED)
    fill(llm, nota.state, "llama_model.")
    return llm.eval()


def reference_whisper(nota: Nota09) -> peft.PeftModel:
    encoder = transformers.WhisperModel.from_pretrained(nota.whisper).encoder
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj", "o_proj"])
    encoder = peft.get_peft_model(encoder, config)
    layers = encoder.base_model.model.layers
    encoder.base_model.model.layers = nn.ModuleList(layer for i, layer in enumerate(layers) if i not in WHISPER_PRUNED)
    fill(encoder, nota.state, "speech_encoder.")
    return encoder.eval()


@torch.inference_mode()
def test_whisper_is_the_pruned_and_adapted_one(nota: Nota09, model: SalmonnModel) -> None:
    log_mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    expected = reference_whisper(nota).base_model.model(log_mel).last_hidden_state
    got = model.whisper(log_mel)
    assert (got - expected).abs().max() <= TOLERANCE
    assert expected.std() > 0.1


@torch.inference_mode()
def test_the_bundle_gives_the_tokens_of_the_pruned_llm(
    nota: Nota09, model: SalmonnModel, checkpoint: Path, speech: Path, tmp_path: Path
) -> None:
    embeds = model.embed_prompt(model.encode(model.load_audio(speech)), "What is heard?")
    llm = reference_llm(nota)
    logits = llm(inputs_embeds=embeds).logits
    assert (model.llm(inputs_embeds=embeds).logits - logits).abs().max() <= TOLERANCE * logits.abs().max()
    ids = llm.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), max_new_tokens=12, do_sample=False
    )[0].tolist()
    engine = Engine.load(export_bundle(checkpoint, tmp_path / "bundle"))
    config = GenerationConfig(max_new_tokens=12)
    result = engine.generate(speech, prompt="What is heard?", config=config)
    expected = ids[: next((i + 1 for i, token in enumerate(ids) if token in model.prompts.stop_token_ids), 12)]
    assert len(expected) > 3
    assert len(set(expected)) > 2
    assert result.token_ids == expected
    provenance = open_bundle(tmp_path / "bundle").manifest.provenance
    assert provenance.pruned_layers == tuple(PRUNED)
    assert provenance.whisper_pruned_layers == tuple(WHISPER_PRUNED)
    assert provenance.lora_scale == ALPHA / RANK


def test_the_parts_are_referred_to_and_not_copied(nota: Nota09, checkpoint: Path, model: SalmonnModel) -> None:
    config = load_config(checkpoint)
    assert config.llm["num_hidden_layers"] == LLM_LAYERS - len(PRUNED)
    assert config.whisper.layers == WHISPER_LAYERS - len(WHISPER_PRUNED)
    assert config.sources.llm
    assert (config.sources.llm.path, config.sources.llm.left_out_layers) == (str(nota.llm), tuple(PRUNED))
    assert config.sources.whisper
    assert config.sources.whisper.left_out_layers == tuple(WHISPER_PRUNED)
    assert config.whisper_lora
    assert (config.whisper_lora.r, config.whisper_lora.alpha) == (RANK, ALPHA)
    assert config.whisper_lora.targets == ("q_proj", "v_proj")


def test_a_copy_still_leaves_them_out(model: SalmonnModel, checkpoint: Path, tmp_path: Path) -> None:
    save(model, tmp_path / "copy", checkpoint / "tokenizer.json")
    again = load(tmp_path / "copy")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_the_report_says_so(nota: Nota09, tmp_path: Path) -> None:
    conversion = nota.convert(tmp_path / "out")
    assert conversion.left_out_layers == {"whisper": (2,), "llm": (1, 3, 4)}
    assert "layers of llm left out: 1 3 4" in format_conversion(conversion)


def test_awqs_wrapper_has_one_more_model_in_its_names(nota: Nota09, checkpoint: Path, tmp_path: Path) -> None:
    prefix = f"llama_model.{published.PEFT}"
    wrapped = {name.replace(prefix, f"{prefix}model."): value for name, value in nota.state.items()}
    left = {f"{prefix}model.model.layers.0.mlp.up_proj.{name}": torch.zeros(2, 2) for name in ("qweight", "scales")}
    conversion = Nota09(nota.folder, nota.beats, wrapped | left).convert(tmp_path / "out")
    assert set(left) < set(conversion.leftovers)
    stored = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert stored == (checkpoint / "model.safetensors").read_bytes()


def test_without_prune_in_the_config_nothing_is_left_out(nota: Nota09, checkpoint: Path, tmp_path: Path) -> None:
    """NOTA-09's code ignores the lists then; this file's adapters show that it was pruned."""
    options = {key: value for key, value in NOTA_09.items() if key != "prune"}
    with pytest.raises(CheckpointError, match=r"missing .*layers\.3\.self_attn.*--prune"):
        nota.convert(tmp_path / "out", options)
    nota.convert(tmp_path / "out", options, prune=True)
    assert load_config(tmp_path / "out") == load_config(checkpoint)


def test_a_file_that_lists_layers_and_has_them_is_converted_whole_with_a_warning(nota: Nota09, tmp_path: Path) -> None:
    targets = published.llm_targets(nota.llm, range(LLM_LAYERS))
    state = {name: value for name, value in nota.state.items() if "lora_" not in name}
    state |= published.lora_state(f"llama_model.{published.PEFT}", targets, RANK)
    conversion = Nota09(nota.folder, nota.beats, state).convert(tmp_path / "out", {"prune": False})
    assert conversion.left_out_layers == {}
    assert load_config(tmp_path / "out").llm["num_hidden_layers"] == LLM_LAYERS
    (warning,) = conversion.warnings
    assert "lists layers to leave out (3 of the LLM, 1 of Whisper)" in warning


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"pruned_layers": [1, 3, 9]}, r"llm has layers 0 to 5; \[1, 3, 9\] cannot be left out"),
        ({"pruned_layers": [1, 1, 3]}, "a list with doubles"),
        ({"pruned_layers": list(range(6))}, "cannot be left out"),
        ({"pruned_layers": "1,3,4"}, r"pruned_layers is '1,3,4'; expected a list"),
        ({"pruned_layers": [1, 3]}, r"missing .*layers\.3\.self_attn"),
        ({"pruned_layers": [1, 2, 3, 4]}, r"superfluous .*layers\.2\.self_attn"),
        ({"whisper_prune": [4]}, "whisper has layers 0 to 3"),
        ({"whisper_prune": [1, 2]}, r"superfluous .*whisper_lora\.layers\.2"),
        ({"ema": {}}, "has entries that are not known: ema"),
    ],
)
def test_lists_that_do_not_fit_are_named(nota: Nota09, tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        nota.convert(tmp_path / "out", **entries)
    assert not (tmp_path / "out").exists()


def test_whisper_is_pruned_with_adapters_only(nota: Nota09, tmp_path: Path) -> None:
    plain = {name: value for name, value in nota.state.items() if not name.startswith("speech_encoder.")}
    without = Nota09(nota.folder, nota.beats, plain)
    with pytest.raises(CheckpointError, match="whisper_lora: True only"):
        without.convert(tmp_path / "out", NOTA_09 | {"whisper_lora": False})
    with pytest.raises(CheckpointError, match="whisper_lora: False, but there are adapters on Whisper"):
        nota.convert(tmp_path / "out", NOTA_09 | {"whisper_lora": False})
    without.convert(tmp_path / "out", NOTA_09 | {"whisper_lora": False}, whisper_prune=[])
    assert load_config(tmp_path / "out").whisper_lora is None


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_other_llms_go_without_layers_too(golden: Path, tmp_path: Path, kind: str) -> None:
    folder = write_llm(tmp_path / "llm", 4, kind)
    write_whisper(tmp_path / "whisper")
    torch.manual_seed(4)
    state = published.qformer_state(48, 0, 64)
    prefix = f"llama_model.{published.PEFT}"
    state |= published.lora_state(prefix, published.llm_targets(folder, [0, 3]))
    pth = published.write_salmonn(tmp_path / "x.pth", state, {"prune": True}, pruned_layers=[1, 2])
    convert_salmonn(pth, tmp_path / "out", whisper=tmp_path / "whisper", audio_encoder=None, llm=folder)
    model = load(tmp_path / "out")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    del reference.model.layers[1:3]
    for i, layer in enumerate(reference.model.layers):
        layer.self_attn.layer_idx = i
    weights = dict(model.llm.named_parameters())
    for name, value in reference.named_parameters():
        ours = weights.get(name, weights.get(name.replace(".weight", ".base_layer.weight")))
        ours = weights[name.replace(".bias", ".base_layer.bias")] if ours is None else ours
        assert torch.equal(ours, value)


def llm_of(config: dict[str, Any]) -> Callable[[Path], tuple[dict[str, Any], LazyTensors]]:
    return lambda _: (config, {})


def test_beats_goes_without_layers_and_keeps_the_weight_of_its_residuals(golden: Path) -> None:
    path = str(golden / "beats" / "beats.pt")
    whole, tensors = read_source(PartSource(path, {}), read_audio_encoder)
    config, left = read_source(PartSource(path, {}, left_out_layers=(1,)), read_audio_encoder)
    assert isinstance(config, BeatsConfig)
    assert (config.layers, config.deepnorm_layers) == (whole.layers - 1, whole.layers)
    assert torch.equal(left["encoder.layers.1.fc1.weight"](), tensors["encoder.layers.2.fc1.weight"]())


def test_llms_that_count_their_layers_are_refused() -> None:
    source = PartSource("llm", {}, left_out_layers=(1,))
    for setting in ({"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}, {"use_sliding_window": True}):
        with pytest.raises(CheckpointError, match=f"{next(iter(setting))}.* cannot be left out"):
            read_source(source, llm_of({"num_hidden_layers": 3, **setting}))
    config, _ = read_source(source, llm_of({"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}))
    assert config == {"num_hidden_layers": 2, "layer_types": ["a", "c"]}
