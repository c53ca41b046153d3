"""Does the `.pth` belong to the parts it is given? Errors where it cannot, warnings where it may not."""

import re
from pathlib import Path
from typing import Any

import torch

from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.foreign.hub import source_name
from salmonrun.training.foreign.model_names import differ, read_name
from salmonrun.training.foreign.names import LM_HEAD_NAME
from salmonrun.training.foreign.published import SalmonnFile
from salmonrun.training.model.config import ModelConfig, PartSource
from salmonrun.training.model.llm import EMBEDDING, build_llm
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.model.whisper import build_whisper
from salmonrun.training.starting.chat import read_eos, read_special_id
from salmonrun.training.tensors import LazyTensors, read_json

# What the released files were trained on, for those whose config does not name it.
RELEASED = {
    "salmonn_v1.pth": {"llama_path": "vicuna-13b-v1.1", "whisper_path": "whisper-large-v2"},
    "salmonn_7b_v0.pth": {"llama_path": "vicuna-7b-v1.5", "whisper_path": "whisper-large-v2"},
}
# max_position_embeddings by version: v1.5 is Llama 2, those before are Llama 1.
VICUNA_POSITIONS = {"1.1": 2048, "1.3": 2048, "1.5": 4096}
COMPARED_ROWS = 64  # of the LLM's embeddings, against those that the .pth brought along
HALF_STEP = 2.0**-7  # the .pth has them in half precision


def check_named_parts(file: SalmonnFile, whisper: PartSource, n_mels: int, llm: PartSource) -> list[str]:
    """Warnings about parts that have other names than those the file was trained with.

    Raises:
        CheckpointError: Whisper has another number of mels than the one named.
    """
    named = RELEASED.get(file.path.name, {}) | {key: value for key, value in file.options.items() if value}
    warnings = []
    for key, part in (("whisper_path", whisper), ("llama_path", llm)):
        trained_with = str(named.get(key, ""))
        for given in _names(part):
            if differ(trained_with, given):
                warnings.append(f"{file.path} was trained with {key} {trained_with!r}, this is {given}: another model?")
                break
    trained_with = str(named.get("whisper_path", ""))
    mels = _mels(trained_with)
    if mels and mels != n_mels:
        raise CheckpointError(
            f"{whisper.path} takes {n_mels} mels, but {file.path} was trained with {trained_with!r}, which takes {mels}"
        )
    vicuna = read_name(str(named.get("llama_path", "")))
    positions = read_json(Path(llm.path) / "config.json").get("max_position_embeddings")
    expected = VICUNA_POSITIONS.get(vicuna.version, positions) if vicuna and vicuna.family == "vicuna" else positions
    if positions != expected:
        warnings.append(
            f"{file.path} was trained with {named['llama_path']!r}, which has max_position_embeddings {expected}; "
            f"{llm.path} has {positions}: Vicuna {'v1.5' if positions == 4096 else 'before v1.5'}?"
        )
    return warnings


def _names(part: PartSource) -> list[str]:
    """The names a part goes by: its place, and where its config.json is from."""
    config = Path(part.path) / "config.json"
    own = read_json(config).get("_name_or_path") if config.is_file() else None
    return [source_name(part), *([str(own)] if own else [])]


def _mels(whisper: str) -> int | None:
    """The mels a published Whisper takes, by its name: 128 since large-v3."""
    name = read_name(whisper)
    if name is None or name.family != "whisper" or not name.variants:
        return None
    return 128 if name.version.startswith("3") or "turbo" in name.variants else 80


def check_output_layer(file: SalmonnFile, llm_config: dict[str, Any], llm: LazyTensors, tokens: int) -> list[str]:
    """Use the tied output layer that some files brought along: it is the LLM they were trained on.

    Raises:
        CheckpointError: the LLM's output layer is not tied, or has another width.
    """
    name = next((name for name in file.leftovers if re.fullmatch(LM_HEAD_NAME, name)), None)
    if name is None:
        return []
    if not llm_config.get("tie_word_embeddings", False):
        raise CheckpointError(f"{name} is in the file, but the LLM's output layer is not tied: wrong LLM folder?")
    head, embedding = file.state[name](), llm[EMBEDDING]()
    if head.shape[1:] != embedding.shape[1:]:
        raise CheckpointError(f"{file.path}: {name} has shape {list(head.shape)}, the LLM {list(embedding.shape)}")
    warnings = []
    if len(head) not in (tokens, tokens + 1):  # with the [PAD] that training added
        warnings.append(f"{name} has {len(head)} rows, the tokenizer {tokens} tokens: another tokenizer?")
    rows = min(COMPARED_ROWS, len(head), len(embedding))
    ours, theirs = embedding[:rows].float(), head[:rows].float()
    if (ours - theirs).abs().max() > HALF_STEP * ours.abs().max():
        warnings.append(f"{name} differs from the LLM's embeddings, which it was tied to: another LLM?")
    return warnings


def check_tokenizer(folder: Path, llm_config: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Warnings about special tokens on which tokenizer and LLM do not agree.

    Raises:
        CheckpointError: the tokenizer has more tokens than the LLM, or lacks one that the LLM's config names.
    """
    tokens, rows = tokenizer.vocab_size, int(llm_config["vocab_size"])
    if tokens > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokens} tokens, the LLM {rows}: they do not belong together"
        )
    bos, stops = llm_config.get("bos_token_id"), read_eos(folder, llm_config)
    for token_id in (*stops, *([bos] if bos is not None else [])):
        if not 0 <= token_id < tokens:
            raise CheckpointError(
                f"{folder}: the LLM's config names token {token_id}, the tokenizer has {tokens}: "
                "they do not belong together"
            )
    warnings = []
    for key, expected in (("bos_token", [] if bos is None else [bos]), ("eos_token", stops)):
        special = read_special_id(folder, key, tokenizer)
        if special is not None and expected and special not in expected:
            warnings.append(
                f"{folder}: {key} is token {special} in the tokenizer's files and {expected} in the LLM's: "
                "another tokenizer?"
            )
    return warnings


def check_shapes(tensors: LazyTensors, config: ModelConfig, where: Path, signs: list[str]) -> None:
    """Every tensor that a checkpoint with referred parts stores, and no other, in its shape.

    Args:
        tensors: under our names.
        config: of the checkpoint.
        where: the file, for errors.
        signs: warnings so far; they may be the reason.

    Raises:
        CheckpointError: names what is missing, superfluous, misshapen or of a wrong type.
    """
    expected = expected_shapes(config)
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    reasons = "".join(f"; {sign}" for sign in signs)
    if missing or extra:
        raise CheckpointError(
            f"{where} does not fit the parts given: missing {missing[:5]}, superfluous {extra[:5]}{reasons}"
        )
    for name, shape in expected.items():
        tensor = tensors[name]()
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{where}: {name} has shape {list(tensor.shape)}, expected {list(shape)}{reasons}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{where}: {name} has dtype {tensor.dtype}, expected floating point")


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a checkpoint with all frozen parts referenced must store."""
    with torch.device("meta"):
        shapes = {f"qformer.{name}": tuple(p.shape) for name, p in QFormer(config).named_parameters()}
        adapted = {
            "lora": build_llm(config.llm, config.lora),
            "whisper_lora": build_whisper(config.whisper, config.whisper_lora),
        }
        for part, module in adapted.items():
            shapes |= {f"{part}.{name}": tuple(p.shape) for name, p in lora_parameters(module).items()}
    return shapes
