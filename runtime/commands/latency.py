"""`salmonrun latency`: its options, and what it does with them."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from salmonrun.runtime.commands.options import add_engine_arguments, check_engine_arguments, load_engine
from salmonrun.runtime.commands.progress import ProgressLine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency.config import PROTOCOLS, BaselineLlm, LatencyConfig
from salmonrun.runtime.latency.sampling import StopRule

if TYPE_CHECKING:
    from salmonrun.runtime.latency.run import Progress

Settings = tuple[LatencyConfig, dict[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Measure a bundle on this machine. Each figure is a median with its 95 % interval, repeated until that is "
        "narrow or the time is up. Close other programs first."
    )
    parser.epilog = (
        'example: %(prog)s bundle/ --protocol request,stream --plot latency.png --fail-over "ttft_p50=0.8,rtf=0.5"'
    )
    default = LatencyConfig()
    add_engine_arguments(parser)
    parser.add_argument(
        "--protocol",
        type=_listed(str),
        default=default.protocols,
        metavar="NAMES",
        help="one or more of reference (10 s of noise, as the reference competition measured), request (recordings, "
        "stage by stage), stream (speech as it is spoken), load (many at once), with commas; or all (default: request)",
    )
    parser.add_argument("--recording", metavar="FILE", help="speech to measure with (default: 30 s that come along)")
    parser.add_argument("--task", help="default: asr, or the bundle's first")
    parser.add_argument("--prompt", help="an instruction instead of a task")
    parser.add_argument("--tokens", type=int, default=default.tokens, help=f"of an answer (default: {default.tokens})")
    _add_case_arguments(parser, default)
    _add_sampling_arguments(parser, default.rule)
    parser.set_defaults(run=_run, settings=_settings)


def _add_case_arguments(parser: argparse.ArgumentParser, default: LatencyConfig) -> None:
    cases = parser.add_argument_group("cases")
    cases.add_argument(
        "--lengths",
        type=_listed(float),
        default=default.lengths_s,
        metavar="SECONDS",
        help=f"of request's recordings (default: {_commas(default.lengths_s)}, as far as the bundle hears)",
    )
    cases.add_argument(
        "--num-beams",
        type=_listed(int),
        default=default.num_beams,
        metavar="NUMBERS",
        help=f"of request's searches (default: {_commas(default.num_beams)})",
    )
    cases.add_argument(
        "--utterance-s",
        type=float,
        default=default.utterance_s,
        help=f"seconds of stream's and load's recordings (default: {default.utterance_s:g})",
    )
    cases.add_argument("--block-s", type=float, help="of streams; one of the bundle's (default: its longest)")
    cases.add_argument(
        "--pace", choices=("realtime", "fast"), default="realtime", help="of streams (default: realtime)"
    )
    cases.add_argument(
        "--concurrency",
        type=_listed(int),
        default=default.concurrency,
        metavar="NUMBERS",
        help=f"of load (default: {_commas(default.concurrency)})",
    )
    cases.add_argument(
        "--load-of", choices=("streams", "requests"), default=default.load_of, help=f"default: {default.load_of}"
    )
    cases.add_argument(
        "--max-lag-s",
        type=float,
        default=default.max_lag_s,
        help=f"of streams that keep real time (default: {default.max_lag_s:g})",
    )


def _add_sampling_arguments(parser: argparse.ArgumentParser, rule: StopRule) -> None:
    found = parser.add_argument_group("how long, beside what, and what becomes of it")
    found.add_argument(
        "--precision",
        type=float,
        default=rule.precision,
        help=f"repeat until a median is known to this share of it, either way (default: {rule.precision:g})",
    )
    found.add_argument(
        "--time-limit",
        type=float,
        default=rule.time_limit_s,
        metavar="SECONDS",
        help=f"of a protocol (default: {rule.time_limit_s:g})",
    )
    found.add_argument(
        "--baseline", metavar="CHECKPOINT", help="run it in PyTorch beside the bundle, in turn (reference, request)"
    )
    found.add_argument(
        "--baseline-llm",
        choices=get_args(BaselineLlm),
        default="fp32",
        help="what PyTorch's LLM is in: nf4 is bitsandbytes' 4 bits (default: fp32)",
    )
    found.add_argument("--json", metavar="FILE", help="write everything, with every sample")
    found.add_argument("--plot", metavar="FILE", help="write a picture (PNG)")
    found.add_argument(
        "--fail-over",
        metavar="LIMITS",
        help="exit with 1 if one is exceeded, e.g. ttft_p50=0.8,rtf=0.5,rss_peak_mb=900",
    )


def _settings(arguments: argparse.Namespace) -> Settings:
    from salmonrun.runtime.latency.limits import check_limits, parse_limits

    check_engine_arguments(arguments)
    config = _config(arguments)
    limits = {} if arguments.fail_over is None else parse_limits(arguments.fail_over)
    check_limits(limits, config)
    _check_outputs(arguments)
    return config, limits


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Measure, and show; 1 if a limit is exceeded."""
    from salmonrun.runtime.latency.limits import exceeded
    from salmonrun.runtime.latency.outcome import write_json
    from salmonrun.runtime.latency.plot import plot
    from salmonrun.runtime.latency.run import measure
    from salmonrun.runtime.latency.table import format_outcome

    config, limits = settings
    started = time.perf_counter()
    engine = load_engine(arguments)
    load_s = time.perf_counter() - started
    line = ProgressLine()
    line.show("starting", 0.0)
    try:
        outcome = measure(
            engine,
            load_s,
            config,
            recording=arguments.recording,
            baseline=arguments.baseline,
            baseline_llm=arguments.baseline_llm,
            progress=_shown(line, config),
        )
    finally:
        line.close()
    print(format_outcome(outcome))
    if arguments.json:
        write_json(outcome, arguments.json)
    if arguments.plot:
        plot(outcome, arguments.plot)
    too_much = exceeded(outcome, limits)
    for one in too_much:
        print(f"EXCEEDED: {one.figure} is {one.value:.4g}, the limit is {one.limit:g}")
    return 1 if too_much else 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse before, and not after, minutes of measuring what cannot be written."""
    for path in map(Path, filter(None, (arguments.json, arguments.plot))):
        if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{str(path)!r} cannot be written; expected a file in a folder that exists")
    if arguments.plot:
        from salmonrun.runtime.picture import load_figure

        load_figure("--plot")


def _config(arguments: argparse.Namespace) -> LatencyConfig:
    return LatencyConfig(
        protocols=PROTOCOLS if arguments.protocol == ("all",) else arguments.protocol,
        lengths_s=arguments.lengths,
        num_beams=arguments.num_beams,
        tokens=arguments.tokens,
        utterance_s=arguments.utterance_s,
        block_s=arguments.block_s,
        paced=arguments.pace == "realtime",
        concurrency=arguments.concurrency,
        load_of=arguments.load_of,
        max_lag_s=arguments.max_lag_s,
        task=arguments.task,
        prompt=arguments.prompt,
        rule=StopRule(arguments.precision, arguments.time_limit),
    )


def _shown(line: ProgressLine, config: LatencyConfig) -> "Progress":
    """Progress by time: a protocol takes its limit at most, and often less."""
    begun: dict[str, float] = {}

    def progress(protocol: str, repetitions: int, settled: int, cases: int) -> None:
        spent = time.perf_counter() - begun.setdefault(protocol, time.perf_counter())
        share = max(settled / cases, min(1.0, spent / max(config.rule.time_limit_s, 1e-9)))
        done = len(begun) - 1
        text = f"{protocol}: {repetitions} repetitions, {settled} of {cases} cases known"
        line.show(text, (done + share) / len(config.protocols))

    return progress


def _listed(kind: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    """Parses values with commas between them."""

    def parse(text: str) -> tuple[object, ...]:
        return tuple(kind(part.strip()) for part in text.split(","))

    parse.__name__ = f"list of {kind.__name__}"  # argparse shows it
    return parse


def _commas(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
