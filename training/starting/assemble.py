"""A checkpoint around pretrained parts: a new Q-Former and new adapters sized to them, ready to be trained."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salmonrun.runtime.config import AudioConfig, PromptConfig, WindowConfig
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import stored_prefix, write_checkpoint
from salmonrun.training.foreign.part_checks import check_encoder, check_llm
from salmonrun.training.foreign.part_files import open_published, read_llm, read_whisper
from salmonrun.training.foreign.published import BERT_HEAD_DIM
from salmonrun.training.foreign.sources import pin_source
from salmonrun.training.model.config import LoraConfig, ModelConfig, PartSource, QFormerConfig, Sources
from salmonrun.training.model.encoders import AudioEncoderConfig, read_encoder
from salmonrun.training.model.encoders.published import Leftovers
from salmonrun.training.model.features import FRAMES_PER_S
from salmonrun.training.model.llm import build_llm
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.starting.chat import (
    ChatTemplate,
    read_bos,
    read_chat_template,
    read_end_symbol,
    stop_ids,
    tokenizer_file,
)
from salmonrun.training.starting.presets import TASKS
from salmonrun.training.starting.prompts import read_prompts
from salmonrun.training.tensors import LazyTensors, read_json, read_sizes


@dataclass(frozen=True)
class PromptOptions:
    """How the LLM is prompted. None: by its folder's own settings."""

    prompts: Path | None = None  # JSON of task -> prompt or prompts; None for our own
    template: str | None = None
    end_symbol: str | None = None


@dataclass(frozen=True)
class Assembly:
    """What a checkpoint was assembled of."""

    config: ModelConfig
    template_origin: str
    new_parameters: int  # of the Q-Former and the adapters
    leftovers: Leftovers  # of the audio encoder's file


def qformer_config(
    dim: int | None = None, layers: int | None = None, window: WindowConfig | None = None
) -> QFormerConfig:
    """A Q-Former of BERT's proportions: heads of 64, a feed-forward four times as wide. None: as published.

    Raises:
        ConfigError: `dim` or `layers` makes no Q-Former.
    """
    default = QFormerConfig()
    dim, layers = default.dim if dim is None else dim, default.layers if layers is None else layers
    if dim < 1 or dim % BERT_HEAD_DIM:
        raise ConfigError(f"the Q-Former's dim is {dim}; expected a multiple of {BERT_HEAD_DIM}, the width of a head")
    if layers < 1:
        raise ConfigError(f"the Q-Former's layers are {layers}; expected at least 1")
    return QFormerConfig(dim, layers, dim // BERT_HEAD_DIM, 4 * dim, window or default.window)


def assemble(
    out: str | Path,
    *,
    whisper: str | Path,
    audio_encoder: str | Path | None,
    llm: str | Path,
    qformer: QFormerConfig | None = None,
    lora: LoraConfig | None = None,
    audio_window: Literal["padded", "trimmed"] = "padded",
    max_s: float | None = None,
    prompt: PromptOptions | None = None,
    copy: bool = False,
    seed: int = 0,
) -> Assembly:
    """Write a checkpoint of pretrained parts, a new Q-Former and new adapters. It knows nothing of sound yet: train it.

    Args:
        out: folder to be created.
        whisper: transformers folder or OpenAI .pt; its decoder is not used.
        audio_encoder: BEATs or EAT .pt, or EAT folder; None: Whisper is the only encoder.
        llm: transformers folder with safetensors and tokenizer.json.
        qformer: the Q-Former's size and window; None for the published one.
        lora: the adapters on the LLM; None for none.
        audio_window: see AudioConfig.window.
        max_s: longest recording that the model hears; None: Whisper's 30 s. EAT may have positions for less.
        prompt: how the LLM is prompted; None for its own settings.
        copy: store the parts in the checkpoint; else it refers to them, and they must stay where they are.
        seed: of the new weights.

    Raises:
        CheckpointError: a part is missing, of another kind or damaged, or `out` exists.
        ConfigError: the sizes make no model.
    """
    if Path(out).exists():  # now, and not after gigabytes of hashing
        raise CheckpointError(f"{out} exists; choose another name or remove it")
    whisper, audio_encoder, llm = Path(whisper), Path(audio_encoder) if audio_encoder else None, Path(llm)
    _check_kinds(whisper, audio_encoder, llm)
    with _naming(whisper):
        whisper_config, whisper_tensors = read_whisper(whisper)
        audio = AudioConfig(n_mels=whisper_config.n_mels, window=audio_window).up_to(max_s)
    encoder_config, encoder_tensors, leftovers = _read_audio_encoder(audio_encoder)
    llm_config, llm_tensors = read_llm(llm)
    (rows,) = read_sizes(llm_config, ("vocab_size",), f"{llm / 'config.json'}")
    prompt_config, origin = _prompt_config(llm, llm_config, rows, prompt or PromptOptions())
    config = ModelConfig(
        name=llm.resolve().name,
        whisper=whisper_config,
        audio_encoder=encoder_config,
        qformer=qformer or QFormerConfig(),
        llm=llm_config,
        lora=lora,
        audio=audio,
        prompt=prompt_config,
        sources=Sources() if copy else _sources(whisper, audio_encoder, llm).map(pin_source),
    )
    pretrained = {"whisper": whisper_tensors, "audio_encoder": encoder_tensors, "llm": llm_tensors}
    new = _new_tensors(config, pretrained, seed)
    stored = dict(new)
    if copy:
        for part, tensors in pretrained.items():
            stored |= {f"{stored_prefix(config, part)}.{name}": get() for name, get in tensors.items()}
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    with tokenizer_file(llm, rows) as file:
        write_checkpoint(config, stored, file, out)
    return Assembly(config, origin, sum(tensor.numel() for tensor in new.values()), leftovers)


def _check_kinds(whisper: Path, audio_encoder: Path | None, llm: Path) -> None:
    """Refuse a part of another kind by name, before its sizes are looked for in vain."""
    for what, path in (("Whisper", whisper), ("audio encoder", audio_encoder), ("LLM", llm)):
        if path is not None and not path.exists():
            raise CheckpointError(f"{path} does not exist; expected the {what} part")
    if not llm.is_dir():
        raise CheckpointError(f"{llm} is a file; expected the LLM's transformers folder")
    kind = read_json(llm / "config.json").get("model_type")
    if kind in (None, "whisper"):
        raise CheckpointError(f"{llm / 'config.json'} has model_type {kind!r}; expected an LLM's, such as 'llama'")
    kind = read_json(whisper / "config.json").get("model_type") if whisper.is_dir() else "whisper"
    if kind != "whisper":
        raise CheckpointError(f"{whisper / 'config.json'} has model_type {kind!r}; expected 'whisper'")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Sizes that make no model are the part's fault: name it."""
    try:
        yield
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_audio_encoder(path: Path | None) -> tuple[AudioEncoderConfig | None, LazyTensors, Leftovers]:
    if path is None:
        return None, {}, {}
    with _naming(path):
        return read_encoder(open_published(path))


def _sources(*paths: Path | None) -> Sources:
    """Of Whisper, the audio encoder and the LLM."""
    return Sources(*(None if path is None else PartSource(str(path), {}) for path in paths))


def _prompt_config(
    llm: Path, llm_config: dict[str, Any], rows: int, options: PromptOptions
) -> tuple[PromptConfig, str]:
    """The prompt's settings, and where its template is from."""
    with tokenizer_file(llm, rows) as file:
        tokenizer = Tokenizer(file)
    if tokenizer.vocab_size > rows:
        sizes = f"{tokenizer.vocab_size} tokens, the LLM {rows}"
        raise CheckpointError(f"{llm / 'tokenizer.json'} has {sizes}: they do not belong together")
    own = options.template is None
    template = read_chat_template(llm) if own else ChatTemplate(str(options.template), "given")
    end = options.end_symbol if options.end_symbol is not None else read_end_symbol(llm, tokenizer)
    bos = None if template.complete else read_bos(llm, llm_config, tokenizer)
    if bos is not None and bos in tokenizer.encode(template.text)[:1]:
        bos = None  # a template that was given with its beginning symbol
    config = PromptConfig(
        template=template.text,
        tasks=read_prompts(options.prompts) if options.prompts else TASKS,
        bos_token_id=bos,
        stop_token_ids=stop_ids(llm, llm_config, tokenizer, end),
        end_symbol=end,
    )
    return config, template.origin


def _new_tensors(config: ModelConfig, pretrained: dict[str, LazyTensors], seed: int) -> dict[str, Tensor]:
    """Q-Former and adapters of the usual initial values; the pretrained tensors are checked against their places.

    The pretrained parts are laid out without memory, so that this takes no more than the new tensors and one of theirs.
    """
    check_encoder(config.whisper, pretrained["whisper"], "whisper")
    if config.audio_encoder is not None:
        check_encoder(config.audio_encoder, pretrained["audio_encoder"], "audio_encoder")
    check_llm(config.llm, pretrained["llm"])
    with torch.device("meta"):
        llm = build_llm(config.llm, config.lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors = {f"qformer.{name}": value for name, value in QFormer(config).state_dict().items()}
        return tensors | {f"lora.{name}": _new_adapter(name, p.shape) for name, p in lora_parameters(llm).items()}


def _new_adapter(name: str, shape: torch.Size) -> Tensor:
    """peft's initial values: A as nn.Linear's, B zero, so that the LLM is at first what it was."""
    if name.endswith(".B"):
        return torch.zeros(shape)
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))


def format_assembly(assembly: Assembly) -> str:
    """The assembly as text: its parts, what is new, and how the LLM is prompted."""
    config, prompt = assembly.config, assembly.config.prompt
    window = config.qformer.window
    encoder = config.audio_encoder
    beside = f"{encoder.kind} ({encoder.layers} layers of {encoder.dim})" if encoder else "no audio encoder"
    reasons = Counter(assembly.leftovers.values())
    longest = window.count(round(config.audio.max_s * FRAMES_PER_S)) * window.num_queries
    stops = " ".join(map(str, prompt.stop_token_ids))
    return "\n".join(
        [
            f"Whisper ({config.whisper.layers} layers of {config.whisper.d_model}), {beside}, LLM {config.name} "
            f"({config.llm['model_type']}, {config.llm_dim} wide)",
            *(f"left out: {count} of {encoder.kind}'s keys ({reason})" for reason, count in reasons.items() if encoder),
            f"new: {assembly.new_parameters:,} parameters; {longest} embeddings for {config.audio.max_s:g} s of audio",
            f"prompt: {prompt.template!r} ({assembly.template_origin}); "
            + (
                "no beginning symbol before it" if prompt.bos_token_id is None else f"after token {prompt.bos_token_id}"
            ),
            f"answers end with {prompt.end_symbol!r} and stop at tokens {stops}",
        ]
    )
