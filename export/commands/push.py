"""`salmonrun push`: its options, and what it does with them."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Check a bundle and upload it to the Hugging Face Hub in one commit, with a model card: what it was checked "
        "for, sizes, licences, how to run it, and how good it is where that was evaluated. Log in with hf auth login."
    )
    parser.epilog = "example: %(prog)s bundle/ org/name --private --evaluation answers.jsonl"
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by salmonrun export")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="repository; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it private; one that is public is refused")
    parser.add_argument(
        *("--revision", "--branch"),
        metavar="BRANCH",
        help="branch to commit to, made if it is not there (default: main)",
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: which model, by which exporter)")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="FILE",
        help="what evaluate --out wrote about this bundle, for the card; may be given several times (extra: train)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Push, and say what was written."""
    from salmonrun.export.push import push_bundle

    done = push_bundle(
        arguments.bundle,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
        evaluations=arguments.evaluation,
    )
    removed = f", {done.removed} of the bundle before removed" if done.removed else ""
    print(f"{done.repo_id}@{done.commit}: {done.files} files, {done.size / 2**20:.1f} MiB{removed}")
    print(done.url)
    return 0
