"""Commands of the engine: python -m runtime {transcribe,check}."""

import argparse
import io
import json
import os
import sys
from dataclasses import asdict

from runtime import Engine, GenerationConfig, SalmonrunError
from runtime.check import check
from runtime.engine import Result


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run a command; 1 on an error the user can mend, 2 on wrong arguments."""
    arguments = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be valid text
    try:
        return int(arguments.run(arguments))
    except SalmonrunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Run an exported audio language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    transcribe = commands.add_parser(
        "transcribe",
        help="answer a prompt about recordings",
        description="Answer a prompt about each recording: by default, write down what is said.",
        epilog="example: python -m runtime transcribe bundle/ talk.wav --num-beams 4",
    )
    _add_engine_arguments(transcribe)
    transcribe.add_argument("files", nargs="+", metavar="FILE", help="recordings: wav, flac, ogg or mp3")
    what = transcribe.add_mutually_exclusive_group()
    what.add_argument("--task", help="a task the bundle has a prompt for (default: asr)")
    what.add_argument("--prompt", help="an instruction in your own words, e.g. 'Describe the background.'")
    transcribe.add_argument("--question", help="fills the {} of the task's prompt, where it has one")
    transcribe.add_argument("--num-beams", type=int, default=1, help="beams of the search (default: 1, greedy)")
    transcribe.add_argument("--max-new-tokens", type=int, default=200, help="longest answer (default: 200)")
    transcribe.add_argument("--json", action="store_true", help="print one JSON object a line, with timings")
    transcribe.set_defaults(run=_transcribe)

    checking = commands.add_parser(
        "check",
        help="prove that this machine computes what the exporter did",
        description="Verify every file's hash, then replay the bundle's golden run and compare logits and tokens.",
    )
    _add_engine_arguments(checking)
    checking.add_argument("--json", action="store_true", help="print the outcome as JSON")
    checking.set_defaults(run=_check)
    return parser


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by python -m export")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, default=None, help="default: all usable cores")


def _load(arguments: argparse.Namespace) -> Engine:
    return Engine.load(arguments.bundle, device=arguments.device, threads=arguments.threads)


def _transcribe(arguments: argparse.Namespace) -> int:
    config = GenerationConfig(max_new_tokens=arguments.max_new_tokens, num_beams=arguments.num_beams)
    task = "asr" if arguments.task is None and arguments.prompt is None else arguments.task
    engine = _load(arguments)
    failed = 0
    for file in arguments.files:
        try:
            result = engine.generate(
                file, task=task, prompt=arguments.prompt, question=arguments.question, config=config
            )
        except SalmonrunError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
            continue
        _print_result(file, result, arguments.json)
    return 1 if failed else 0


def _print_result(file: str, result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": file, **asdict(result)}, ensure_ascii=False), flush=True)
        return
    print(f"{file}: {result.text.strip()}", flush=True)
    timings = result.timings
    notes = "".join(f"; {note}" for note in result.notes)
    print(
        f"  {timings.audio_s:.1f} s of audio in {timings.total_s:.2f} s, first token after {timings.ttft_s:.2f} s, "
        f"{len(result.token_ids)} tokens, ended by {result.finish_reason}{notes}",
        file=sys.stderr,
        flush=True,
    )


def _check(arguments: argparse.Namespace) -> int:
    engine = _load(arguments)
    report = check(engine)
    if arguments.json:
        print(json.dumps({**asdict(report), "passed": report.passed, "engine": asdict(engine.report())}))
        return 0 if report.passed else 1
    print(f"files     every size and sha256 as exported ({len(engine.bundle.manifest.files)} files)")
    print(f"logits    largest difference {report.logits_difference:.2e}, allowed {report.tolerance:.2e}")
    print(
        f"tokens    {report.tokens - len(report.differing)} of {report.tokens} as exported"
        f" ({report.near_ties} near-ties may differ)"
    )
    print("passed" if report.passed else "FAILED: this machine does not compute what the exporter did")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
