"""`salmonrun transcribe`: its options, and what it does with them."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salmonrun.runtime.commands.generation import add_generation_arguments, generation_config
from salmonrun.runtime.commands.options import (
    add_engine_arguments,
    add_prompt_arguments,
    check_engine_arguments,
    load_engine,
)
from salmonrun.runtime.commands.progress import ProgressLine
from salmonrun.runtime.commands.source import open_whole
from salmonrun.runtime.commands.transcript_view import ONE_AFTER_ANOTHER, View, choose_targets, open_view
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import AudioTooLongError, ConfigError, SalmonrunError
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.transcript import FORMATS, Transcript, of_error, of_result, of_segments

if TYPE_CHECKING:
    from salmonrun.runtime import Engine, Segment, TranscriptInfo
    from salmonrun.runtime.channel import Channel

Targets = dict[str, Path]  # recording -> the file that gets its transcript
Settings = tuple[GenerationConfig, Targets | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer a prompt about each recording: by default, write down what is said. One that is longer than the model "
        "hears at once is cut at its pauses, and each part printed as it is answered."
    )
    parser.epilog = "example: %(prog)s bundle/ *.wav --format srt --output-dir subtitles --num-beams 4"
    add_engine_arguments(parser)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="recordings: wav, flac, ogg or mp3; or -: one such on standard input"
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
        "--format",
        choices=tuple(FORMATS),
        default="txt",
        help="json: all there is, one object a line; srt, vtt, tsv: subtitles, a cue for each part (default: txt)",
    )
    form.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    out.add_argument(
        "--output-dir", metavar="DIR", help="write a file NAME.FORMAT for each recording (default: to standard output)"
    )
    out.add_argument("--overwrite", action="store_true", help="replace files of --output-dir that are there")


def _settings(arguments: argparse.Namespace) -> Settings:
    check_engine_arguments(arguments)
    return generation_config(arguments), _targets(arguments)


def _targets(arguments: argparse.Namespace) -> Targets | None:
    """Files to be written; None: all goes to standard output."""
    files, form = arguments.files, arguments.format
    if arguments.output_dir is not None:
        return choose_targets(files, arguments.output_dir, form, arguments.overwrite)
    if arguments.overwrite:
        raise ConfigError("--overwrite replaces files of --output-dir, which is not given")
    if len(files) > 1 and form not in ONE_AFTER_ANOTHER:
        raise ConfigError(f"--format {form} of {len(files)} recordings needs --output-dir: a file for each")
    return None


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Answer about file after file; 1 if one of them could not be answered about."""
    config, targets = settings
    engine = load_engine(arguments)
    prompt = {"task": arguments.task, "prompt": arguments.prompt, "question": arguments.question}
    engine.model.request(**prompt, config=config)  # what is wrong with it is said once, and not for every file
    if arguments.reject:
        engine.model.threshold()  # the same
    asked = {**prompt, "channel": arguments.channel, "strict": arguments.strict}
    if targets is not None:
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    view = open_view(arguments.format, targets, sys.stdout, sys.stderr)
    failed = 0
    for file in arguments.files:
        transcript = _transcribe(engine, file, asked, config, arguments.reject, view)
        view.transcript(transcript)
        if transcript.error:
            failed += 1
            print(f"error: {file}: {transcript.error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _channel(text: str) -> "Channel":
    """What --channel was given; the recording says later whether it has such a channel."""
    if text == "first":
        return "first"
    if text == "mix":
        return "mix"
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no channel; expected first, mix or a number from 0")


def _transcribe(
    engine: "Engine", file: str, asked: dict[str, Any], config: GenerationConfig, reject: bool, view: View
) -> Transcript:
    """Answer about a recording; `file` is what it is called."""
    started = time.perf_counter()
    try:
        recording = open_whole(file)
        try:
            result = engine.generate(recording, **asked, config=config)
        except AudioTooLongError:
            return _transcribe_parts(engine, file, recording, asked, config, reject, view)
    except SalmonrunError as error:
        return of_error(file, time.perf_counter() - started, error)
    if reject and (why := engine.model.rejection(result.score)):
        result = replace(result, text="", notes=(*result.notes, why))
    return of_result(file, result)


def _transcribe_parts(
    engine: "Engine",
    file: str,
    recording: str | bytes,
    asked: dict[str, Any],
    config: GenerationConfig,
    reject: bool,
    view: View,
) -> Transcript:
    """Answer about a long recording part by part; what there is of it, if it cannot be read to its end."""
    started = time.perf_counter()
    segments, info = engine.transcribe(recording, **asked, generation=config, config=TranscribeConfig(reject=reject))
    answered: list[Segment] = []
    failure = None
    line = ProgressLine(sys.stderr)
    try:
        _show_progress(line, 0.0, info)
        for segment in segments:
            answered.append(segment)
            line.close()  # what follows may be on the same terminal
            view.segment(file, segment)
            _show_progress(line, segment.end, info)
    except SalmonrunError as error:
        failure = error
    finally:
        line.close()
    return of_segments(file, answered, info, time.perf_counter() - started, failure)


def _show_progress(line: ProgressLine, done_s: float, info: "TranscriptInfo") -> None:
    line.show(f"{done_s:.0f} of {info.duration_s:.0f} s of audio", done_s / info.duration_s)
