"""`salmonrun convert`: its options, and what it does with them."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Turn a SALMONN or Nota .pth, and the frozen parts it was trained on, into a checkpoint folder that refers to "
        "them. Each is a path or an id on the hub: org/name or org/name/file, or with @revision."
    )
    parser.epilog = (
        "example: %(prog)s salmonn_7b_v0.pth checkpoint/ --whisper whisper-large-v2/ "
        "--audio-encoder BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt --llm lmsys/vicuna-7b-v1.5"
    )
    parser.add_argument("pth", metavar="PTH", help="the published or self-trained file")
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument("--whisper", required=True, help="transformers folder or OpenAI .pt, or a hub id")
    parser.add_argument(
        "--audio-encoder",
        "--beats",  # as SALMONN's config calls it
        help="BEATs or EAT: .pt or folder; leave out if the model was trained without",
    )
    parser.add_argument(
        "--llm", required=True, help="transformers folder with safetensors and a tokenizer, or a hub id"
    )
    parser.add_argument("--prompts", help="JSON of task -> prompt or prompts (default: our own)")
    parser.add_argument("--end-symbol", help="text that ends an answer (default: the file's own)")
    parser.add_argument("--adapter", help="PEFT folder: the LLM's adapters, where the file has none of its own")
    parser.add_argument(
        "--merge-adapter", action="store_true", help="add --adapter to the LLM's weights, under the file's own adapters"
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="leave out the layers that the file lists (default: only if its own config has `prune: True`)",
    )
    parser.add_argument(
        "--qformer-heads", type=int, help="attention heads of the Q-Former (default: as many as 64 goes into its width)"
    )
    parser.add_argument("--max-s", type=float, help="longest recording the model hears, in seconds (default: 30)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.starting.convert import convert_salmonn, format_conversion

    quiet_transformers()
    conversion = convert_salmonn(
        arguments.pth,
        arguments.out,
        whisper=arguments.whisper,
        audio_encoder=arguments.audio_encoder,
        llm=arguments.llm,
        prompts=arguments.prompts,
        end_symbol=arguments.end_symbol,
        adapter=arguments.adapter,
        merge_adapter=arguments.merge_adapter,
        prune=arguments.prune,
        qformer_heads=arguments.qformer_heads,
        max_s=arguments.max_s,
    )
    for warning in conversion.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.out}: {format_conversion(conversion)}")
    return 0
