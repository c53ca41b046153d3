"""`salmonrun export`: its options, and what it does with them."""

import argparse
from pathlib import Path
from typing import get_args

from salmonrun.export.options import (
    MOST_RECORDINGS,
    AudioWindow,
    Budget,
    EncoderPrecision,
    ExportDecoder,
    ExportEncoder,
    ExportOptions,
    LlmPrecision,
    Target,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    default = ExportOptions()
    parser.description = "Turn a checkpoint into a bundle, prove it against PyTorch, and write it only if it holds."
    parser.epilog = "example: %(prog)s checkpoint/ bundle/ --encoder-precision int8 --llm-precision int4"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder with config.json and model.safetensors")
    parser.add_argument("bundle", metavar="BUNDLE", help="folder to create")
    parser.add_argument(
        "--encoder-precision",
        choices=get_args(EncoderPrecision),
        default=default.encoder_precision,
        help="of Whisper and the audio encoder; bf16: on our own kernels alone; fp16: on GPUs alone (default: fp32)",
    )
    parser.add_argument(
        "--llm-precision",
        choices=get_args(LlmPrecision),
        help="nf4, QLoRA's 4 bits, keeps the values of an LLM that is stored so, and runs in the native and the torch "
        "decoder (default: fp32; int4 with --budget)",
    )
    parser.add_argument("--target", choices=get_args(Target), default=default.target, help="default: cpu")
    parser.add_argument(
        "--decoder",
        choices=get_args(ExportDecoder),
        help="what runs the LLM: onnx, ONNX Runtime; native, our own kernels for CPUs, of int8, int4, nf4; both, these "
        "two; torch, PyTorch, for GPUs (default: both where both can; else onnx, or for nf4 on a GPU torch)",
    )
    parser.add_argument(
        "--encoder",
        choices=get_args(ExportEncoder),
        help="what runs Whisper and the audio encoder: onnx is ONNX Runtime; native, our own kernels for CPUs "
        "(default: all that can, so that the bundle runs wherever either does; their weights are in it twice then)",
    )
    parser.add_argument(
        "--window",
        choices=get_args(AudioWindow),
        help="padded: Whisper always hears 30 s, as published; trimmed: only what the recording fills, which is faster "
        "and an approximation unless the checkpoint was trained so (default: as the checkpoint says)",
    )
    parser.add_argument(
        "--max-length", type=int, default=default.max_length, help=f"KV positions (default: {default.max_length})"
    )
    parser.add_argument(
        "--lora-scale",
        type=float,
        help="factor on the LLM's adapters, SALMONN's lora_scaling (default: alpha / r, as they were trained)",
    )
    _add_budgets(parser, default)
    _add_recordings(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run, settings=_settings)


def _add_budgets(parser: argparse.ArgumentParser, default: ExportOptions) -> None:
    """What it may lose by being quantized."""
    parser.add_argument(
        "--parity-budget",
        type=float,
        default=default.parity_budget,
        help=f"quantized bundles: largest relative error of any stage (default: {default.parity_budget})",
    )
    parser.add_argument(
        "--token-agreement",
        type=float,
        metavar="SHARE",
        default=default.token_agreement,
        help="quantized bundles: least share of the tokens that PyTorch is sure of which the bundle must choose, too "
        f"(default: {default.token_agreement})",
    )
    parser.add_argument(
        "--budget",
        metavar="MEASURE=LIMIT",
        help="with --calibration-speech: the smallest LLM within it, measured beside PyTorch along the answers to "
        "calibration recordings: int4, as many products in int8 as it takes, or all. agreement=0.99: of the likeliest "
        "tokens at least 99 %% are PyTorch's; kl=0.01: the Kullback-Leibler divergence is at most 0.01 nats a token",
    )
    parser.add_argument(
        "--encoder-budget",
        type=float,
        metavar="ERROR",
        help="with --encoder-precision int8 and --calibration-speech: the relative error (rms) that int8 may make in "
        "an encoder's states, as 0.02; the products that cost most stay in fp32, as many as it takes",
    )


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    """What it is proven and rounded on."""
    parser.add_argument(
        "--golden-audio", metavar="FILE", help="recording to prove the bundle with (default: synthetic)"
    )
    parser.add_argument(
        "--parity-speech",
        metavar="ANNOTATION",
        help="quantized bundles: recordings with transcripts to compare the tokens on, the first "
        f"{MOST_RECORDINGS} of them (default: six that come with the project)",
    )
    parser.add_argument(
        "--calibration-speech",
        metavar="ANNOTATION",
        help="recordings with transcripts. On every other one, int4 weights are rounded so that the LLM changes least "
        "(GPTQ); the answers to all give the bundle the score below which are at most 2 %% of them, if they are 50 or "
        "more (default: the nearest values, no threshold)",
    )


def _settings(arguments: argparse.Namespace) -> ExportOptions:
    budget = Budget.parse(arguments.budget) if arguments.budget is not None else None
    return ExportOptions(
        encoder_precision=arguments.encoder_precision,
        llm_precision=arguments.llm_precision or ("int4" if budget else ExportOptions.llm_precision),
        target=arguments.target,
        decoder=arguments.decoder,
        encoder=arguments.encoder,
        window=arguments.window,
        max_length=arguments.max_length,
        parity_budget=arguments.parity_budget,
        token_agreement=arguments.token_agreement,
        lora_scale=arguments.lora_scale,
        budget=budget,
        encoder_budget=arguments.encoder_budget,
    )


def _run(arguments: argparse.Namespace, options: ExportOptions) -> int:
    """Export, and say how near it comes to PyTorch."""
    from salmonrun.export.bundle import export_bundle
    from salmonrun.runtime.audio import load_audio
    from salmonrun.training.commands.quiet import quiet_transformers

    quiet_transformers()
    golden = load_audio(arguments.golden_audio) if arguments.golden_audio else None
    out = export_bundle(
        arguments.checkpoint,
        arguments.bundle,
        options,
        golden,
        arguments.calibration_speech,
        arguments.parity_speech,
        progress=not arguments.quiet,
    )
    _print_summary(out, arguments.calibration_speech)
    return 0


def _print_summary(out: Path, speech: str | None) -> None:
    from salmonrun.runtime.bundle import open_bundle
    from salmonrun.runtime.parity import read_parity

    parity = read_parity(open_bundle(out, verify=False))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 2**20:.1f} MiB")
    width = max(map(len, parity.measured))
    for name, error in parity.measured.items():
        print(f"  {name:<{width}}  largest difference {error.max_abs:.1e}, relative {error.relative:.1e}")
    print(f"  {'tokens':<{width}}  {parity.tokens_agreeing} of {parity.tokens_compared} are PyTorch's choice")
    for tokens in parity.on_speech:
        print(f"  {'speech':<{width}}  {tokens}")
    if parity.choice:
        print(f"  {'budget':<{width}}  {parity.choice.budget}, of {parity.choice.tokens} tokens")
        for line in parity.choice.lines:
            print(f"  {'':<{width}}  {line}")
    for products in parity.encoders:
        print(f"  {'encoders':<{width}}  {products}")
    print(f"  {'demanded':<{width}}  {parity.demanded}")
    print(f"  {'confidence':<{width}}  {_confidence(out, speech)}")


def _confidence(out: Path, speech: str | None) -> str:
    """Which threshold the bundle has, or why none."""
    from salmonrun.runtime.bundle import open_bundle

    threshold = open_bundle(out, verify=False).manifest.confidence
    if threshold is None and speech is None:
        return "no threshold; --calibration-speech ANNOTATION measures one"
    if threshold is None:
        return f"no threshold: fewer than 50 recordings of {speech} with speech were answered"
    below = f"{threshold.false_rejection:.1%} of {threshold.recordings} recordings of {threshold.annotation}"
    return f"threshold {threshold.score:.3f}, mean log probability of a token; {below} are below it"
