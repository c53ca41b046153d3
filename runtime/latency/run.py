"""Load a bundle, measure it by each protocol, beside PyTorch if asked: `measure`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from runtime.audio import AudioSource
from runtime.engine import Engine
from runtime.errors import ConfigError
from runtime.latency import load, reference, request, stream
from runtime.latency.baseline import BaselineProcess
from runtime.latency.config import LatencyConfig, ProtocolName
from runtime.latency.machine import MemoryMeter, describe_machine
from runtime.latency.outcome import Outcome, ProtocolOutcome
from runtime.latency.recording import Recording
from runtime.latency.sampling import Case, repeat
from runtime.session import Device

WITH_BASELINE: tuple[ProtocolName, ...] = ("reference", "request")


class Progress(Protocol):
    """Is told how it goes."""

    def __call__(self, protocol: str, repetitions: int, settled: int, cases: int) -> None:
        """So many repetitions were made; so many of the cases are known."""


def measure(
    engine: Engine,
    load_s: float,
    config: LatencyConfig,
    *,
    recording: AudioSource | None = None,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Measure a loaded engine.

    Args:
        engine: freshly loaded: the first request of a protocol counts as cold.
        load_s: what loading took.
        config: what to measure.
        recording: speech to measure with; None for the one that comes with the package.
        baseline: checkpoint folder to run in PyTorch beside it.
        progress: told after every repetition.

    Raises:
        BaselineError: PyTorch cannot run the checkpoint.
        ConfigError: a protocol cannot be run with this bundle or these settings.
    """
    _check_baseline(config, baseline)
    config, notes = _fitted(engine, config)
    meter = MemoryMeter(_device(engine))
    speech = Recording.load(recording)
    with ExitStack() as resources:
        report = engine.report()
        beside = resources.enter_context(BaselineProcess(baseline, report.threads)) if baseline else None
        protocols = [_measure(name, engine, config, speech, meter, beside, progress) for name in config.protocols]
        return Outcome(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=describe_machine(),
            engine=report,
            manifest_sha256=engine.bundle.manifest.manifest_sha256,
            config=config,
            load_s=load_s,
            protocols=protocols,
            notes=notes,
            baseline=beside.description if beside else None,
        )


def _check_baseline(config: LatencyConfig, baseline: str | None) -> None:
    alone = [name for name in config.protocols if name not in WITH_BASELINE]
    if baseline and alone:
        raise ConfigError(f"there is no baseline for protocol {alone[0]!r}; it is for {' and '.join(WITH_BASELINE)}")


def _fitted(engine: Engine, config: LatencyConfig) -> tuple[LatencyConfig, tuple[str, ...]]:
    """The same settings, with a task, and without recordings that are too long for this bundle; what was left out."""
    longest = engine.bundle.manifest.audio.max_s
    lengths = tuple(seconds for seconds in config.lengths_s if seconds <= longest)
    shortest = {"request": min(config.lengths_s), "stream": config.utterance_s, "load": config.utterance_s}
    if any(shortest.get(name, 0.0) > longest for name in config.protocols):
        raise ConfigError(
            f"this bundle hears {longest:g} s at once; ask for shorter recordings (--lengths, --utterance-s)"
        )
    notes: tuple[str, ...] = ()
    if "request" in config.protocols and len(lengths) < len(config.lengths_s):
        notes = (f"requests of more than {longest:g} s were left out: it is what this bundle hears at once",)
    task = config.task
    if task is None and config.prompt is None:
        if not engine.tasks:
            raise ConfigError("this bundle has no task prompts; pass a prompt")
        task = "asr" if "asr" in engine.tasks else engine.tasks[0]
    engine.prompt_ids(task, config.prompt, None)  # refused now, if at all
    return replace(config, lengths_s=lengths or config.lengths_s, task=task), notes


def _device(engine: Engine) -> Device:
    return "cuda" if "CUDAExecutionProvider" in engine.decoder.graph.providers else "cpu"


def _measure(
    name: ProtocolName,
    engine: Engine,
    config: LatencyConfig,
    speech: Recording,
    meter: MemoryMeter,
    beside: BaselineProcess | None,
    progress: Progress | None,
) -> ProtocolOutcome:
    ours, definition = _cases(name, engine, config, speech)
    theirs = beside.cases(config, speech)[name] if beside else []
    cases = [case for pair in zip(ours, theirs, strict=True) for case in pair] if theirs else ours
    found = []
    for repetitions, measured in enumerate(repeat(cases, config.rule), 1):
        found = measured
        if progress:
            progress(name, repetitions, sum(one.stopped == "narrow" for one in found), len(found))
    bundle, baseline = (found[::2], found[1::2]) if theirs else (found, [])
    return ProtocolOutcome(
        name=name,
        definition=definition,
        cases=bundle,
        memory=meter.read(),
        baseline=baseline,
        baseline_memory_mb=beside.memory_mb() if beside else {},
        keeps_real_time=load.keeps_real_time(bundle, config) if name == "load" else {},
    )


def _cases(name: ProtocolName, engine: Engine, config: LatencyConfig, speech: Recording) -> tuple[list[Case], str]:
    made: dict[ProtocolName, Callable[[], tuple[list[Case], str]]] = {
        "reference": lambda: (reference.cases(engine, config), reference.DEFINITION),
        "request": lambda: (request.cases(engine, config, speech), request.DEFINITION),
        "stream": lambda: (stream.cases(engine, config, speech), stream.DEFINITION),
        "load": lambda: (load.cases(engine, config, speech), load.DEFINITION.format(max_lag_s=config.max_lag_s)),
    }
    return made[name]()
