"""`salmonrun transcribe`: its options, and what it does with them."""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from salmonrun.runtime.commands.options import (
    add_engine_arguments,
    add_prompt_arguments,
    check_engine_arguments,
    load_engine,
)
from salmonrun.runtime.commands.source import open_whole
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import AudioTooLongError, SalmonrunError
from salmonrun.runtime.longform.config import TranscribeConfig

if TYPE_CHECKING:
    from salmonrun.runtime import Engine, Result
    from salmonrun.runtime.channel import Channel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer a prompt about each recording: by default, write down what is said. One that is longer than the model "
        "hears at once is cut at its pauses, and each part printed as it is answered."
    )
    parser.epilog = "example: %(prog)s bundle/ talk.wav --num-beams 4"
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
    add_prompt_arguments(parser)
    parser.add_argument("--num-beams", type=int, default=1, help="beams of the search (default: 1, greedy)")
    parser.add_argument(
        "--reject", action="store_true", help="leave out what the bundle's confidence threshold says is not credible"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line, with timings")
    parser.set_defaults(run=_run, settings=_settings)


def _settings(arguments: argparse.Namespace) -> GenerationConfig:
    check_engine_arguments(arguments)
    return GenerationConfig(max_new_tokens=arguments.max_new_tokens, num_beams=arguments.num_beams)


def _run(arguments: argparse.Namespace, config: GenerationConfig) -> int:
    """Answer about file after file; 1 if one of them could not be answered about."""
    engine = load_engine(arguments)
    prompt = {"task": arguments.task, "prompt": arguments.prompt, "question": arguments.question}
    engine.model.request(**prompt, config=config)  # what is wrong with it is said once, and not for every file
    if arguments.reject:
        engine.model.threshold()  # the same
    asked = {**prompt, "channel": arguments.channel}
    failed = whole = rejected = 0
    for file in arguments.files:
        try:
            recording = open_whole(file)
            try:
                result = engine.generate(recording, **asked, config=config)
            except AudioTooLongError:
                _transcribe_parts(engine, file, recording, asked, config, arguments)
            else:
                whole += 1
                if arguments.reject and (why := engine.model.rejection(result.score)):
                    result, rejected = replace(result, text="", notes=(*result.notes, why)), rejected + 1
                _print_result(file, result, arguments.json)
        except SalmonrunError as error:
            failed += 1
            print(f"error: {file}: {error}", file=sys.stderr)
    if rejected:
        print(f"{rejected} of {whole} recordings rejected", file=sys.stderr)
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


def _transcribe_parts(
    engine: "Engine",
    file: str,
    recording: str | bytes,
    asked: dict[str, Any],
    config: GenerationConfig,
    arguments: argparse.Namespace,
) -> None:
    """Answer about a long recording part by part; `file` is what it is called."""
    started, as_json = time.perf_counter(), arguments.json
    parts = TranscribeConfig(reject=arguments.reject)
    segments, info = engine.transcribe(recording, **asked, generation=config, config=parts)
    for segment in segments:
        times = {"start": segment.start, "end": segment.end}
        if as_json:
            print(json.dumps({"file": file, **times, **asdict(segment)}, ensure_ascii=False), flush=True)
        else:
            print(f"{file}: [{segment.start:.2f} - {segment.end:.2f}] {segment.text.strip()}", flush=True)
    if not as_json:
        notes = "".join(f"; {note}" for note in info.notes)
        took_s = time.perf_counter() - started
        summary = f"  {info.duration_s:.1f} s of audio in {took_s:.2f} s, {info.windows} windows{notes}"
        print(summary, file=sys.stderr, flush=True)
    elif info.notes:  # which no segment has
        print(f"{file}: {'; '.join(info.notes)}", file=sys.stderr, flush=True)


def _print_result(file: str, result: "Result", as_json: bool) -> None:
    if as_json:
        print(json.dumps({"file": file, **result.as_dict()}, ensure_ascii=False), flush=True)
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
