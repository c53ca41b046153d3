"""SALMONN and Nota `.pth` files into a checkpoint folder; every key is accounted for."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.config import SPEECH_PLACEHOLDER, AudioConfig, PromptConfig, WindowConfig
from runtime.errors import CheckpointError
from runtime.tokenizer import Tokenizer
from training.chat import read_bos, stop_ids, tokenizer_file
from training.checkpoint import write_checkpoint
from training.config import LoraConfig, ModelConfig, QFormerConfig, Sources
from training.llm import build_llm
from training.lora import lora_parameters
from training.presets import TASKS
from training.qformer import QFormer
from training.sources import as_lazy, describe_source, read_beats, read_llm, read_whisper
from training.tensors import LazyTensors, load_pickle, read_json
from training.whisper import build_whisper

BERT_HEAD_DIM = 64  # bert-base: 768 / 12; the number of heads is in no published checkpoint
WHISPER_WINDOW_FRAMES = 1500  # the published code derives the window from 1500 frames in 30 s

# Published name -> ours. `{i}` is a layer.
QFORMER_NAMES = (
    (r"ln_speech\.(weight|bias)", r"qformer.ln_speech.\1"),
    (r"ln_audio\.(weight|bias)", r"qformer.ln_audio.\1"),
    (r"speech_query_tokens", r"qformer.query_tokens"),
    (r"speech_llama_proj\.(weight|bias)", r"qformer.proj.\1"),
    (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.embed_norm.\1"),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.(\w+)",
        r"qformer.layers.\1.self_attn.\2.\3",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.self\.(\w+)\.(\w+)",
        r"qformer.layers.\1.cross_attn.\2.\3",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)",
        r"qformer.layers.\1.self_attn.out.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)",
        r"qformer.layers.\1.self_attn.norm.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.dense\.(\w+)",
        r"qformer.layers.\1.cross_attn.out.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm\.(\w+)",
        r"qformer.layers.\1.cross_attn.norm.\2",
    ),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.intermediate_query\.dense\.(\w+)", r"qformer.layers.\1.fc1.\2"),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.dense\.(\w+)", r"qformer.layers.\1.fc2.\2"),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.LayerNorm\.(\w+)", r"qformer.layers.\1.norm.\2"),
)
LORA_NAME = (
    r"llama_model\.base_model\.model\.(model\.layers\.\d+\.[\w.]+)\.lora_([AB])\.default\.weight",
    r"lora.\1.\2",
)
LEFTOVERS = (
    (r"beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight", "copy of BEATs' shared bias table"),
    (r"speech_Qformer\.bert\.embeddings\.position_ids", "unused buffer of BERT"),
    (r"llama_model\..*rotary_emb\.inv_freq", "rotary frequencies, which follow from the config"),
    (
        r"llama_model\..*\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)",
        "scales of the frozen LLM, which was held in 4 bits while it was trained on (QLoRA)",
    ),
    (r"llama_model\.(base_model\.model\.)?lm_head\.weight", "tied output layer of the frozen LLM"),
)


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key of the file."""

    used: int
    leftovers: dict[str, str]  # name -> why it is not needed


def convert_salmonn(
    pth: str | Path,
    out: str | Path,
    *,
    whisper: str | Path,
    beats: str | Path | None,
    llm: str | Path,
    prompts: str | Path | None = None,
    end_symbol: str | None = None,
) -> ConversionReport:
    """Turn a SALMONN `.pth` and the frozen parts it was trained on into a checkpoint folder.

    Args:
        pth: the published or self-trained file.
        out: folder to be created.
        whisper: transformers folder or OpenAI .pt.
        beats: BEATs .pt; None if the model was trained without.
        llm: transformers folder with config.json, safetensors and tokenizer.json.
        prompts: JSON of task -> prompt or list of prompts; None for our own.
        end_symbol: text that ends an answer; None for the file's own `end_sym`.

    Raises:
        CheckpointError: a key is missing, unknown or misshapen, or a part does not fit.
    """
    loaded = load_pickle(Path(pth))
    state, options = loaded.get("model"), _model_options(loaded)
    if not isinstance(state, dict):
        raise CheckpointError(f"{pth} has no 'model'; expected a SALMONN .pth")
    for key in ("pruned_layers", "whisper_prune"):
        if loaded.get(key):
            raise CheckpointError(f"{pth} was pruned ({key}: {loaded[key]}); pruned files cannot be converted yet")
    tensors, leftovers = rename_salmonn(as_lazy(state), Path(pth))
    config = _config(tensors, options, Path(whisper), Path(beats) if beats else None, Path(llm), prompts, end_symbol)
    _check_leftovers(leftovers, config)
    _check_shapes(tensors, config, Path(pth))
    write_checkpoint(
        config, {n: get().float().contiguous() for n, get in tensors.items()}, tokenizer_file(Path(llm)), out
    )
    return ConversionReport(len(tensors), leftovers)


def _model_options(loaded: dict[str, Any]) -> dict[str, Any]:
    config = loaded.get("config")
    options = config.get("model", {}) if isinstance(config, dict) else {}
    return options if isinstance(options, dict) else {}


def rename_salmonn(state: LazyTensors, where: Path) -> tuple[LazyTensors, dict[str, str]]:
    """A .pth's tensors under our names (`qformer.*`, `lora.*`), and its leftovers with the reason.

    Raises:
        CheckpointError: a key is neither used nor a known leftover.
    """
    renamed: LazyTensors = {}
    leftovers: dict[str, str] = {}
    unknown = []
    for name, get in state.items():
        new = _match((*QFORMER_NAMES, LORA_NAME), name)
        reason = next((reason for pattern, reason in LEFTOVERS if re.fullmatch(pattern, name)), None)
        if new:
            renamed[new] = _squeeze(get) if name == "speech_query_tokens" else get
        elif reason:
            leftovers[name] = reason
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where}: {len(unknown)} keys are not known: {', '.join(unknown[:5])}")
    return renamed, leftovers


def _match(table: tuple[tuple[str, str], ...], name: str) -> str | None:
    for pattern, replacement in table:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    return None


def _squeeze(get: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: get().squeeze(0)


def _config(
    tensors: LazyTensors,
    options: dict[str, Any],
    whisper: Path,
    beats: Path | None,
    llm: Path,
    prompts: str | Path | None,
    end_symbol: str | None,
) -> ModelConfig:
    whisper_config, _ = read_whisper(whisper)
    beats_config = read_beats(beats)[0] if beats else None
    llm_config, _ = read_llm(llm)
    return ModelConfig(
        name=llm.resolve().name,
        whisper=whisper_config,
        audio_encoder=beats_config,
        qformer=_qformer_config(tensors, options),
        llm=llm_config,
        lora=_lora_config(tensors, options),
        audio=AudioConfig(n_mels=whisper_config.n_mels),
        prompt=_prompt_config(llm, llm_config, options, prompts, end_symbol),
        sources=Sources(
            whisper=describe_source(whisper.resolve()),
            audio_encoder=describe_source(beats.resolve()) if beats else None,
            llm=describe_source(llm.resolve()),
        ),
    )


def _qformer_config(tensors: LazyTensors, options: dict[str, Any]) -> QFormerConfig:
    for name in ("qformer.query_tokens", "qformer.layers.0.fc1.weight"):
        if name not in tensors:
            raise CheckpointError(f"the file has no {name.removeprefix('qformer.')}; a window-level Q-Former is needed")
    num_queries, dim = tensors["qformer.query_tokens"]().shape
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("qformer.layers.")}
    if options.get("window_level_Qformer", True) is not True:
        raise CheckpointError("the file was trained with window_level_Qformer=False, which is not supported")
    return QFormerConfig(
        dim=dim,
        layers=max(layers) + 1,
        heads=max(1, dim // BERT_HEAD_DIM),
        ffn=tensors["qformer.layers.0.fc1.weight"]().shape[0],
        window=WindowConfig(
            frames=seconds_to_frames(options.get("second_per_window", 0.333333)),
            stride=seconds_to_frames(options.get("second_stride", 0.333333)),
            num_queries=num_queries,
        ),
    )


def seconds_to_frames(seconds: float) -> int:
    """Whisper frames of a window, rounded as the published code rounds."""
    return round(WHISPER_WINDOW_FRAMES * seconds / 30.0)


def _lora_config(tensors: LazyTensors, options: dict[str, Any]) -> LoraConfig | None:
    adapters = [name for name in tensors if name.startswith("lora.")]
    if not adapters:
        return None
    rank = next(tensors[name]().shape[0] for name in adapters if name.endswith(".A"))
    return LoraConfig(
        r=rank,
        alpha=float(options.get("lora_alpha", 32)),
        dropout=float(options.get("lora_dropout", 0.1)),
        targets=tuple(sorted({name.split(".")[-2] for name in adapters})),
    )


def _prompt_config(
    llm: Path,
    llm_config: dict[str, Any],
    options: dict[str, Any],
    prompts: str | Path | None,
    end_symbol: str | None,
) -> PromptConfig:
    tokenizer = Tokenizer(tokenizer_file(llm))
    end = end_symbol if end_symbol is not None else str(options.get("end_sym", "</s>"))
    return PromptConfig(
        template=str(options.get("prompt_template", "USER: {}\nASSISTANT:")),
        tasks=read_prompts(Path(prompts)) if prompts else TASKS,
        bos_token_id=read_bos(llm, llm_config, tokenizer),
        stop_token_ids=stop_ids(llm, llm_config, tokenizer, end),
        end_symbol=end,
    )


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """A published prompt JSON: task -> prompt or prompts, word for word; those without the placeholder are refused."""
    tasks = {}
    for task, value in read_json(path).items():
        prompts = tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise CheckpointError(f"{path}: task {task!r} is {value!r}; expected a prompt or a list of prompts")
        bad = [prompt for prompt in prompts if SPEECH_PLACEHOLDER not in prompt]
        if bad:
            raise CheckpointError(f"{path}: task {task!r} has a prompt without {SPEECH_PLACEHOLDER}: {bad[0]!r}")
        tasks[task] = prompts
    return tasks


def _check_leftovers(leftovers: dict[str, str], config: ModelConfig) -> None:
    for name in leftovers:
        if name.endswith("lm_head.weight") and not config.llm.get("tie_word_embeddings", False):
            raise CheckpointError(f"{name} is in the file, but the LLM's output layer is not tied: wrong LLM folder?")


def _check_shapes(tensors: LazyTensors, config: ModelConfig, where: Path) -> None:
    expected = expected_shapes(config)
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise CheckpointError(f"{where} does not fit the parts given: missing {missing[:5]}, superfluous {extra[:5]}")
    for name, shape in expected.items():
        tensor = tensors[name]()
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{where}: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
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


def format_report(report: ConversionReport) -> str:
    """The report as text, one leftover a line."""
    lines = [f"{report.used} tensors used"]
    return "\n".join(lines + [f"left out: {name} ({reason})" for name, reason in report.leftovers.items()])
