"""Each kind of file and folder: its facts, what keeps it from being used, and the command that comes next."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import transformers

from salmonrun.runtime.config import Distillation, Pruning
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import from_dict
from salmonrun.training.foreign.adapters import WEIGHT, check_adapter
from salmonrun.training.foreign.part_checks import check_encoder, check_llm_table
from salmonrun.training.foreign.part_files import openai_whisper_of, published_of, whisper_of
from salmonrun.training.foreign.published import SalmonnFile, lora_config, qformer_config, read_salmonn
from salmonrun.training.foreign.quantized import check_method
from salmonrun.training.foreign.weight_files import weight_files
from salmonrun.training.inspection.contents import TensorTable, folder_table, summary, table, without_values
from salmonrun.training.inspection.finding import Finding
from salmonrun.training.model.config import ModelConfig, load_config
from salmonrun.training.model.encoders import read_encoder
from salmonrun.training.model.encoders.published import Published
from salmonrun.training.tensors import read_json

S = TypeVar("S", Distillation, Pruning)
CONVERT = "salmonrun convert SALMONN.pth checkpoint/ --whisper WHISPER --audio-encoder AUDIO_ENCODER --llm LLM"
INIT = "salmonrun init start/ --whisper WHISPER --audio-encoder AUDIO_ENCODER --llm LLM"
# Width and number of layers of the LLMs that published files are for.
LLM_SIZES = {(5120, 40): "13B", (4096, 32): "7B or 8B", (3072, 28): "3B", (2048, 16): "1B", (3584, 28): "7B"}


def salmonn(path: Path, loaded: dict[str, Any]) -> Finding:
    """A SALMONN, Nota or NOTA-09 .pth."""
    contents = summary(table(loaded["model"]))
    try:
        file = read_salmonn(loaded, path)
        facts = _salmonn_facts(file)
    except (CheckpointError, ConfigError) as error:
        return Finding("SALMONN .pth", contents=contents, problems=(str(error),))
    beats = " --audio-encoder AUDIO_ENCODER" if "qformer.ln_audio.weight" in file.tensors else ""
    prune = " --prune" if (file.pruned_layers or file.whisper_prune) and not file.prunes else ""
    named = {key: file.options.get(f"{key}_path") for key in ("whisper", "llama", "beats")}
    needed = [f"{key} ({named[key] or 'not named in the file'})" for key in ("whisper", "llama")]
    needed += [f"beats ({named['beats'] or 'not named in the file'})"] if beats else []
    command = f"salmonrun convert {path} checkpoint/ --whisper WHISPER{beats} --llm LLM{prune}"
    return Finding("SALMONN .pth", facts, contents, needed=tuple(needed), command=command)


def _salmonn_facts(file: SalmonnFile) -> dict[str, str]:
    qformer, lora, whisper = qformer_config(file), lora_config(file, "lora"), lora_config(file, "whisper_lora")
    width = file.tensors["qformer.proj.weight"]().shape[0] if "qformer.proj.weight" in file.tensors else 0
    layers = {int(name.split(".")[3]) for name in file.tensors if name.startswith("lora.model.layers.")}
    size = LLM_SIZES.get((width, len(layers) + (len(file.pruned_layers) if file.prunes else 0)), "")
    window = qformer.window
    facts = {
        "LLM": f"{width} wide"
        + (f", {len(layers)} layers with adapters" if layers else "")
        + (f": {size}" * bool(size)),
        "Q-Former": f"{qformer.layers} layers of {qformer.dim}, windows of {window.frames} frames every "
        f"{window.stride}, {window.num_queries} queries",
    }
    for what, adapters in (("adapters on the LLM", lora), ("adapters on Whisper", whisper)):
        if adapters:
            facts[what] = f"rank {adapters.r}, alpha {adapters.alpha:g}: {' '.join(adapters.targets)}"
    for what, pruned in (("pruned layers of the LLM", file.pruned_layers), ("of Whisper", file.whisper_prune)):
        if pruned:
            facts[what] = " ".join(map(str, pruned)) + ("" if file.prunes else " (its config does not say prune: True)")
    if file.leftovers:
        facts["not needed"] = f"{len(file.leftovers)}: " + "; ".join(sorted(set(file.leftovers.values())))
    return facts


def openai_whisper(path: Path, loaded: dict[str, Any]) -> Finding:
    """Whisper as openai/whisper stores it."""
    dims = loaded["dims"]
    problems = _misfits(lambda: check_encoder(*openai_whisper_of(path, loaded), "the encoder"))
    facts = {"encoder": f"{dims.get('n_audio_layer')} layers of {dims.get('n_audio_state')}, {dims.get('n_mels')} mels"}
    return Finding(
        "Whisper, OpenAI .pt",
        facts,
        summary(table(loaded["model_state_dict"])),
        problems=problems,
        command=INIT.replace("WHISPER", str(path)),
    )


def beats(path: Path, loaded: dict[str, Any]) -> Finding:
    """A BEATs .pt."""
    cfg, tensors = loaded["cfg"], table(loaded["model"])
    facts = {"encoder": f"{cfg.get('encoder_layers')} layers of {cfg.get('encoder_embed_dim')}"}
    if any(name.startswith("predictor.") for name in tensors):
        facts["not needed"] = "its classifier, and the copies of its shared bias table"
    problems = _misfits(lambda: check_encoder(*read_encoder(published_of(path, loaded))[:2], "the encoder"))
    return Finding(
        "BEATs .pt", facts, summary(tensors), problems=problems, command=INIT.replace("AUDIO_ENCODER", str(path))
    )


def eat(path: Path, tensors: TensorTable | None, loaded: dict[str, Any] | None = None) -> Finding:
    """EAT, a fairseq .pt, which was loaded, or a folder; no tensors: the file is one that must not be unpickled."""

    def whole() -> None:
        config = {} if loaded else read_json(path / "config.json")
        published = published_of(path, loaded) if loaded else Published(path, config, without_values(tensors or {}))
        check_encoder(*read_encoder(published)[:2], "the encoder")

    unreadable = "it holds more than tensors and plain values: save its weights as safetensors"
    problems = _misfits(whole) if tensors else (unreadable,)
    command = INIT.replace("AUDIO_ENCODER", str(path))
    return Finding("EAT", contents=summary(tensors or {}), problems=problems, command=command)


def peft_adapter(folder: Path) -> Finding:
    """A PEFT folder."""
    raw, tensors = read_json(folder / "adapter_config.json"), folder_table(folder)
    facts = {
        "adapters": f"{raw.get('peft_type')} of rank {raw.get('r')}, alpha {raw.get('lora_alpha')}",
        "made for": str(raw.get("base_model_name_or_path")),
    }
    problems = []
    try:
        check_adapter(raw, "adapter_config.json")
    except CheckpointError as error:
        problems.append(str(error))
    unknown = [name for name in tensors if not WEIGHT.fullmatch(name)]
    if unknown:
        problems.append(f"{len(unknown)} tensors are no adapters of linear layers: {', '.join(unknown[:3])}")
    if not tensors:
        problems.append("adapter_model.safetensors does not exist")
    return Finding(
        "PEFT adapter", facts, summary(tensors), problems=tuple(problems), command=f"{CONVERT} --adapter {folder}"
    )


def whisper_folder(folder: Path, config: dict[str, Any]) -> Finding:
    """Whisper as transformers stores it."""
    tensors = folder_table(folder)
    facts = {
        "encoder": f"{config.get('encoder_layers')} layers of {config.get('d_model')}, "
        f"{config.get('num_mel_bins')} mels, {config.get('max_source_positions')} frames at most"
    }
    problems: tuple[str, ...] = ("no weights of an encoder are here",)
    if any("encoder.layers." in name for name in tensors):
        problems = _misfits(lambda: check_encoder(*whisper_of(folder, config, without_values(tensors)), "the encoder"))
    command = INIT.replace("WHISPER", str(folder))
    return Finding("Whisper folder", facts, summary(tensors), problems=problems, command=command)


def llm_folder(folder: Path, config: dict[str, Any]) -> Finding:
    """A language model as transformers stores it, in full precision or in bitsandbytes' 4 bits."""
    tensors, kind, problems = folder_table(folder), config["model_type"], []
    contents, quantization = summary(tensors), config.get("quantization_config")
    tied = "tied" if config.get("tie_word_embeddings") else "not tied"
    facts = {
        "family": f"{kind}, {contents['parameters'] / 1e9:.2g} B parameters",
        "sizes": f"{config.get('num_hidden_layers')} layers of {config.get('hidden_size')}, "
        f"{config.get('vocab_size')} tokens, output layer {tied}, {config.get('max_position_embeddings')} positions",
    }
    if quantization:
        try:
            check_method(quantization, str(folder))
            facts["stored"] = f"bitsandbytes, 4 bits ({quantization.get('bnb_4bit_quant_type', 'fp4')})"
        except CheckpointError as error:
            problems.append(str(error))
    if kind not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        problems.append(f"transformers has no language model of model_type {kind!r}")
    if not tensors:
        problems.append("no weights are here: neither model.safetensors nor pytorch_model.bin nor shards of either")
    lacking = [f"{file.name} is missing" for file in weight_files(folder) if not file.is_file()]
    problems += lacking
    if tensors and not lacking and not quantization and not problems:
        problems += _misfits(lambda: check_llm_table(config, {name: info.shape for name, info in tensors.items()}))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        problems.append("neither tokenizer.json nor tokenizer.model is here")
    name = "LLM folder, 4 bits" if quantization and "stored" in facts else "LLM folder"
    return Finding(name, facts, contents, problems=tuple(problems), command=INIT.replace("LLM", str(folder)))


def checkpoint(folder: Path) -> Finding:
    """A checkpoint of ours."""
    config = load_config(folder)
    problems = []
    for part, source in config.sources.items():
        if not (folder / source.path).exists():  # an absolute path stays what it is
            problems.append(f"{part} is not at {source.path}" + (f"; it is from {source.hub}" if source.hub else ""))
    command = f"salmonrun export {folder} bundle/"
    return Finding("checkpoint", _checkpoint_facts(config), summary(folder_table(folder)), tuple(problems), (), command)


def _checkpoint_facts(config: ModelConfig) -> dict[str, str]:
    facts = {
        "model": config.name,
        "Whisper": f"{config.whisper.layers} layers of {config.whisper.d_model}",
        "LLM": f"{config.llm['model_type']}, {config.llm.get('num_hidden_layers')} layers of {config.llm_dim}",
    }
    facts |= _lineage(config.pruning, config.distillation)
    return facts | {f"{part} from": source.hub or source.path for part, source in config.sources.items()}


def bundle(folder: Path) -> Finding:
    """A bundle of ours."""
    manifest = read_json(folder / "bundle.json")
    files = manifest.get("files", {})
    missing = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    precision = manifest.get("precision", {})
    weights = (manifest.get("llm", {}).get("weights") or {}).items()
    facts = {
        "model": str(manifest.get("provenance", {}).get("model")),
        "target": str(manifest.get("target")),
        "precision": ", ".join(f"{part} {value}" for part, value in precision.items() if value),
        "LLM": ", ".join(f"{part['precision']} for {decoder}" for decoder, part in weights if part),
        "files": str(len(files)),
    }
    made = manifest.get("provenance", {})
    facts |= _lineage(_steps(Pruning, made, "pruning", folder), _steps(Distillation, made, "distillation", folder))
    return Finding("bundle", facts, problems=tuple(missing), command=f"salmonrun check {folder}")


def _misfits(check: Callable[[], None]) -> tuple[str, ...]:
    """What keeps the tensors from being those of their config."""
    try:
        check()
    except (CheckpointError, ConfigError) as error:
        return (str(error),)
    return ()


def _steps(kind: type[S], made: dict[str, Any], key: str, folder: Path) -> list[S]:
    return [from_dict(kind, step, f"{folder / 'bundle.json'}: provenance.{key}") for step in made.get(key, [])]


def _lineage(pruning: Sequence[Pruning], distillation: Sequence[Distillation]) -> dict[str, str]:
    """How it was made smaller, and whom it learned from."""
    smaller = {f"pruning, step {i}": f"{step.part}: {step}" for i, step in enumerate(pruning, 1)}
    return smaller | {f"distillation, step {i}": str(step) for i, step in enumerate(distillation, 1)}


def tokenizer(path: Path) -> Finding:
    """A tokenizer on its own."""
    return Finding("tokenizer", {"file": path.name}, needed=("the LLM's config.json and weights beside it",))


EAT_NAMES = re.compile(r"(model\.)?(modality_encoders\.IMAGE\.|blocks\.\d+\.attn\.qkv\.)")


def looks_like_eat(names: set[str]) -> bool:
    """By the names of its fused attention or of its image-like front end."""
    return any(EAT_NAMES.match(name) for name in names)
