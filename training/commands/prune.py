"""`salmonrun prune {sensitivity,apply,publish}`: their options, and what they do with them."""

import argparse
import sys

from salmonrun.runtime.errors import MissingExtraError

# As in training/pruning, which is not imported to explain itself: it needs PyTorch. A test compares them.
PARTS = ("llm", "whisper", "audio_encoder")
CRITERIA = ("loss", "perplexity", "influence", "angular", "taylor")
SEARCHES = ("one-shot", "greedy", "contiguous")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sensitivity(commands)
    _add_apply(commands)
    _add_publish(commands)


def _add_sensitivity(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    measuring = commands.add_parser(
        "sensitivity",
        help="how much a model needs each of its layers",
        description="Leave out every layer of the LLM and of the encoders in turn, and measure what becomes of the "
        "answers to your recordings; and, in one pass, what each layer changes. Prints a table, and writes "
        "sensitivity.json and sensitivity.png. A run that was cut goes on where it stopped.",
    )
    measuring.add_argument("checkpoint", metavar="CHECKPOINT")
    measuring.add_argument("--data", required=True, metavar="ANNOTATION", help="recordings with their answers")
    measuring.add_argument("--out", required=True, metavar="DIR", help="folder of the results")
    measuring.add_argument("--limit", type=int, help="only the first so many recordings")
    measuring.add_argument(
        "--part", action="append", choices=PARTS, dest="parts", help="only its layers; may be repeated (default: all)"
    )
    measuring.set_defaults(run=_sensitivity)


def _add_apply(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    applying = commands.add_parser(
        "apply",
        help="a checkpoint without some of its layers",
        description="Write a checkpoint without the layers that it needs least. Those that stay are numbered anew; the "
        "checkpoint, and every bundle made of it, records which they were. The part that is pruned is trained on "
        "afterwards: salmonrun finetune.",
        epilog="example: %(prog)s checkpoint/ pruned/ --llm 0.3 --whisper 0.3 --measured sensitivity/",
    )
    applying.add_argument("checkpoint", metavar="CHECKPOINT")
    applying.add_argument("out", metavar="OUT", help="folder to create")
    for part in PARTS:
        what = {"llm": "the LLM's", "whisper": "Whisper's", "audio_encoder": "BEATs' or EAT's"}[part]
        option = f"--{part.replace('_', '-')}"
        applying.add_argument(option, type=float, metavar="SHARE", help=f"share of {what} layers to leave out")
    applying.add_argument(
        "--low-rank",
        type=_low_rank,
        metavar="whisper=SHARE",
        help="split Whisper's linear layers into two thin ones that keep this share of their weights; needs --data",
    )
    applying.add_argument("--criterion", choices=CRITERIA, default="loss", help="default: loss")
    applying.add_argument(
        "--search",
        choices=SEARCHES,
        default="one-shot",
        help="the least needed by one measurement, measured again after every one, or side by side (default: one-shot)",
    )
    applying.add_argument("--protect", type=int, default=1, help="layers at each end that stay (default: 1)")
    applying.add_argument(
        "--merge",
        action="store_true",
        help="a layer that stays becomes the mean of itself and those left out behind it",
    )
    applying.add_argument("--measured", metavar="DIR", help="what prune sensitivity wrote, instead of measuring here")
    applying.add_argument("--data", metavar="ANNOTATION", help="recordings with their answers, to measure on")
    applying.add_argument("--limit", type=int, help="only the first so many of them")
    applying.add_argument("--dry-run", action="store_true", help="only say what it would be")
    applying.set_defaults(run=_apply)


def _add_publish(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    publishing = commands.add_parser(
        "publish",
        help="a checkpoint in the layout of NOTA-09's files",
        description="Write what was trained of a checkpoint, and the numbers of the layers it goes without, as the "
        ".pth that NOTA-09's code loads. LLM, Whisper and audio encoder are not in it: it needs them as they are "
        "published. salmonrun convert reads it back.",
    )
    publishing.add_argument("checkpoint", metavar="CHECKPOINT")
    publishing.add_argument("pth", metavar="PTH", help="file to create")
    publishing.set_defaults(run=_publish)


def _low_rank(text: str) -> float:
    part, _, share = text.partition("=")
    try:
        if part == "whisper":
            return float(share)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not whisper=SHARE, such as whisper=0.5")


def _sensitivity(arguments: argparse.Namespace) -> int:
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.pruning.report import PICTURE, draw_sensitivity, format_sensitivity
    from salmonrun.training.pruning.sensitivity import RESULT, measure_sensitivity

    quiet_transformers()
    found = measure_sensitivity(
        arguments.checkpoint, arguments.data, arguments.out, arguments.limit, arguments.parts, progress=True
    )
    print(format_sensitivity(found))
    print(f"\n{arguments.out}/{RESULT}: the same; salmonrun prune apply --measured {arguments.out} takes it")
    try:
        draw_sensitivity(found, f"{arguments.out}/{PICTURE}")
        print(f"{arguments.out}/{PICTURE}: loss by the layer that is left out")
    except MissingExtraError as error:  # hours of measuring are not lost for it
        print(f"no picture: {error}", file=sys.stderr)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.pruning.predict import cost, format_costs
    from salmonrun.training.pruning.prune import PruneOptions, prune

    quiet_transformers()
    pruned = prune(arguments.checkpoint, arguments.out, PruneOptions.of(arguments), arguments.dry_run, progress=True)
    for part, gone in pruned.gone.items():
        print(f"{part}: without layers {' '.join(map(str, gone))}")
    if pruned.explained:
        least = min(pruned.explained, key=lambda name: pruned.explained[name])
        mean = sum(pruned.explained.values()) / len(pruned.explained)
        print(
            f"whisper: {len(pruned.explained)} linear layers of low rank keep {mean:.1%} of the variance of what they "
            f"give; the least, {pruned.explained[least]:.1%}, keeps {least}"
        )
    print(format_costs(cost(pruned.before), cost(pruned.after)))
    if arguments.dry_run:
        print("nothing was written; how long it takes on a machine, salmonrun latency measures on a bundle")
    else:
        print(f"{arguments.out}: pruned; salmonrun finetune trains what is left")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    from salmonrun.training.pruning.published import write_published

    write_published(arguments.checkpoint, arguments.pth)
    print(
        f"{arguments.pth}: the layout of NOTA-09's files; salmonrun convert reads it with the parts it was trained on"
    )
    return 0
