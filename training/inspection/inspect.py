"""What a foreign file, folder or hub id is; no weights are read, nothing is downloaded."""

from dataclasses import replace
from pathlib import Path

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.hub import cached_folder, parse_id
from salmonrun.training.inspection import kinds
from salmonrun.training.inspection.contents import (
    folder_table,
    pickle_entries,
    pickled_words,
    safetensors_table,
    summary,
    table,
)
from salmonrun.training.inspection.finding import Finding
from salmonrun.training.tensors import foreign, read_json


def inspect_path(reference: str | Path) -> Finding:
    """Say what a path or a hub id (of which only the cache is looked at) is.

    Raises:
        CheckpointError: there is nothing, or a file of it is damaged.
    """
    path = _find(reference)
    with foreign(path):
        finding = _inspect_folder(path) if path.is_dir() else _inspect_file(path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return replace(finding, path=str(reference), size=sum(file.stat().st_size for file in files))


def _find(reference: str | Path) -> Path:
    path = Path(reference)
    if path.exists():
        return path
    hub = parse_id(str(reference))
    if hub is None:
        raise CheckpointError(f"{path} does not exist")
    folder = cached_folder(hub)
    if hub.file:
        return folder / hub.file
    weights = [file for pattern in ("*.pth", "*.pt") for file in folder.glob(pattern)]
    return weights[0] if len(weights) == 1 and not (folder / "config.json").is_file() else folder


def _inspect_folder(folder: Path) -> Finding:
    if (folder / "bundle.json").is_file():
        return kinds.bundle(folder)
    if (folder / "adapter_config.json").is_file():
        return kinds.peft_adapter(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "qformer" in config and "format_version" in config:
        return kinds.checkpoint(folder)
    if config.get("model_type") == "whisper":
        return kinds.whisper_folder(folder, config)
    tensors = folder_table(folder)
    if kinds.looks_like_eat(set(tensors)):
        return kinds.eat(folder, tensors)
    if "model_type" in config:
        return kinds.llm_folder(folder, config)
    for name in ("tokenizer.json", "tokenizer.model"):
        if not tensors and (folder / name).is_file():
            return kinds.tokenizer(folder / name)
    return _unknown(folder, "config.json with a model_type, bundle.json and adapter_config.json are not in it")


def _inspect_file(path: Path) -> Finding:
    if path.name in ("tokenizer.json", "tokenizer.model"):
        return kinds.tokenizer(path)
    if path.name in ("config.json", "bundle.json", "adapter_config.json", "model.safetensors.index.json"):
        return _inspect_folder(path.parent)
    if path.suffix == ".safetensors":
        tensors = safetensors_table(path)
        if kinds.looks_like_eat(set(tensors)):
            return kinds.eat(path.parent, tensors)
        neighbours = any((path.parent / name).is_file() for name in ("config.json", "adapter_config.json"))
        return _inspect_folder(path.parent) if neighbours else replace(_unknown(path, ""), contents=summary(tensors))
    try:
        loaded = pickle_entries(path)
    except CheckpointError as error:
        if kinds.looks_like_eat(pickled_words(path)):
            return kinds.eat(path, None)
        return _unknown(path, str(error))
    return _pickled(path, loaded)


def _pickled(path: Path, loaded: dict[str, object]) -> Finding:
    names = set(table(loaded.get("model")))
    if any(name.startswith(("speech_Qformer.", "speech_query_tokens")) for name in names):
        return kinds.salmonn(path, loaded)
    if isinstance(loaded.get("dims"), dict) and "model_state_dict" in loaded:
        return kinds.openai_whisper(path, loaded)
    if kinds.looks_like_eat(names | set(table(loaded))):
        return kinds.eat(path, table(loaded.get("model")) or table(loaded), loaded)
    if isinstance(loaded.get("cfg"), dict) and "patch_embedding.weight" in names:
        return kinds.beats(path, loaded)
    contents = summary(table(loaded.get("model")) or table(loaded))
    return replace(_unknown(path, f"its entries are {', '.join(map(str, list(loaded)[:8]))}"), contents=contents)


def _unknown(path: Path, why: str) -> Finding:
    return Finding("not known", problems=(f"{path} is none of the kinds that are read" + (f": {why}" * bool(why)),))
