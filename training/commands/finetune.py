"""`salmonrun finetune`: its options, and what it does with them."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = "Train the chosen parts of a checkpoint. Snapshots and the final checkpoint go to run.out."
    parser.epilog = "example: %(prog)s --cfg-path stage1.yaml --options run.lr=1e-5 run.steps=2000"
    parser.add_argument("--cfg-path", required=True, metavar="FILE", help="the recipe")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings to override")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole snapshot in run.out")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from accelerate import PartialState

    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.finetuning.finetune import finetune
    from salmonrun.training.finetuning.recipe import load_recipe

    quiet_transformers()
    final = finetune(load_recipe(arguments.cfg_path, arguments.options), arguments.resume)
    if PartialState().is_main_process:  # of several, one has written it
        print(f"{final}: trained; salmonrun export {final} BUNDLE makes a bundle of it")
    return 0
