"""How long a bundle takes to load, and what two processes share of it: python -m benchmarks.loading BUNDLE

The first process finds nothing of the bundle in memory, the second all of it; both hash every file, as is the default,
and a third does not. Then two run at once: a proportional set size counts what they share by half in each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.machine import machine
from benchmarks.tables import seconds, table
from salmonrun.runtime.commands.main import guarded

Json = dict[str, Any]
CHILD = """
import json, sys, time
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.latency.recording import STORY
started = time.perf_counter()
engine = Engine.load(sys.argv[1], verify=sys.argv[2] == "verified")
loaded = time.perf_counter()
config = GenerationConfig(max_new_tokens=1, min_new_tokens=1)
engine.generate(engine.model.load_audio(str(STORY), None).first(10), task="asr", config=config)
answered = time.perf_counter()
sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/self/smaps_rollup") if "kB" in line}
said = {"load": loaded - started, "token": answered - loaded, "pss": sizes["Pss"], "rss": sizes["Rss"]}
print(json.dumps(said | {"huge": sizes["FilePmdMapped"] + sizes["AnonHugePages"]}), flush=True)
sys.stdin.readline()
sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in open("/proc/self/smaps_rollup") if "kB" in line}
print(json.dumps({"pss": sizes["Pss"], "rss": sizes["Rss"]}), flush=True)
"""


class Child:
    """A process that loads the bundle, answers with one token, and stays."""

    def __init__(self, bundle: Path, how: str = "verified") -> None:
        command = [sys.executable, "-c", CHILD, str(bundle), how]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.first = self._said()

    def now(self) -> Json:
        """Its sizes; then it ends."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        sizes = self._said()
        self._process.wait()
        return sizes

    def _said(self) -> Json:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            sys.exit("error: the process that loads the bundle ended; it says why above")
        said: Json = json.loads(line)
        return said


def main() -> None:
    """Measure, report."""
    bundle = Path(sys.argv[1])
    forget(bundle)
    rows = []
    for name, how in (("cold", "verified"), ("again", "verified"), ("again, not hashed", "unverified")):
        child = Child(bundle, how)
        rows.append([name, seconds(child.first["load"]), seconds(child.first["token"]), *_sizes(child.now())])
    together = [Child(bundle) for _ in range(2)]
    for number, sizes in enumerate([child.now() for child in together[:1]], start=1):
        rows.append([f"beside another, process {number}", "", "", *_sizes(sizes)])
    together[1].now()
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    huge = together[0].first["huge"]
    print(f"{bundle.name}, {size / 2**20:.0f} MiB, {huge / 2**20:.0f} MiB of it in huge pages; {machine()['cpu']}\n")
    print(table(["process", "load", "10 s of speech to the first token", "resident", "proportional"], rows))


def forget(bundle: Path) -> None:
    """Let go of what the system keeps of the files in memory."""
    for path in bundle.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sizes(sizes: Json) -> list[str]:
    return [f"{sizes[name] / 2**20:.0f} MiB" for name in ("rss", "pss")]


if __name__ == "__main__":
    sys.exit(guarded(main))
