"""`salmonrun distill {train,answers}`: their options, and what it does with them."""

import argparse

from salmonrun.runtime.commands.options import add_device_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_answers(commands)


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    training = commands.add_parser(
        "train",
        help="train a student on its teacher's logits, hidden states and audio embeddings",
        description="Train the chosen parts of a checkpoint on what another one with the same tokenizer makes of the "
        "same recordings, beside the texts of the annotation. Snapshots and the final checkpoint go to run.out.",
        epilog="example: %(prog)s --cfg-path distill.yaml --options distill.teacher=checkpoint run.steps=2000",
    )
    training.add_argument("--cfg-path", required=True, metavar="FILE", help="the recipe")
    training.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings to override")
    training.add_argument("--resume", action="store_true", help="go on from the newest whole snapshot in run.out")
    training.set_defaults(run=_train)


def _add_answers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    answering = commands.add_parser(
        "answers",
        help="write the teacher's own answers as an annotation, for a student with another tokenizer",
        description="Answer every entry of an annotation, whose texts may be empty, and write one with these answers "
        "as texts. Empty answers, and such as repeat themselves without end, are left out. A run that was cut goes on "
        "where it stopped.",
        epilog="example: %(prog)s checkpoint/ mine.json answers.json --max-wer 0.1",
    )
    answering.add_argument("teacher", metavar="TEACHER", help="a checkpoint or a bundle")
    answering.add_argument("data", metavar="DATA", help="annotation of the recordings")
    answering.add_argument("out", metavar="OUT", help="annotation to write")
    answering.add_argument("--task", help="only entries of this task (default: all)")
    answering.add_argument("--limit", type=int, help="only the first so many entries")
    answering.add_argument("--min-score", type=float, help="leave out answers whose mean log probability is below this")
    answering.add_argument(
        "--max-wer", type=float, help="leave out transcriptions with more of the words wrong, where DATA has a text"
    )
    add_device_argument(answering)
    answering.add_argument("--threads", type=int, help="at most, and by default, all usable cores")
    answering.add_argument("--num-beams", type=int, default=1, help="default: 1, greedy")
    answering.add_argument("--max-new-tokens", type=int, default=200, help="default: 200")
    answering.set_defaults(run=_answers)


def _train(arguments: argparse.Namespace) -> int:
    from accelerate import PartialState

    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.distillation.distill import distill
    from salmonrun.training.distillation.recipe import load_distill_recipe

    quiet_transformers()
    final = distill(load_distill_recipe(arguments.cfg_path, arguments.options), arguments.resume)
    if PartialState().is_main_process:  # of several, one has written it
        print(f"{final}: distilled; salmonrun export {final} BUNDLE makes a bundle of it")
    return 0


def _answers(arguments: argparse.Namespace) -> int:
    from salmonrun.runtime.config import GenerationConfig
    from salmonrun.runtime.errors import CheckpointError
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.data.annotation import read_annotation
    from salmonrun.training.distillation.answers import Choice, write_answers
    from salmonrun.training.evaluation.evaluate import open_subject

    quiet_transformers()
    choice = Choice(arguments.min_score, arguments.max_wer)
    entries, problems = read_annotation(arguments.data)
    if problems:
        raise CheckpointError("\n".join(map(str, problems[:20])))
    chosen = [entry for entry in entries if arguments.task in (None, entry.task)][: arguments.limit]
    if not chosen:
        raise CheckpointError(f"{arguments.data} has no entry to be answered")
    config = GenerationConfig(max_new_tokens=arguments.max_new_tokens, num_beams=arguments.num_beams)
    teacher = open_subject(arguments.teacher, arguments.device, arguments.threads)
    written = write_answers(teacher, chosen, arguments.out, config, choice, progress=True)
    for reason, count in written.left_out.items():
        print(f"{count} of {len(chosen)} answers are left out: {reason}")
    print(f"{arguments.out}: {written.taken} answers; salmonrun finetune with data.train.0.annotation={arguments.out}")
    return 0
