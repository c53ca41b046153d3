"""The PyTorch process beside the bundle: a real one on a tiny checkpoint, and others that misbehave."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.latency import baseline
from salmonrun.runtime.latency.baseline import BaselineError, BaselineProcess
from salmonrun.runtime.latency.outcome import Outcome
from salmonrun.runtime.latency.run import measure
from salmonrun.runtime.latency.table import format_outcome
from tests.helpers.latencies import QUICK, hiss

CONFIG = replace(QUICK, protocols=("reference", "request"), num_beams=(1, 2), tokens=3)


class Started:
    """All processes that were started."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
        self.processes.append(subprocess.Popen(*arguments, **options))
        return self.processes[-1]

    @property
    def running(self) -> list[int]:
        return [process.pid for process in self.processes if process.poll() is None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Watches what the baseline starts."""
    started = Started()

    class Module:
        PIPE = subprocess.PIPE
        Popen = started

    monkeypatch.setattr(baseline, "subprocess", Module)
    return started


def test_beside_pytorch(tiny_engine: Engine, tiny_checkpoint: Path, started: Started) -> None:
    found = measure(tiny_engine, 0.0, CONFIG, baseline=str(tiny_checkpoint))
    assert [process.returncode is not None for process in started.processes] == [True]
    assert found.baseline
    assert found.baseline.checkpoint == str(tiny_checkpoint)
    assert set(found.baseline.versions) == {"torch", "transformers"}
    assert found.baseline.load_s > 0
    assert found.baseline.loaded_mb > 50
    assert [[case.name for case in protocol.cases] for protocol in found.protocols] == [
        ["10 s of noise"],
        ["1 s, greedy", "1 s, 2 beams"],
    ]
    for protocol in found.protocols:
        assert [case.name for case in protocol.baseline] == [case.name for case in protocol.cases]
        assert protocol.baseline_memory_mb["peak_mb"] >= protocol.baseline_memory_mb["steady_mb"] > 50
        for ours, theirs in zip(protocol.cases, protocol.baseline, strict=True):
            assert len(ours.samples) == len(theirs.samples) == 1
            assert set(theirs.metrics) <= set(ours.metrics)
            for metric in theirs.metrics:
                ratio = protocol.ratio(ours, metric)
                assert ratio
                assert ratio.low == ratio.median == ratio.high > 0
                assert len(ours.values(metric)) == len(theirs.values(metric))
    check_table(found)


def check_table(found: Outcome) -> None:
    lines = format_outcome(found).splitlines()
    assert found.baseline
    torch = found.baseline.versions["torch"]
    assert f"  beside it PyTorch {torch}, float32, eager, the same threads, in turn" in lines
    assert sum(line.endswith("PyTorch / bundle (quartiles)") for line in lines) == 3
    assert sum(line.startswith("  PyTorch: ") and line.endswith(" times") for line in lines) == 2


@pytest.mark.parametrize("protocol", ["stream", "load"])
def test_protocols_without_one(tiny_engine: Engine, started: Started, protocol: Any) -> None:
    config = replace(CONFIG, protocols=("request", protocol))
    with pytest.raises(ConfigError, match=f"no baseline for protocol '{protocol}'; it is for reference and request"):
        measure(tiny_engine, 0.0, config, baseline="checkpoint")
    assert not started.processes


# Processes that misbehave

HELLO = """print('{"load_s": 1.0, "loaded_mb": 2.0, "versions": {"torch": "0"}}', flush=True)"""


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: Started) -> Callable[[str], None]:
    """Have a script run instead of PyTorch."""

    def replace_it(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -S\nimport os, signal, sys, time\n{textwrap.dedent(script)}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace_it


def test_it_gets_the_threads_and_the_work(instead: Callable[[str], None]) -> None:
    instead(
        f"""
        {HELLO}
        import json
        for line in sys.stdin:
            question = json.loads(line)
            sound = os.path.getsize(question.pop("audio")) if "audio" in question else 0
            print(json.dumps({{"asked": question, "arguments": sys.argv[1:], "bytes": sound}}), flush=True)
        """
    )
    config = replace(CONFIG, lengths_s=(1.0, 2.0), task="asr")
    with BaselineProcess("checkpoint", 3) as process:
        assert process.description.load_s == 1.0
        cases = process.cases(config, hiss())
        reference: Any = cases["reference"][0].run()
        request: Any = cases["request"][3].run()
        asked: Any = process.memory_mb()
    assert request["arguments"] == ["-m", "salmonrun", "baseline", "checkpoint", "--threads", "3"]
    work = {"task": "asr", "prompt": None}
    assert reference["asked"] == {"protocol": "reference", **work, "tokens": 2, "beams": 1}
    assert reference["bytes"] == pytest.approx(4 * 160_000, abs=200)
    assert request["asked"] == {"protocol": "request", **work, "tokens": 3, "beams": 2}
    assert request["bytes"] == pytest.approx(2 * 2 * 16_000, abs=200)
    assert asked["asked"] == {"memory": True}
    with BaselineProcess("checkpoint", 3, "nf4", "cuda:1") as process:
        arguments: Any = process.memory_mb()
        assert str(process.description) == "PyTorch 0, float32, its LLM in bitsandbytes' nf4, eager, on cuda:1"
    assert arguments["arguments"][4:] == ["--threads", "3", "--llm", "nf4", "--device", "cuda:1"]


def ask(started: Started) -> None:
    """A question that may find no one."""
    with BaselineProcess("checkpoint", 1) as process:
        with suppress(subprocess.TimeoutExpired):
            started.processes[0].wait(0.2)
        process.memory_mb()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "print('error: x/config.json does not exist', file=sys.stderr)\nsys.exit(1)",
            "error: x/config.json does not exist",
        ),
        (f"{HELLO}\nsys.exit('first\\nCUDA is out of memory')", "CUDA is out of memory"),
        (f"{HELLO}\nsys.stdin.readline()\nsys.exit('no such layer')", "no such layer"),
        (f"{HELLO}\nos.kill(os.getpid(), signal.SIGKILL)", f"it ended with {-signal.SIGKILL} and said nothing"),
        ("sys.exit(3)", "it ended with 3 and said nothing"),
    ],
)
def test_one_that_dies(instead: Callable[[str], None], started: Started, script: str, reason: str) -> None:
    instead(script)
    expected = f"baseline failed: {reason}; --baseline needs a checkpoint that can be loaded"
    with pytest.raises(BaselineError, match=expected):
        ask(started)
    assert not started.running


def test_one_that_is_busy_is_not_waited_for(instead: Callable[[str], None], started: Started) -> None:
    instead(f"{HELLO}\ntime.sleep(1000)")

    def interrupted() -> None:
        with BaselineProcess("checkpoint", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.returncode for process in started.processes] == [-signal.SIGKILL]


def test_an_error_of_the_bundle_ends_it(
    monkeypatch: pytest.MonkeyPatch, instead: Callable[[str], None], started: Started, tiny_engine: Engine
) -> None:
    instead(f"{HELLO}\ntime.sleep(1000)")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Engine, "generate", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        measure(tiny_engine, 0.0, replace(CONFIG, protocols=("request",)), baseline="checkpoint")
    assert len(started.processes) == 1
    assert not started.running


def test_its_files_are_gone_with_it(instead: Callable[[str], None]) -> None:
    instead(f"{HELLO}\nsys.stdin.read()")
    with BaselineProcess("checkpoint", 1) as process:
        process.cases(CONFIG, hiss())
        folder = process._folder
        assert {path.name for path in folder.iterdir()} == {"errors", "noise.wav", "1.wav"}
    assert not os.path.exists(folder)
