"""Commands around checkpoints: python -m training {init,convert}."""

import argparse
import sys

import torch
import transformers

from runtime.errors import SalmonrunError
from training.convert import convert_salmonn, format_report
from training.init import init_checkpoint
from training.presets import PRESETS, preset

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run a command; 1 on an error the user can mend, 2 on wrong arguments."""
    arguments = _parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        arguments.run(arguments)
    except SalmonrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Make and convert checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser(
        "init",
        help="a checkpoint of random weights",
        description="Write a checkpoint of random weights in the given size, to try the tools with. It knows nothing.",
    )
    init.add_argument("out", metavar="OUT", help="folder to create")
    init.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="model size (default: tiny)")
    init.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    init.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the stored weights")
    init.set_defaults(run=_init)

    convert = commands.add_parser(
        "convert",
        help="a published SALMONN .pth becomes a checkpoint",
        description="Turn a SALMONN or Nota .pth, and the frozen parts it was trained on, into a checkpoint folder.",
        epilog="example: python -m training convert salmonn_7b_v0.pth checkpoint/ --whisper whisper-large-v2/ "
        "--beats BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt --llm vicuna-7b-v1.5/",
    )
    convert.add_argument("pth", metavar="PTH", help="the published or self-trained file")
    convert.add_argument("out", metavar="OUT", help="folder to create")
    convert.add_argument("--whisper", required=True, help="transformers folder or OpenAI .pt")
    convert.add_argument("--beats", help="BEATs .pt; leave out if the model was trained without")
    convert.add_argument("--llm", required=True, help="transformers folder with safetensors and tokenizer.json")
    convert.add_argument("--prompts", help="JSON of task -> prompt or prompts (default: our own)")
    convert.add_argument("--end-symbol", help="text that ends an answer (default: the file's own)")
    convert.set_defaults(run=_convert)
    return parser


def _init(arguments: argparse.Namespace) -> None:
    init_checkpoint(preset(arguments.preset), arguments.out, arguments.seed, DTYPES[arguments.dtype])
    print(f"{arguments.out}: random weights of preset {arguments.preset}")


def _convert(arguments: argparse.Namespace) -> None:
    report = convert_salmonn(
        arguments.pth,
        arguments.out,
        whisper=arguments.whisper,
        beats=arguments.beats,
        llm=arguments.llm,
        prompts=arguments.prompts,
        end_symbol=arguments.end_symbol,
    )
    print(f"{arguments.out}: {format_report(report)}")


if __name__ == "__main__":
    sys.exit(main())
