"""`salmonrun init`: its options, and what it does with them."""

import argparse
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.model.sizes import LoraConfig, QFormerConfig
from salmonrun.training.starting.preset_names import PRESET_NAMES

VOCAB_SIZE = 640
DTYPES = ("float32", "float16", "bfloat16")  # as PyTorch calls them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Write a checkpoint to be trained: pretrained parts around a new Q-Former. With --preset, or without any "
        "option, random weights in the given size, to try the tools with: they know nothing."
    )
    parser.epilog = (
        "example: %(prog)s start/ --whisper whisper-large-v3/ --audio-encoder BEATs.pt --llm Llama-3.2-1B-Instruct/ "
        "--queries 2"
    )
    parser.argument_default = argparse.SUPPRESS  # what was not given is not there: see _run
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights (default: 0)")
    parser.set_defaults(run=_run)
    _add_part_arguments(parser.add_argument_group("pretrained parts"))
    _add_random_arguments(parser.add_argument_group("random weights"))


def _add_part_arguments(parts: "argparse._ArgumentGroup") -> None:
    qformer, lora, window = QFormerConfig(), LoraConfig(), WindowConfig()
    parts.add_argument("--whisper", type=Path, help="transformers folder or OpenAI .pt; only its encoder is used")
    parts.add_argument(
        "--audio-encoder", type=_path_or_none, help="BEATs .pt, EAT .pt or transformers folder, or none: Whisper alone"
    )
    parts.add_argument("--llm", type=Path, help="transformers folder with safetensors and tokenizer.json")
    parts.add_argument(
        "--copy",
        action="store_true",
        help="store the parts in OUT; else it refers to them, and they stay where they are",
    )
    parts.add_argument("--queries", type=int, help=f"embeddings a window yields (default: {window.num_queries})")
    parts.add_argument(
        "--window-frames",
        type=_frames,
        metavar="N|Ns",
        help=f"in frames of 20 ms or seconds (default: {window.frames})",
    )
    parts.add_argument("--stride", type=_frames, metavar="N|Ns", help="between windows (default: the window's length)")
    parts.add_argument("--qformer-dim", type=int, help=f"width (default: {qformer.dim})")
    parts.add_argument("--qformer-layers", type=int, help=f"default: {qformer.layers}")
    parts.add_argument("--lora-r", type=int, help=f"rank of the adapters on the LLM (default: {lora.r})")
    parts.add_argument("--lora-alpha", type=float, help=f"default: {lora.alpha}")
    parts.add_argument(
        "--lora-targets",
        type=_names,
        metavar="NAME,NAME",
        help=f"layers that have them (default: {','.join(lora.targets)})",
    )
    parts.add_argument("--no-lora", action="store_true", help="no adapters")
    parts.add_argument(
        "--audio-window",
        choices=("padded", "trimmed"),
        help="what Whisper hears: always 30 s, or only as much as the recording fills (default: padded)",
    )
    parts.add_argument("--max-s", type=float, help="longest recording the model hears, in seconds (default: 30)")
    parts.add_argument("--prompts", type=Path, help="JSON of task -> prompt or prompts (default: our own)")
    parts.add_argument("--template", help="text around a prompt, {} in its place (default: the LLM's chat template)")
    parts.add_argument("--end-symbol", help="text that ends an answer (default: the LLM's eos_token)")


def _add_random_arguments(random: "argparse._ArgumentGroup") -> None:
    random.add_argument("--preset", choices=PRESET_NAMES, help="model size (default: tiny)")
    random.add_argument(
        "--fresh", action="store_true", help="usual initial values, to be trained, instead of ones that show every part"
    )
    random.add_argument(
        "--texts", type=Path, nargs="+", metavar="ANNOTATION", help="learn the tokenizer's merges from their texts"
    )
    random.add_argument("--vocab-size", type=int, help="of the tokenizer, at most (default: 640 with --texts)")
    random.add_argument("--dtype", choices=DTYPES, help="of the stored weights (default: float32)")


def _frames(text: str) -> int:
    from salmonrun.training.foreign.published import seconds_to_frames

    try:
        return seconds_to_frames(float(text.removesuffix("s"))) if text.endswith("s") else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither frames (17) nor seconds (0.33s)") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _path_or_none(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _run(arguments: argparse.Namespace) -> int:
    """Write the checkpoint, around parts if any of their options is given."""
    from salmonrun.training.commands.quiet import quiet_transformers

    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "seed", "run")}
    random = {name for name in ("preset", "fresh", "texts", "vocab_size", "dtype") if name in given}
    if random and set(given) - random:
        raise ConfigError(f"--{min(random)} is for random weights; leave it out with pretrained parts")
    quiet_transformers()
    write = _init_from_parts if set(given) - random else _init_at_random
    print(f"{arguments.out}: {write(arguments, given)}")
    return 0


def _init_at_random(arguments: argparse.Namespace, given: dict[str, Any]) -> str:
    import torch

    from salmonrun.training.starting.init import init_checkpoint
    from salmonrun.training.starting.new_tokenizer import FIRST_MERGE
    from salmonrun.training.starting.presets import preset

    if "vocab_size" in given and "texts" not in given:
        raise ConfigError("--vocab-size without --texts: there is nothing to learn merges from")
    name = given.get("preset", "tiny")
    dtype, fresh = getattr(torch, given.get("dtype", "float32")), given.get("fresh", False)
    texts = [text for file in given.get("texts", ()) for text in _texts(file)]
    vocab_size = given.get("vocab_size", VOCAB_SIZE) if texts else FIRST_MERGE
    init_checkpoint(preset(name), arguments.out, arguments.seed, dtype, fresh, texts, vocab_size)
    return f"random weights of preset {name}"


def _texts(file: Path) -> list[str]:
    """What an annotation's recordings say, and what is asked about them, each also as it stands within a line."""
    from salmonrun.training.data.annotation import read_annotation

    entries, problems = read_annotation(file)
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    said = [text for entry in entries for text in (entry.text, entry.question) if text]
    return [*said, *(f" {text}" for text in said)]


def _init_from_parts(arguments: argparse.Namespace, given: dict[str, Any]) -> str:
    from salmonrun.training.starting.assemble import PromptOptions, assemble, format_assembly, qformer_config

    needed = {"whisper": "a folder or .pt", "audio_encoder": "a .pt, a folder or none", "llm": "a folder"}
    for part, what in needed.items():
        if part not in given:
            option = part.replace("_", "-")
            raise ConfigError(f"--{option} is missing; give {what} (or only --preset, for random weights)")
    adapters = {name: given[f"lora_{name}"] for name in ("r", "alpha", "targets") if f"lora_{name}" in given}
    if adapters and "no_lora" in given:
        raise ConfigError(f"--no-lora and --lora-{min(adapters)} contradict each other; leave one out")
    frames = given.get("window_frames", WindowConfig().frames)
    window = WindowConfig(frames, given.get("stride", frames), given.get("queries", WindowConfig().num_queries))
    assembly = assemble(
        arguments.out,
        whisper=given["whisper"],
        audio_encoder=given["audio_encoder"],
        llm=given["llm"],
        qformer=qformer_config(given.get("qformer_dim"), given.get("qformer_layers"), window),
        lora=None if "no_lora" in given else LoraConfig(**adapters),
        audio_window=given.get("audio_window", "padded"),
        max_s=given.get("max_s"),
        prompt=PromptOptions(given.get("prompts"), given.get("template"), given.get("end_symbol")),
        copy=given.get("copy", False),
        seed=arguments.seed,
    )
    return format_assembly(assembly)
