"""`salmonrun stream`: its options, and what it does with them."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.commands.generation import add_greedy_arguments, generation_config
from salmonrun.runtime.commands.microphone import open_microphone
from salmonrun.runtime.commands.options import (
    add_engine_arguments,
    add_prompt_arguments,
    check_engine_arguments,
    load_engine,
)
from salmonrun.runtime.commands.source import Pcm, Source, at_own_speed, chunks, open_source
from salmonrun.runtime.commands.stream_view import View, open_view
from salmonrun.runtime.commands.tally import Tally
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.streaming.config import EndpointConfig, StreamConfig

if TYPE_CHECKING:
    from salmonrun.runtime import Stream

# Fields of EndpointConfig, in seconds -> what they are; only where utterances are looked for.
ENDPOINTS = {
    "pause_s": "seconds of silence that end an utterance of which something was understood",
    "silence_s": "seconds of silence that end one of which nothing was, so far",
    "longest_s": "seconds after which any short pause ends it",
    "margin_s": "seconds kept in front of speech",
}
Settings = tuple[StreamConfig, GenerationConfig, Source]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Hear a file, PCM on standard input as it comes, or a microphone, and write down what is said: on a terminal "
        "while it is said, what may still change is dimmed; elsewhere a line for each utterance that is over."
    )
    parser.epilog = "example: arecord -f S16_LE -r 16000 -t raw | %(prog)s bundle/ -"
    add_engine_arguments(parser)
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="wav, flac, ogg or mp3; or -: raw little-endian 16-bit mono PCM on standard input",
    )
    parser.add_argument(
        "--microphone", action="store_true", help="hear the default microphone until Ctrl-C (extra: microphone)"
    )
    parser.add_argument(
        "--rate", type=int, metavar="HZ", help="of the PCM on standard input, or of the microphone (default: 16000)"
    )
    parser.add_argument(
        "--pace",
        choices=("realtime", "fast"),
        default="fast",
        help="realtime: as if it were being recorded now; fast: as it comes (default)",
    )
    parser.add_argument(
        "--chunk-ms", type=int, default=100, help="milliseconds that are pushed at once, at most (default: 100)"
    )
    add_prompt_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each event")
    _add_stream_arguments(parser)
    add_greedy_arguments(parser)
    parser.set_defaults(run=_run, settings=_settings)


def _add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Fields of StreamConfig."""
    default = StreamConfig()
    hearing = parser.add_argument_group("how it is heard", "docs/streaming.md says what these do")
    hearing.add_argument(
        "--policy", choices=("auto", "agreement", "block"), default=default.policy, help=f"default: {default.policy}"
    )
    hearing.add_argument(
        "--update-s",
        type=float,
        default=default.update_s,
        help=f"seconds of audio between updates (default: {default.update_s})",
    )
    hearing.add_argument("--block-s", type=float, help="one of the bundle's (default: its longest)")
    hearing.add_argument("--lookback-s", type=float, help="one of the bundle's (default: its longest)")
    hearing.add_argument(
        "--hypotheses",
        type=int,
        metavar="N",
        default=default.hypotheses,
        help=f"so many must agree on a text before it is stable (default: {default.hypotheses})",
    )
    hearing.add_argument(
        "--hold-back",
        type=int,
        metavar="N",
        default=default.hold_back,
        help=f"tokens at the end of that which are not stable yet (default: {default.hold_back})",
    )
    hearing.add_argument(
        "--max-lag-s",
        type=float,
        metavar="S",
        help="so many seconds behind real time, updates are left out (default: never)",
    )
    hearing.add_argument(
        "--reject", action="store_true", help="leave out what the bundle's confidence threshold says is not credible"
    )
    ends = hearing.add_mutually_exclusive_group()
    ends.add_argument("--no-endpoints", action="store_true", help="do not look for utterances: all is one")
    vad = EndpointConfig().vad
    ends.add_argument("--vad", choices=("auto", "silero", "energy"), help=f"what tells speech (default: {vad})")
    for field, what in ENDPOINTS.items():
        option, value = "--" + field.replace("_", "-"), getattr(EndpointConfig(), field)
        hearing.add_argument(option, type=float, metavar="S", help=f"{what} (default: {value:g})")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Push, print, and say how it went."""
    config, generation, source = settings
    pieces = _pieces(source, arguments, whole=config.max_lag_s is not None)
    engine = load_engine(arguments)
    view = open_view(sys.stdout, sys.stderr, arguments.json)
    with engine.stream(
        task=arguments.task,
        prompt=arguments.prompt,
        question=arguments.question,
        config=config,
        generation=generation,
        sample_rate=source.rate,
    ) as stream:
        try:
            _hear(stream, pieces, source, view)
        finally:
            view.close()
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    check_engine_arguments(arguments)
    return _config(arguments), generation_config(arguments), _source(arguments)


def _config(arguments: argparse.Namespace) -> StreamConfig:
    if arguments.chunk_ms < 1:
        raise ConfigError(f"--chunk-ms is {arguments.chunk_ms}; it must be at least 1")
    return StreamConfig(
        policy=arguments.policy,
        update_s=arguments.update_s,
        block_s=arguments.block_s,
        lookback_s=arguments.lookback_s,
        hypotheses=arguments.hypotheses,
        hold_back=arguments.hold_back,
        endpoint=_endpoint(arguments),
        max_lag_s=arguments.max_lag_s,
        reject=arguments.reject,
    )


def _source(arguments: argparse.Namespace) -> Source:
    if not arguments.microphone:
        if arguments.file is None:
            raise ConfigError("nothing to hear: expected FILE, - for standard input, or --microphone")
        return open_source(arguments.file, arguments.rate)
    if arguments.file is not None:
        raise ConfigError(f"--microphone with FILE {arguments.file!r}: only one can be heard; leave out the other")
    if arguments.pace == "realtime":
        raise ConfigError("--pace realtime with --microphone, which has no other pace; leave it out")
    return open_microphone(SAMPLE_RATE if arguments.rate is None else arguments.rate)


def _endpoint(arguments: argparse.Namespace) -> EndpointConfig | None:
    given = {name: value for name in (*ENDPOINTS, "vad") if (value := getattr(arguments, name)) is not None}
    if not arguments.no_endpoints:
        return EndpointConfig(**given)
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{options} with --no-endpoints, which looks for no utterances; leave out one of them")
    return None


def _pieces(source: Source, arguments: argparse.Namespace, whole: bool) -> Iterator[Pcm]:
    """What to push. `whole`: with one push all that is there, for a stream that may leave out updates of it."""
    size = max(1, source.rate * arguments.chunk_ms // 1000)
    pieces = source.pieces
    if arguments.pace == "realtime":
        pieces = at_own_speed(chunks(pieces, size), source.rate)
    return pieces if whole else chunks(pieces, size)


def _hear(stream: "Stream", pieces: Iterator[Pcm], source: Source, view: View) -> None:
    """All of the stream. An interruption cancels it, and is passed on when what is stable by then was shown."""
    tally = Tally(stream.policy)
    try:
        for pcm in pieces:
            for update in stream.push(pcm):
                tally.add(update)
                view.update(update)
                if update.segment:
                    view.utterance(update.segment)
    except KeyboardInterrupt:
        stream.cancel()
        _end(stream, source, view, tally)
        raise
    _end(stream, source, view, tally)


def _end(stream: "Stream", source: Source, view: View, tally: Tally) -> None:
    result = stream.finish()
    for segment in stream.segments[tally.utterances :]:  # which ended without an update that was handed out
        view.utterance(segment)
    tally.utterances = len(stream.segments)
    view.result(replace(result, notes=(*source.notes, *result.notes)), tally)
