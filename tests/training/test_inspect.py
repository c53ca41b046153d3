"""salmonrun inspect: what files are, told without reading a weight."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from salmonrun.training.__main__ import main
from salmonrun.training.inspection.finding import Finding
from salmonrun.training.inspection.inspect import inspect_path
from tests.helpers import eat, published
from tests.helpers.parts import edit_json, write_llm, write_openai_whisper, write_whisper


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("parts") / "llm")


@pytest.fixture(autouse=True)
def no_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are never asked for: all PyTorch files on the meta device, all safetensors by their headers."""
    load = torch.load

    def on_meta(*args: Any, **options: Any) -> Any:
        assert options["map_location"] == "meta"
        assert options["weights_only"] is True
        return load(*args, **options)

    def refuse(*args: Any) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(torch, "load", on_meta)
    monkeypatch.setattr("salmonrun.training.tensors.safe_open", refuse)


def usable(finding: Finding, kind: str, command: str) -> Finding:
    assert (finding.kind, finding.problems) == (kind, ())
    assert finding.command.startswith(f"salmonrun {command}")
    assert finding.usable
    return finding


def test_a_salmonn_file(golden: Path) -> None:
    path = golden / "salmonn" / "salmonn.pth"
    finding = usable(inspect_path(path), "SALMONN .pth", f"convert {path}")
    assert finding.facts["LLM"] == "64 wide, 3 layers with adapters"
    assert finding.facts["adapters on the LLM"] == "rank 8, alpha 32: q_proj v_proj"
    assert "optimizer" in finding.facts["not needed"]
    assert finding.contents["dtypes"] == {"float16": 1, "float32": 75, "int64": 1}
    assert finding.size == path.stat().st_size
    assert any("llama" in part for part in finding.needed)


@pytest.mark.parametrize(("width", "layers", "size"), [(5120, 40, "13B"), (4096, 32, "7B or 8B"), (3072, 28, "3B")])
def test_the_published_sizes(tmp_path: Path, width: int, layers: int, size: str) -> None:
    with torch.device("meta"):
        state = published.qformer_state(1280, 768, width)
        targets = {f"model.layers.{i}.self_attn.q_proj": torch.empty(width, width) for i in range(layers)}
        state |= published.lora_state(f"llama_model.{published.PEFT}", targets)
    small = {name: torch.zeros(()).expand(value.shape) for name, value in state.items()}
    finding = inspect_path(published.write_salmonn(tmp_path / "x.pth", small))
    assert finding.facts["LLM"] == f"{width} wide, {layers} layers with adapters: {size}"


def test_a_pruned_file(tmp_path: Path, llm: Path) -> None:
    state = published.qformer_state(48, 0, 64)
    state |= published.lora_state(f"llama_model.{published.PEFT}", published.llm_targets(llm, [0, 2]))
    path = published.write_salmonn(tmp_path / "x.pth", state, pruned_layers=[1], whisper_prune=[4, 5])
    finding = inspect_path(path)
    assert finding.command.endswith("--prune")
    assert "--audio-encoder" not in finding.command
    assert finding.facts["pruned layers of the LLM"] == "1 (its config does not say prune: True)"
    assert finding.facts["of Whisper"].startswith("4 5 ")


def test_a_file_with_keys_that_are_not_known(tmp_path: Path) -> None:
    state = published.qformer_state(48, 0, 64) | {"speech_adapter.weight": torch.zeros(2)}
    finding = inspect_path(published.write_salmonn(tmp_path / "x.pth", state))
    assert finding.kind == "SALMONN .pth"
    assert "speech_adapter.weight" in finding.problems[0]
    assert not finding.usable


def test_a_legacy_file_is_read_without_its_weights(golden: Path, tmp_path: Path) -> None:
    loaded = torch.load(golden / "beats" / "beats.pt", weights_only=True, map_location="meta")
    real = {name: torch.zeros(value.shape) for name, value in loaded["model"].items()}
    torch.save({"cfg": loaded["cfg"], "model": real}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    usable(inspect_path(tmp_path / "b.pt"), "BEATs .pt", "init")


def test_whisper_and_beats(golden: Path, tmp_path: Path) -> None:
    folder = write_whisper(tmp_path / "whisper")
    finding = usable(inspect_path(folder), "Whisper folder", "init")
    assert finding.facts["encoder"].startswith("2 layers of 48, 80 mels")
    openai = write_openai_whisper(folder, tmp_path / "large-v2.pt")
    finding = usable(inspect_path(openai), "Whisper, OpenAI .pt", "init")
    assert finding.facts["encoder"] == "2 layers of 48, 80 mels"
    assert str(openai) in finding.command
    finding = usable(inspect_path(golden / "beats" / "beats.pt"), "BEATs .pt", "init")
    assert finding.facts["encoder"] == "3 layers of 48"
    (folder / "model.safetensors").unlink()
    assert inspect_path(folder).problems == ("no weights of an encoder are here",)


class Options(dict[str, object]):  # as fairseq's Namespace: a class that weights_only refuses
    """Not known to torch."""


def test_eat_is_told_by_its_names(tmp_path: Path) -> None:
    state = eat.published_state()
    for path in (
        eat.write_folder(tmp_path / "folder", state),
        eat.write_pretrained(tmp_path / "pretrained.pt", state),
        eat.write_fine_tuned(tmp_path / "fine-tuned.pt", state),
    ):
        finding = usable(inspect_path(path), "EAT", "init")
        assert f"--audio-encoder {path}" in finding.command
        assert finding.contents["tensors"] >= len(state) // 2
    torch.save({"cfg": Options(), "model": state}, tmp_path / "other.pt")
    finding = inspect_path(tmp_path / "other.pt")
    assert finding.kind == "EAT"
    assert "more than tensors" in finding.problems[0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_llm_folders(tmp_path: Path, kind: str) -> None:
    folder = write_llm(tmp_path / "llm", kind=kind)
    finding = usable(inspect_path(folder), "LLM folder", "init")
    assert finding.facts["family"].startswith(kind)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    assert finding.contents["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert finding.contents["dtypes"].keys() == {"float16"}


def test_what_an_llm_folder_lacks(tmp_path: Path, llm: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(llm, folder)
    (folder / "tokenizer.json").unlink()
    assert inspect_path(folder).problems == ("neither tokenizer.json nor tokenizer.model is here",)
    weights = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert inspect_path(folder).problems[0] == "model-00002-of-00002.safetensors is missing"
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "gptq"}}))
    assert "quant_method 'gptq'" in inspect_path(folder).problems[0]
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "vit"}))
    assert any("no language model of model_type 'vit'" in problem for problem in inspect_path(folder).problems)


def test_an_llm_in_4_bits_counts_as_what_it_stands_for(tmp_path: Path, llm: Path) -> None:
    pytest.importorskip("bitsandbytes")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    transformers.AutoModelForCausalLM.from_pretrained(llm, quantization_config=settings).save_pretrained(tmp_path)
    shutil.copyfile(llm / "tokenizer.json", tmp_path / "tokenizer.json")
    finding = usable(inspect_path(tmp_path), "LLM folder, 4 bits", "init")
    assert finding.facts["stored"] == "bitsandbytes, 4 bits (nf4)"
    assert finding.contents["parameters"] == inspect_path(llm).contents["parameters"]


def test_adapters_checkpoints_bundles_and_tokenizers(
    tmp_path: Path, llm: Path, golden_checkpoint: Path, golden_bundle: Path
) -> None:
    adapter = published.write_peft(tmp_path / "adapter", published.llm_targets(llm, [0, 1]))
    assert usable(inspect_path(adapter), "PEFT adapter", "convert").facts["adapters"].startswith("LORA of rank 4")
    edit_json(adapter / "adapter_config.json", use_dora=True)
    assert "use_dora is True" in inspect_path(adapter).problems[0]
    finding = usable(inspect_path(golden_checkpoint), "checkpoint", "export")
    assert finding.facts["LLM"] == "llama, 3 layers of 64"
    finding = usable(inspect_path(golden_bundle), "bundle", "check")
    assert finding.facts["LLM"] == "fp32 for onnx"
    assert inspect_path(llm / "tokenizer.json").kind == "tokenizer"
    assert inspect_path(llm / "config.json").kind == "LLM folder"
    moved = tmp_path / "moved"
    shutil.copytree(golden_checkpoint, moved)
    config = (moved / "config.json").read_text()
    (moved / "config.json").write_text(config.replace("salmonn/llm", "salmonn/gone"))
    assert [problem.split(" at ")[0] for problem in inspect_path(moved).problems] == ["llm is not"]


def test_what_is_none_of_these(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "x.pt")
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors")
    (tmp_path / "x.bin").write_bytes(b"nothing of the kind")
    for name in ("x.pt", "x.safetensors", "x.bin"):
        finding = inspect_path(tmp_path / name)
        assert (finding.kind, finding.usable) == ("not known", False)
    assert "its entries are weights" in inspect_path(tmp_path / "x.pt").problems[0]


def test_the_command(capsys: pytest.CaptureFixture[str], golden: Path, tmp_path: Path) -> None:
    path = str(golden / "salmonn" / "llm")
    assert main(["inspect", path]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == path
    assert "is       LLM folder" in text
    assert f"next     salmonrun init start/ --whisper WHISPER --audio-encoder AUDIO_ENCODER --llm {path}" in text
    assert main(["inspect", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["usable"], found["contents"]["tensors"]) == ("LLM folder", True, 29)
    assert main(["inspect", str(tmp_path / "gone")]) == 1
    assert "does not exist" in capsys.readouterr().err
