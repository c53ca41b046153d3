"""`salmonrun batch`: its options, and what it does with them."""

import argparse
import sys
import time
from typing import TYPE_CHECKING

from salmonrun.runtime.commands.options import add_prompt_arguments
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.transcript import FORMATS

if TYPE_CHECKING:
    from salmonrun.runtime.server.ray.batch import Work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Write down what is said in each recording of a folder or bucket, on all machines of a Ray cluster, or on this "
        "one where there is none. What was killed is gone on with by running it again."
    )
    parser.epilog = "example: %(prog)s bundle/ s3://calls/2026/ --output s3://transcripts/2026/"
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by salmonrun export, which every machine has")
    parser.add_argument(
        "inputs", metavar="INPUTS", help="folder with recordings, also in its folders; or s3://, gs://, hdfs://, ..."
    )
    parser.add_argument(
        "--output", metavar="DIR", required=True, help="folder that gets NAME.FORMAT for each recording; or s3://, ..."
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="json", help="docs/output.md says what they hold (default: json)"
    )
    add_prompt_arguments(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda: a GPU for each engine")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPUs of each engine (default: 1)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="engines at once (default: as many as the CPUs of the cluster are for)"
    )
    parser.set_defaults(run=_run, settings=_settings)


def _settings(arguments: argparse.Namespace) -> None:
    for name in ("threads", "workers"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")


def _run(arguments: argparse.Namespace, _: None) -> int:
    """Transcribe what has no transcript yet; 1 if some of it could not be."""
    from salmonrun.runtime.bundle import open_bundle
    from salmonrun.runtime.server.ray.batch import left, transcribe

    open_bundle(arguments.bundle, verify=False)  # refuses here what would fail on every machine
    work = _work(arguments)
    names = left(work)
    print(f"{len(names)} recordings have no transcript yet", flush=True)
    if not names:
        return 0
    started, audio_s, failed = time.perf_counter(), 0.0, 0
    for outcome in transcribe(work, names, arguments.workers):
        audio_s += outcome.audio_s
        if outcome.error:
            failed += 1
            print(f"error: {outcome.name}: {outcome.error}", file=sys.stderr, flush=True)
    took_s = time.perf_counter() - started
    print(f"{len(names) - failed} transcripts of {audio_s:.0f} s of audio in {took_s:.0f} s, {failed} errors")
    return 1 if failed else 0


def _work(arguments: argparse.Namespace) -> "Work":
    from salmonrun.runtime.server.ray.batch import Place, Work

    return Work(
        bundle=arguments.bundle,
        inputs=Place.of(arguments.inputs),
        output=Place.of(arguments.output),
        form=arguments.format,
        task=arguments.task,
        prompt=arguments.prompt,
        question=arguments.question,
        device=arguments.device,
        threads=arguments.threads,
    )
