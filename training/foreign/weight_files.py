"""Which files of a transformers folder hold its weights."""

from pathlib import Path

from salmonrun.training.tensors import read_json


def weight_files(folder: Path) -> list[Path]:
    """The files with a transformers folder's weights, whole or in the shards of an index; safetensors come first."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in sorted(set(read_json(index).get("weight_map", {}).values()))]
        if (folder / name).is_file():
            return [folder / name]
    return []
