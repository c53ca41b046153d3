"""Commands around checkpoints: python -m training {init,convert,finetune,synthesize,data,evaluate}."""

import argparse
import sys

import transformers

from runtime.config import AudioConfig
from runtime.errors import CheckpointError, SalmonrunError
from training.annotation import Problem, check_entry, read_annotation
from training.config import load_config
from training.convert import convert_salmonn, format_report
from training.data_report import describe, draw
from training.evaluate_command import add_evaluate, run_evaluate
from training.finetune import finetune
from training.init_command import add_init, run_init
from training.recipe import load_recipe
from training.synthesize_command import add_synthesize, run_synthesize


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run a command; 1 on an error the user can mend, 2 on wrong arguments."""
    arguments = _parser().parse_args(argv)
    transformers.logging.set_verbosity_error()
    try:
        arguments.run(arguments)
    except (SalmonrunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Make and convert checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_init(commands).set_defaults(run=_init)
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
    _add_training_commands(commands)
    return parser


def _add_training_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    tuning = commands.add_parser(
        "finetune",
        help="train a checkpoint by a YAML recipe",
        description="Train the chosen parts of a checkpoint. Snapshots and the final checkpoint go to run.out.",
        epilog="example: python -m training finetune --cfg-path stage1.yaml --options run.lr=1e-5 run.steps=2000",
    )
    tuning.add_argument("--cfg-path", required=True, metavar="FILE", help="the recipe")
    tuning.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings to override")
    tuning.add_argument("--resume", action="store_true", help="go on from the latest snapshot in run.out")
    tuning.set_defaults(run=_finetune)

    add_evaluate(commands).set_defaults(run=_evaluate)
    add_synthesize(commands).set_defaults(run=_synthesize)

    data = commands.add_parser("data", help="look at annotations").add_subparsers(required=True, metavar="COMMAND")
    checking = data.add_parser(
        "check",
        help="report every entry that cannot be used",
        description="Check annotations and the headers of their recordings against a checkpoint's tasks and window.",
    )
    checking.add_argument("checkpoint", metavar="CHECKPOINT")
    checking.add_argument("annotation", metavar="ANNOTATION", nargs="+")
    checking.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    checking.set_defaults(run=_check_data)

    reporting = data.add_parser(
        "report",
        help="what there is: counts, durations, text lengths",
        description="Print counts, hours, durations, text lengths, sample rates and problems by data set and task.",
    )
    reporting.add_argument("annotation", metavar="ANNOTATION", nargs="+")
    reporting.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    reporting.add_argument(
        "--checkpoint", help="whose tasks and window entries must fit (default: any task, recordings up to 30 s)"
    )
    reporting.add_argument("--out", metavar="FILE.png", help="draw the distributions, too (needs matplotlib)")
    reporting.set_defaults(run=_report_data)


def _init(arguments: argparse.Namespace) -> None:
    print(run_init(arguments))


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


def _finetune(arguments: argparse.Namespace) -> None:
    final = finetune(load_recipe(arguments.cfg_path, arguments.options), arguments.resume)
    print(f"{final}: trained; python -m export {final} BUNDLE makes a bundle of it")


def _synthesize(arguments: argparse.Namespace) -> None:
    print(run_synthesize(arguments))


def _evaluate(arguments: argparse.Namespace) -> None:
    print(run_evaluate(arguments))


def _check_data(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.checkpoint)
    problems: list[Problem] = []
    count = 0
    for file in arguments.annotation:
        entries, broken = read_annotation(file, arguments.prefix)
        problems += broken
        count += len(entries) + len(broken)
        for entry in entries:
            if reason := check_entry(entry, config.prompt, config.audio):
                problems.append(Problem(entry.dataset, entry.index, reason))
    print("\n".join([*map(str, problems), f"{count - len(problems)} of {count} entries can be used"]))
    if problems:
        raise CheckpointError(f"{len(problems)} entries cannot be used")


def _report_data(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.checkpoint) if arguments.checkpoint else None
    prompts, audio = (config.prompt, config.audio) if config else (None, AudioConfig())
    report = describe(arguments.annotation, arguments.prefix, prompts, audio)
    print(report.table())
    if arguments.out:
        draw(report, arguments.out)
        print(f"{arguments.out}: chart of the distributions")


if __name__ == "__main__":
    sys.exit(main())
