"""The PyTorch model beside the bundle: a process of its own that is asked for one measurement at a time.

`runtime` never imports PyTorch. The process is `salmonrun baseline`, and speaks one JSON object a line.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from salmonrun.runtime.audio import F32
from salmonrun.runtime.errors import SalmonrunError
from salmonrun.runtime.latency import reference
from salmonrun.runtime.latency.config import BaselineLlm, LatencyConfig
from salmonrun.runtime.latency.recording import Recording, wav
from salmonrun.runtime.latency.request import name
from salmonrun.runtime.latency.sampling import Case, Sample


class BaselineError(SalmonrunError, RuntimeError):
    """The PyTorch process could not be started, or failed."""


@dataclass(frozen=True)
class Baseline:
    """What the PyTorch process said of itself."""

    checkpoint: str
    load_s: float
    loaded_mb: float
    versions: dict[str, str]
    llm: BaselineLlm = "fp32"
    device: str = "cpu"

    def __str__(self) -> str:
        """In words, for the table."""
        llm = {"fp32": "", "bf16": ", its LLM in bfloat16", "nf4": ", its LLM in bitsandbytes' nf4"}[self.llm]
        where = "the same threads" if self.device == "cpu" else f"on {self.device}"
        return f"PyTorch {self.versions['torch']}, float32{llm}, eager, {where}"


class BaselineProcess:
    """PyTorch with a checkpoint, eager, on the engine's device and with as many threads.

    Encoders and Q-Former are in float32; the LLM is, too, or in bfloat16, or in bitsandbytes' 4 bits.
    """

    def __init__(self, checkpoint: str, threads: int, llm: BaselineLlm = "fp32", device: str = "cpu") -> None:
        self._resources = ExitStack()
        self._folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory()))
        self._errors = self._resources.enter_context((self._folder / "errors").open("w+"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "salmonrun", "baseline", checkpoint, "--threads", str(threads)]
            + ([] if llm == "fp32" else ["--llm", llm])
            + ([] if device == "cpu" else ["--device", device]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._resources.callback(self._stop)
        try:
            self.description = Baseline(checkpoint, **self._read(), llm=llm, device=device)
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> "BaselineProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def cases(self, config: LatencyConfig, recording: Recording) -> dict[str, list[Case]]:
        """The same work as the bundle's cases of the same names, by protocol."""
        prompt = {"task": config.task, "prompt": config.prompt}
        noise = self._file("noise", reference.noise(), whole=True)
        found = {"reference": [self._case("reference", "10 s of noise", "latency", noise, **prompt, tokens=2, beams=1)]}
        found["request"] = [
            self._case(
                "request",
                name(seconds, beams),
                "total",
                self._file(f"{seconds:g}", recording.cut(seconds)),
                **prompt,
                tokens=config.tokens,
                beams=beams,
            )
            for seconds in config.lengths_s
            for beams in config.num_beams
        ]
        return found

    def memory_mb(self) -> dict[str, float]:
        """Resident now, and at most."""
        found: dict[str, float] = self._ask({"memory": True})
        return found

    def _case(self, protocol: str, name: str, headline: str, audio: Path, **work: Any) -> Case:
        def run() -> Sample:
            sample: Sample = self._ask({"audio": str(audio), "protocol": protocol, **work})
            return sample

        return Case(name, headline, run)

    def _file(self, name: str, pcm: F32, whole: bool = False) -> Path:
        """A recording where the process can read it; `whole`: in floating point, for it is beyond full scale."""
        path = self._folder / f"{name}.wav"
        path.write_bytes(wav(pcm, "FLOAT" if whole else "PCM_16"))
        return path

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone; what it said last is the reason
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            reason = said[-1] if said else f"it ended with {self._process.wait()} and said nothing"
            raise BaselineError(
                f"salmonrun baseline failed: {reason}; --baseline needs a "
                "checkpoint that can be loaded, and pip install 'salmonrun[train]'"
            )
        return json.loads(line)

    def _stop(self) -> None:
        """Whatever it is doing: nobody waits for the answer any more."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # a question that it did not take any more
            self._process.stdin.close()
        self._process.stdout.close()
