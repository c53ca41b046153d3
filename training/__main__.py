"""Commands around checkpoints: python -m training {init,convert,finetune,synthesize,data,evaluate}."""

import argparse
import sys
from pathlib import Path

import torch
import transformers

from runtime.config import GenerationConfig
from runtime.errors import CheckpointError, SalmonrunError
from training.annotation import Problem, check_entry, read_annotation
from training.config import load_config
from training.convert import convert_salmonn, format_report
from training.evaluate import Subject, evaluate
from training.finetune import finetune
from training.init import init_checkpoint
from training.presets import PRESETS, preset
from training.recipe import load_recipe
from training.synthesis import Plan, synthesize

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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

    init = commands.add_parser(
        "init",
        help="a checkpoint of random weights",
        description="Write a checkpoint of random weights in the given size, to try the tools with. It knows nothing.",
    )
    init.add_argument("out", metavar="OUT", help="folder to create")
    init.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="model size (default: tiny)")
    init.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    init.add_argument(
        "--fresh", action="store_true", help="usual initial values, to be trained, instead of ones that show every part"
    )
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

    measuring = commands.add_parser(
        "evaluate",
        help="score a checkpoint or a bundle on annotated recordings",
        description="Answer every entry of an annotation and print word error rates, exact matches and speed. "
        "Answers go to --out as they come; a run that was cut goes on where it stopped.",
    )
    measuring.add_argument("model", metavar="MODEL", help="a checkpoint or a bundle")
    measuring.add_argument("annotation", metavar="ANNOTATION")
    measuring.add_argument("--prefix", help="folder of relative paths (default: the annotation's own)")
    measuring.add_argument("--task", help="only entries of this task (default: all)")
    measuring.add_argument("--limit", type=int, help="only the first so many entries")
    measuring.add_argument("--out", required=True, metavar="FILE", help="answers as JSON lines")
    measuring.add_argument("--num-beams", type=int, default=1, help="default: 1, greedy")
    measuring.add_argument("--max-new-tokens", type=int, default=200, help="default: 200")
    measuring.set_defaults(run=_evaluate)

    plan = Plan()
    making = commands.add_parser(
        "synthesize",
        help="make a labelled data set without downloads",
        description="Write synthetic speech (espeak-ng, flite), sound events and mixtures with an annotation JSON.",
    )
    making.add_argument("out", metavar="OUT", help="folder to create")
    making.add_argument("--speech", type=int, default=plan.speech, help=f"spoken sentences (default: {plan.speech})")
    making.add_argument("--sounds", type=int, default=plan.sounds, help=f"sound events (default: {plan.sounds})")
    making.add_argument("--mixtures", type=int, default=plan.mixtures, help=f"both (default: {plan.mixtures})")
    making.add_argument("--seed", type=int, default=plan.seed, help=f"default: {plan.seed}")
    making.add_argument("--held-out", action="store_true", help="voices and sentences that no training set has")
    making.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    making.set_defaults(run=_synthesize)

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


def _init(arguments: argparse.Namespace) -> None:
    config, dtype = preset(arguments.preset), DTYPES[arguments.dtype]
    init_checkpoint(config, arguments.out, arguments.seed, dtype, arguments.fresh)
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


def _finetune(arguments: argparse.Namespace) -> None:
    final = finetune(load_recipe(arguments.cfg_path, arguments.options), arguments.resume)
    print(f"{final}: trained; python -m export {final} BUNDLE makes a bundle of it")


def _synthesize(arguments: argparse.Namespace) -> None:
    plan = Plan(arguments.speech, arguments.sounds, arguments.mixtures, arguments.seed)
    path = synthesize(arguments.out, plan, arguments.held_out, arguments.workers, progress=True)
    print(f"{path}: annotation of the data set")


def _evaluate(arguments: argparse.Namespace) -> None:
    entries, problems = read_annotation(arguments.annotation, arguments.prefix)
    if problems:
        raise CheckpointError("\n".join(map(str, problems)))
    chosen = [entry for entry in entries if arguments.task in (None, entry.task)][: arguments.limit]
    if not chosen:
        raise CheckpointError(f"{arguments.annotation} has no entry of task {arguments.task!r}")
    config = GenerationConfig(max_new_tokens=arguments.max_new_tokens, num_beams=arguments.num_beams)
    scores = evaluate(Subject(arguments.model), chosen, Path(arguments.out), config, progress=True)
    print(f"{'task':<20}{'entries':>8}{'WER':>8}{'WER spelled':>13}{'exact':>8}{'RTF':>8}")
    for task, result in scores.items():
        rates = f"{result.wer:>8.1%}{result.wer_spelled:>13.1%}{result.exact:>8.1%}{result.rtf:>8.3f}"
        print(f"{task:<20}{result.entries:>8}{rates}")


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


if __name__ == "__main__":
    sys.exit(main())
