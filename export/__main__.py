"""The exporter: python -m export CHECKPOINT BUNDLE."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import transformers

from salmonrun.export.bundle import export_bundle
from salmonrun.export.options import DEFAULT_MAX_LENGTH, ExportOptions
from salmonrun.export.parity.gate import PARITY
from salmonrun.runtime import SalmonrunError, load_audio


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and export; 1 on an error the user can mend, 2 on wrong arguments."""
    arguments = _parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        options = ExportOptions(
            encoder_precision=arguments.encoder_precision,
            llm_precision=arguments.llm_precision,
            target=arguments.target,
            window=arguments.window,
            max_length=arguments.max_length,
            parity_budget=arguments.parity_budget,
            lora_scale=arguments.lora_scale,
        )
        golden = load_audio(arguments.golden_audio) if arguments.golden_audio else None
        out = export_bundle(arguments.checkpoint, arguments.bundle, options, golden, progress=not arguments.quiet)
    except (SalmonrunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_summary(out)
    return 0


def _parser() -> argparse.ArgumentParser:
    default = ExportOptions()
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a checkpoint into a bundle, prove it against PyTorch, and write it only if it holds.",
        epilog="example: python -m export checkpoint/ bundle/ --encoder-precision int8 --llm-precision int4",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder with config.json and model.safetensors")
    parser.add_argument("bundle", metavar="BUNDLE", help="folder to create")
    parser.add_argument("--encoder-precision", choices=("fp32", "int8"), default=default.encoder_precision)
    parser.add_argument("--llm-precision", choices=("fp32", "int8", "int4"), default=default.llm_precision)
    parser.add_argument("--target", choices=("cpu", "cuda"), default=default.target, help="default: cpu")
    parser.add_argument(
        "--window",
        choices=("padded", "trimmed"),
        help="padded: Whisper always hears 30 s, as published; trimmed: only what the recording fills, which is faster "
        "and an approximation unless the checkpoint was trained so (default: as the checkpoint says)",
    )
    parser.add_argument(
        "--max-length", type=int, default=DEFAULT_MAX_LENGTH, help=f"KV positions (default: {DEFAULT_MAX_LENGTH})"
    )
    parser.add_argument(
        "--parity-budget",
        type=float,
        default=default.parity_budget,
        help=f"quantized bundles: largest relative error of any stage (default: {default.parity_budget})",
    )
    parser.add_argument(
        "--lora-scale",
        type=float,
        help="factor on the LLM's adapters, SALMONN's lora_scaling (default: alpha / r, as they were trained)",
    )
    parser.add_argument(
        "--golden-audio", metavar="FILE", help="recording to prove the bundle with (default: synthetic)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _print_summary(out: Path) -> None:
    parity: dict[str, Any] = json.loads((out / PARITY).read_text())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")
    for name, error in {**parity["stages"], "end to end": parity["end_to_end"]}.items():
        print(f"  {name:<13} largest difference {error['max_abs']:.1e}, relative {error['relative']:.1e}")
    print(f"  tokens      {parity['tokens_agreeing']} of {parity['tokens_compared']} are PyTorch's choice")


if __name__ == "__main__":
    sys.exit(main())
