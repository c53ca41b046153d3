"""`python -m training finetune`: its options, and what it does with them."""

import argparse

from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import load_recipe


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    tuning = commands.add_parser(
        "finetune",
        help="train a checkpoint by a YAML recipe",
        description="Train the chosen parts of a checkpoint. Snapshots and the final checkpoint go to run.out.",
        epilog="example: python -m training finetune --cfg-path stage1.yaml --options run.lr=1e-5 run.steps=2000",
    )
    tuning.add_argument("--cfg-path", required=True, metavar="FILE", help="the recipe")
    tuning.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="settings to override")
    tuning.add_argument("--resume", action="store_true", help="go on from the latest snapshot in run.out")
    tuning.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> str:
    final = finetune(load_recipe(arguments.cfg_path, arguments.options), arguments.resume)
    return f"{final}: trained; python -m export {final} BUNDLE makes a bundle of it"
