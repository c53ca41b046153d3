"""Load a bundle, measure it by each protocol, beside PyTorch if asked: `measure`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from salmonrun.runtime.audio import SAMPLE_RATE, Audio, AudioSource
from salmonrun.runtime.cores import busy_note
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import AudioError, ConfigError
from salmonrun.runtime.latency import load, reference, request, stream
from salmonrun.runtime.latency.baseline import BaselineProcess
from salmonrun.runtime.latency.config import LENGTHS_S, BaselineLlm, LatencyConfig, ProtocolName
from salmonrun.runtime.latency.machine import MemoryMeter, describe_machine
from salmonrun.runtime.latency.outcome import Outcome, ProtocolOutcome
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.sampling import Case, repeat

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
    baseline_llm: BaselineLlm = "fp32",
    progress: Progress | None = None,
) -> Outcome:
    """Measure a loaded engine.

    Args:
        engine: freshly loaded: the first request of a protocol counts as cold.
        load_s: what loading took.
        config: what to measure.
        recording: speech to measure with; None for the one that comes with the package.
        baseline: checkpoint folder to run in PyTorch beside it, on the same device.
        baseline_llm: what its LLM is in there.
        progress: told after every repetition.

    Raises:
        AudioError: the recording cannot be read, or is silent.
        BaselineError: PyTorch cannot run the checkpoint.
        ConfigError: a protocol cannot be run with this bundle or these settings.
    """
    _check_baseline(config, baseline)
    config, notes = _fitted(engine, config)
    notes += tuple(filter(None, [busy_note()]))
    meter = MemoryMeter(engine.report().device)
    speech = _load_speech(engine, recording)
    with ExitStack() as resources:
        report = engine.report()
        beside = None
        if baseline:
            process = BaselineProcess(baseline, report.threads, baseline_llm, report.device)
            beside = resources.enter_context(process)
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
    """The same settings, with a task, and lengths that the bundle hears; and what was left out.

    Raises:
        ConfigError: the bundle cannot do what is asked.
    """
    task = config.task
    if task is None and config.prompt is None:
        if not engine.tasks:
            raise ConfigError("this bundle has no task prompts; pass a prompt")
        task = "asr" if "asr" in engine.tasks else engine.tasks[0]
    for beams in config.num_beams:
        engine.model.request(task, config.prompt, config=request.generation(config, beams))
    lengths = _lengths(engine, config)
    notes: tuple[str, ...] = ()
    if "request" in config.protocols and lengths != config.lengths_s:
        notes = (f"requests of more than {lengths[-1]:g} s were left out: this bundle hears no more at once",)
    return replace(config, lengths_s=lengths, task=task), notes


def _lengths(engine: Engine, config: LatencyConfig) -> tuple[float, ...]:
    """Of `request`'s recordings: those asked for, or as many of the default's as the bundle hears."""
    longest = engine.bundle.manifest.audio.max_s
    lengths = config.lengths_s
    if lengths == LENGTHS_S:
        lengths = tuple(seconds for seconds in lengths if seconds <= longest) or (longest,)
    needed: dict[ProtocolName, float] = {
        "reference": reference.SECONDS,
        "request": max(lengths),
        "stream": config.utterance_s,
        "load": config.utterance_s,
    }
    for name in config.protocols:
        if needed[name] > longest:
            remedy = "leave it out" if name == "reference" else "ask for shorter ones"
            raise ConfigError(
                f"protocol {name!r} has recordings of {needed[name]:g} s; this bundle hears {longest:g} s at once: "
                f"{remedy}"
            )
    return lengths


def _load_speech(engine: Engine, source: AudioSource | None) -> Recording:
    speech = Recording.load(source)
    if note := engine.model.silence(Audio(speech.pcm, SAMPLE_RATE, 1, len(speech.pcm) / SAMPLE_RATE)):
        raise AudioError(f"the recording is no speech to measure with ({note}); choose another one")
    return speech


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
        "stream": lambda: (stream.cases(engine, config, speech), stream.definition(config)),
        "load": lambda: (load.cases(engine, config, speech), load.DEFINITION.format(max_lag_s=config.max_lag_s)),
    }
    return made[name]()
