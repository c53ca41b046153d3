"""Does a server last? python -m benchmarks.serving.soak BUNDLE --minutes 30 --streams 4 [--out build/soak]

Each minute so many live streams open, speak in real time and close, while requests come one after the other. A line a
minute goes into OUT/soak.jsonl: how late the streams were, whether each answer is the one that was given first, memory,
threads, open files. At the end there is a picture, OUT/soak.png, and a verdict, which is also the exit status.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from openai import OpenAI, OpenAIError
from tqdm import tqdm

from benchmarks.quiet import add_busy_option, refuse_busy
from benchmarks.serving import streams
from benchmarks.serving.server import launched
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.latency.recording import Recording, wav
from salmonrun.runtime.picture import load_figure

MINUTE_S = 60.0
SPOKEN_S = 54.0  # of a minute: the rest is for the last text, and for the streams to begin one after the other
GROWTH = 0.03  # of resident memory, behind the first quarter: what is more is a leak
GROWTH_MIB = 16.0
LEFT = (
    "num_realtime_streams",
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_bytes",
    "num_searches_running",
)


@dataclass(frozen=True)
class Minute:
    """What happened in one."""

    minute: int
    lag_p95_s: float  # of updates of streams
    final_p95_s: float  # of texts of utterances
    real_time: bool
    lost: int  # streams
    requests: int
    request_p95_s: float
    failed: int  # requests
    different: int  # answers that are not those of the first minute
    resident_mib: float
    threads: int
    files: int
    left: dict[str, float] = field(default_factory=dict)  # when all streams had closed and all requests were answered


class Asker:
    """Asks about a few recordings, and remembers what was answered first."""

    def __init__(self, url: str, every_s: float) -> None:
        recording = Recording.load(None)
        self._files = [wav(recording.cut(seconds, 2.3 * seconds)) for seconds in (2.0, 10.0, 5.0, 45.0)]
        self._first: dict[int, str] = {}
        self._every_s = every_s
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self._model = next(iter(self._client.models.list())).id

    def until(self, end: float) -> tuple[list[float], int, int]:
        """Seconds of each request, how many failed, how many were answered otherwise than the first time."""
        taken: list[float] = []
        failed = different = 0
        while (started := time.monotonic()) < end:
            number = len(taken) % len(self._files)
            try:
                given = ("speech.wav", self._files[number])
                text = self._client.audio.transcriptions.create(file=given, model=self._model).text
                different += text != self._first.setdefault(number, text)
            except OpenAIError as error:
                tqdm.write(f"a request failed: {error}")
                failed += 1
            taken.append(time.monotonic() - started)
            time.sleep(max(0.0, min(end, started + self._every_s) - time.monotonic()))
        return taken, failed, different


def measure(url: str, pid: int, minute: int, count: int, asker: Asker) -> Minute:
    """One minute of it."""
    end = time.monotonic() + MINUTE_S
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(asker.until, end - 5)
        told = streams.measure(url, count, SPOKEN_S, 6.0)
        taken, failed, different = asked.result()
    left = _settled(url)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Minute(
        minute,
        _p95(told.lag_s),
        _p95(told.final_s),
        told.real_time,
        told.lost,
        len(taken),
        _p95(taken),
        failed,
        different,
        int(status["VmRSS"].split()[0]) / 1024,
        int(status["Threads"]),
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        left,
    )


def verdict(minutes: Sequence[Minute]) -> list[str]:
    """What is wrong; empty: it lasts."""
    wrong = []
    for name in ("lost", "failed", "different"):
        if total := sum(getattr(one, name) for one in minutes):
            wrong.append(f"{total} {name}")
    if late := [one.minute for one in minutes if not one.real_time]:
        wrong.append(f"not in real time in {len(late)} of {len(minutes)} minutes: {late}")
    if left := {one.minute: one.left for one in minutes if any(one.left.values())}:
        wrong.append(f"something is left behind: {left}")
    begin, end = minutes[len(minutes) // 4 : len(minutes) // 2 + 1], minutes[-max(1, len(minutes) // 4) :]
    for name, slack in (("threads", 4), ("files", 4), ("resident_mib", GROWTH_MIB)):
        before, after = (float(np.median([getattr(one, name) for one in part])) for part in (begin, end))
        if after > before * (1 + GROWTH) + slack:
            wrong.append(f"{name} grew from {before:g} to {after:g}")
    return wrong


def draw(minutes: Sequence[Minute], path: Path) -> None:
    """Memory and lag, minute by minute."""
    figure = load_figure("the picture of a soak")(figsize=(8, 7), layout="constrained")
    memory, lag, files = figure.subplots(3, 1, sharex=True)
    at = [one.minute for one in minutes]
    memory.plot(at, [one.resident_mib for one in minutes])
    memory.set_ylabel("resident, MiB")
    lag.plot(at, [one.lag_p95_s for one in minutes], label="updates")
    lag.plot(at, [one.final_p95_s for one in minutes], label="texts")
    lag.axhline(streams.LATE_S, color="grey", linestyle=":", label="late")
    lag.set_ylabel("p95 lag, s")
    lag.legend()
    files.plot(at, [one.files for one in minutes], label="open files")
    files.plot(at, [one.threads for one in minutes], label="threads")
    files.set_xlabel("minute")
    files.legend()
    for axes in (memory, lag, files):
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    figure.savefig(path)


def main() -> None:
    """Run, note every minute, judge."""
    parser = _parser()
    arguments = parser.parse_args()
    busy = refuse_busy(parser, arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    minutes: list[Minute] = []
    limits = ("--max-streams", str(arguments.streams), "--max-waiting", "100")
    lines = arguments.out / "soak.jsonl"
    with launched(arguments.bundle, arguments.threads, *limits) as (url, process), lines.open("w") as file:
        asker = Asker(url, arguments.every)
        for number in tqdm(range(1, arguments.minutes + 1), unit="min"):
            minutes.append(measure(url, process.pid, number, arguments.streams, asker))
            file.write(json.dumps(asdict(minutes[-1])) + "\n")
            file.flush()
    draw(minutes, arguments.out / "soak.png")
    wrong = verdict(minutes)
    said = f"{len(minutes)} minutes, {arguments.streams} streams, {sum(one.requests for one in minutes)} requests"
    print(f"{said}: {'; '.join(wrong) if wrong else 'it lasts'}" + (f". {busy.capitalize()}." if busy else ""))
    sys.exit(bool(wrong))


def _settled(url: str) -> dict[str, float]:
    """What is still open, a while after nobody should have anything."""
    left: dict[str, float] = {}
    for _ in range(50):
        lines = urlopen(f"{url}/metrics").read().decode().splitlines()
        told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        left = {name: float(told[f"salmonrun_{name}"]) for name in LEFT}
        if not any(left.values()):
            break
        time.sleep(0.1)
    return left


def _p95(values: Sequence[float]) -> float:
    return round(float(np.percentile(values, 95)), 4) if values else 0.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=int, default=30, help="(default: 30)")
    parser.add_argument("--streams", type=int, default=4, help="live streams at once (default: 4)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds from request to request (default: 5)")
    parser.add_argument("--threads", type=int, help="of the server (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder (default: build/soak)")
    add_busy_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
