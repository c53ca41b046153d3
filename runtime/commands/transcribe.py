"""`salmonrun transcribe`: its options, and what it does with them."""

import argparse
import sys
from typing import TYPE_CHECKING

from salmonrun.runtime.commands.generation import add_generation_arguments, generation_config
from salmonrun.runtime.commands.options import (
    add_engine_arguments,
    add_prompt_arguments,
    check_engine_arguments,
    load_engine,
)
from salmonrun.runtime.commands.progress import ProgressLine
from salmonrun.runtime.commands.transcripts.batch import DEFAULT_WORKERS, run_batch
from salmonrun.runtime.commands.transcripts.batch_progress import BatchProgress, length_s
from salmonrun.runtime.commands.transcripts.files import Plan, plan_files
from salmonrun.runtime.commands.transcripts.recordings import find_recordings
from salmonrun.runtime.commands.transcripts.transcriber import Transcriber
from salmonrun.runtime.commands.transcripts.view import ONE_AFTER_ANOTHER, View, open_view
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.transcript import FORMATS

if TYPE_CHECKING:
    from salmonrun.runtime import Segment
    from salmonrun.runtime.channel import Channel

Settings = tuple[GenerationConfig, Plan | list[str]]  # files to be written, or recordings for standard output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer a prompt about each recording: by default, write down what is said. One that is longer than the model "
        "hears at once is cut at its pauses. Transcripts go to standard output, or to files: then several recordings "
        "are answered about at once, those that have their files are skipped, and a run that was stopped goes on."
    )
    parser.epilog = "example: %(prog)s bundle/ talks/ -f srt,json -o subtitles --num-beams 4"
    add_engine_arguments(parser)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="recordings: wav, flac, ogg or mp3; folders of them, with all that is below; quoted patterns, as "
        "'talks/**/*.wav'; or -: a recording on standard input",
    )
    parser.add_argument(
        "--channel",
        type=_channel,
        default="first",
        help="of several: first (default; the loudest if the first is silent), mix, or a number from 0",
    )
    parser.add_argument("--strict", action="store_true", help="refuse a recording that is cut off; else a note says so")
    add_prompt_arguments(parser)
    parser.add_argument(
        "--reject", action="store_true", help="leave out what the bundle's confidence threshold says is not credible"
    )
    _add_output_arguments(parser)
    add_generation_arguments(parser)
    parser.set_defaults(run=_run, settings=_settings)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("what is written, and where", "docs/output.md says what the formats hold")
    form = out.add_mutually_exclusive_group()
    form.add_argument(
        *("--output-format", "-f", "--format"),
        dest="formats",
        type=_formats,
        default=("txt",),
        metavar="FORMAT",
        help="txt (default); json: all there is, one object a line; srt, vtt, tsv: subtitles, a cue for each part; "
        "several with commas, or all, into files",
    )
    form.add_argument("--json", dest="formats", action="store_const", const=("json",), help="the same as -f json")
    place = out.add_mutually_exclusive_group()
    place.add_argument(
        *("--output-dir", "-o"),
        metavar="DIR",
        help="write a file NAME.FORMAT for each recording, below DIR as the recordings lie in their folder "
        "(default: to standard output)",
    )
    place.add_argument("--beside", action="store_true", help="write it beside each recording")
    out.add_argument("--overwrite", action="store_true", help="do recordings again whose files are there")
    out.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"recordings that are answered about at once, into files (default: {DEFAULT_WORKERS})",
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    check_engine_arguments(arguments)
    config, recordings, formats = generation_config(arguments), find_recordings(arguments.paths), arguments.formats
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"workers is {arguments.workers}; it must be at least 1")
    if arguments.output_dir is not None or arguments.beside:
        return config, plan_files(recordings, formats, arguments.output_dir, arguments.overwrite)
    where = "say where with --output-dir DIR or --beside"
    if arguments.overwrite:
        raise ConfigError(f"--overwrite replaces files, and none are written; {where}")
    if arguments.workers is not None:
        raise ConfigError(f"--workers {arguments.workers} is for transcripts in files; {where}")
    if len(formats) > 1:
        raise ConfigError(f"formats {','.join(formats)} are written to a file each; {where}")
    if len(recordings) > 1 and formats[0] not in ONE_AFTER_ANOTHER:
        raise ConfigError(f"format {formats[0]} of {len(recordings)} recordings is written to a file each; {where}")
    return config, [recording.file for recording in recordings]


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Answer about all recordings; 1 if one of them could not be answered about."""
    config, work = settings
    if isinstance(work, Plan) and work.done:
        files = len(work.jobs) + work.done
        print(f"{work.done} of {files} recordings have their files; --overwrite does them again", file=sys.stderr)
    if isinstance(work, Plan) and not work.jobs:
        return 0
    asked = {name: getattr(arguments, name) for name in ("task", "prompt", "question", "channel", "strict")}
    transcriber = Transcriber(load_engine(arguments), asked, config, arguments.reject)
    transcriber.check()
    if isinstance(work, Plan):
        return _write_files(transcriber, work, arguments.workers or DEFAULT_WORKERS)
    return _print_all(transcriber, work, open_view(arguments.formats[0], sys.stdout, sys.stderr))


def _write_files(transcriber: Transcriber, plan: Plan, workers: int) -> int:
    """Several recordings at once, into files; in the end, what came of it all."""
    progress = BatchProgress([length_s(job.file) for job in plan.jobs], sys.stdout, sys.stderr)
    try:
        failed = run_batch(transcriber, plan.jobs, workers, progress)
    finally:
        progress.close()
    if len(plan.jobs) > 1:
        written = len(plan.jobs) - len(failed)
        print(f"{written} of {len(plan.jobs)} recordings written, {progress.total()}", file=sys.stderr)
        if failed:
            print(f"{len(failed)} failed:", file=sys.stderr)
        for outcome in failed:
            print(f"  {outcome.job.file}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def _print_all(transcriber: Transcriber, files: list[str], view: View) -> int:
    """Recording after recording, on standard output."""
    watcher, failed = _Shown(view), 0
    for file in files:
        try:
            transcript = transcriber.transcribe(file, watcher)
        finally:
            watcher.line.close()
        view.transcript(transcript)
        if transcript.error:
            failed += 1
            print(f"error: {file}: {transcript.error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


class _Shown:
    """Parts of a long recording as they come, and below them, on a terminal, how far it is."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.line = ProgressLine(sys.stderr)

    def part(self, file: str, duration_s: float, segment: "Segment | None") -> None:
        if segment is None:
            self.line = ProgressLine(sys.stderr)  # counts from here
        else:
            self.line.close()  # what follows may be on the same terminal
            self._view.segment(file, segment)
        done_s = segment.end if segment else 0.0
        self.line.show(f"{done_s:.0f} of {duration_s:.0f} s of audio", done_s / duration_s)


def _formats(text: str) -> tuple[str, ...]:
    """What --output-format was given."""
    names = tuple(FORMATS) if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(f"{name!r} is no format; expected {', '.join(FORMATS)}, or all")
    return names


def _channel(text: str) -> "Channel":
    """What --channel was given; the recording says later whether it has such a channel."""
    if text == "first":
        return "first"
    if text == "mix":
        return "mix"
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no channel; expected first, mix or a number from 0")
