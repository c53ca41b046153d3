"""Hours of audio through one stream, and through transcribe: python -m benchmarks.endurance BUNDLE --minutes 600

Speech with pauses, as fast as the machine takes it. Memory that no file has is looked at every so often. At the end it
says how much that grew by an hour of audio, and whether every sample was accounted for. A verdict is the exit status.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.latency.recording import Recording

PIECE = SAMPLE_RATE // 10
SPEECH_S = 10.0  # between two pauses
MOST_GROWTH = 1.0  # MB an hour
LOOKS = 60  # at memory, over the whole run
SETTLED = 1 / 6  # of them are left out: buffers grow to their size at first


@dataclass(frozen=True)
class Endured:
    """What became of so many minutes."""

    minutes: float
    segments: int
    memory_mb: float  # in the end, that of mapped files left out
    growth_mb_per_hour: float
    unaccounted_samples: int  # neither in a segment nor counted as left out
    latency_of_the_first_hundred_ms: float | None = None  # of updates of a stream
    latency_of_the_last_hundred_ms: float | None = None
    slot_is_free: bool = True

    @property
    def passed(self) -> bool:
        """Whether it could have gone on for ever."""
        return self.growth_mb_per_hour < MOST_GROWTH and not self.unaccounted_samples and self.slot_is_free


class Memory:
    """Looks at this process' memory as audio goes by."""

    def __init__(self, minutes: float) -> None:
        self._every = max(1, int(60 * SAMPLE_RATE * minutes / LOOKS))
        self._seen: list[tuple[float, float]] = []  # hours of audio, MB

    def look(self, samples: int) -> None:
        """Once in a while, now that so many have gone by."""
        if samples // self._every >= len(self._seen) + 1:
            self._seen.append((samples / SAMPLE_RATE / 3600, private_mb()))

    @property
    def last_mb(self) -> float:
        """As it was seen last."""
        return self._seen[-1][1]

    @property
    def growth_mb_per_hour(self) -> float:
        """The slope of a line through what was seen."""
        settled = np.array(self._seen[math.ceil(SETTLED * len(self._seen)) :])
        return float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0])


def main() -> int:
    """Measure, and print JSON; 1 if it could not go on for ever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recording", help="speech (default: the one that the latency command uses)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio, for each (default: 30)")
    parser.add_argument("--pause", type=float, default=1.6, help="seconds between utterances (default: 1.6)")
    parser.add_argument("--update", type=float, help="seconds of audio between a stream's updates (default: its own)")
    arguments = parser.parse_args()
    engine = Engine.load(arguments.bundle)
    pcm = np.concatenate(
        [Recording.load(arguments.recording).cut(SPEECH_S), np.zeros(int(arguments.pause * SAMPLE_RATE), np.float32)]
    )
    generation = GenerationConfig(max_new_tokens=arguments.max_new_tokens)
    config = StreamConfig() if arguments.update is None else StreamConfig(update_s=arguments.update)
    outcomes = {
        "transcribe": transcribed(engine, pcm, generation, arguments.minutes),
        "stream": streamed(engine, pcm, generation, config, arguments.minutes),
    }
    told = {name: asdict(outcome) | {"passed": outcome.passed} for name, outcome in outcomes.items()}
    print(json.dumps(told, indent=1))
    return int(not all(outcome.passed for outcome in outcomes.values()))


def transcribed(engine: Engine, pcm: F32, generation: GenerationConfig, minutes: float) -> Endured:
    """Over a file of that length."""
    memory, segments, kept = Memory(minutes), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.wav"
        total = write(file, pcm, minutes)
        found, info = engine.transcribe(file, task="asr", generation=generation)
        with tqdm(total=round(total / SAMPLE_RATE), desc="transcribe", unit="s") as bar:
            for segment in found:
                segments, kept = segments + 1, kept + segment.end_sample - segment.start_sample
                memory.look(segment.end_sample)
                bar.update(segment.end_sample // SAMPLE_RATE - bar.n)
        memory.look(total)
    told = kept + info.dropped_samples + info.nothing_samples + info.rejected_samples
    unaccounted = abs(total - info.heard_samples) + abs(info.heard_samples - told)
    return Endured(minutes, segments, memory.last_mb, memory.growth_mb_per_hour, unaccounted)


def streamed(engine: Engine, pcm: F32, generation: GenerationConfig, config: StreamConfig, minutes: float) -> Endured:
    """Over one stream."""
    memory, pushed, end, latencies = Memory(minutes), 0, 0, _Ends()
    overlaps = segments = 0
    stream = engine.stream(task="asr", generation=generation, config=config)
    total = round(minutes * 60 * SAMPLE_RATE)
    with tqdm(total=round(minutes * 60), desc="stream", unit="s") as bar:
        for piece in pieces(pcm, total):
            for update in stream.push(piece):
                if update.segment is None:
                    latencies.add(update.latency_s)
                    continue
                segments += 1
                overlaps += max(0, end - update.segment.start_sample)
                end = update.segment.end_sample
            pushed += len(piece)
            memory.look(pushed)
            bar.update(pushed // SAMPLE_RATE - bar.n)
    lease = stream._lease  # its memory is what the end must give back
    heard = round(stream.finish().timings.audio_s * SAMPLE_RATE)
    end = max([end, *(segment.end_sample for segment in stream.segments)])
    return Endured(
        minutes,
        segments,
        memory.last_mb,
        memory.growth_mb_per_hour,
        abs(total - heard) + overlaps + max(0, end - heard),
        1e3 * float(np.median(latencies.first)) if latencies.first else None,
        1e3 * float(np.median(latencies.last)) if latencies.last else None,
        lease.closed,
    )


class _Ends:
    """The first and the last hundred, behind ten that warm up."""

    def __init__(self) -> None:
        self._count = 0
        self.first: list[float] = []
        self.last: list[float] = []

    def add(self, seconds: float) -> None:
        self._count += 1
        if 10 < self._count <= 110:
            self.first.append(seconds)
        self.last = [*self.last[-99:], seconds]


def pieces(pcm: F32, total: int) -> Iterator[F32]:
    """So many samples of what goes on from its end with its beginning."""
    for first in range(0, total, PIECE):
        yield np.take(pcm, np.arange(first, min(first + PIECE, total)), mode="wrap")


def write(file: Path, pcm: F32, minutes: float) -> int:
    """The same as a file; its samples."""
    total = round(minutes * 60 * SAMPLE_RATE)
    with soundfile.SoundFile(file, "w", SAMPLE_RATE, 1, "PCM_16", format="RF64") as out:
        for piece in pieces(pcm, total):
            out.write(piece)
    return total


def private_mb() -> float:
    """Resident memory that no file has: pages of mapped weights come and go with the system's needs."""
    sizes = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return next(int(size[1]) for size in sizes if size[0] == "Anonymous:") / 1000


if __name__ == "__main__":
    sys.exit(guarded(main))
