"""Half an hour in one stream: memory and latency on the way, then a cancel. python benchmarks/endurance.py BUNDLE"""

import argparse
import json
from itertools import cycle
from pathlib import Path

import numpy as np
from tqdm import tqdm

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.report import resident_bytes

PIECE = SAMPLE_RATE // 10
PAUSE_S = 1.6  # ends an utterance


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--recording", help="speech (default: the one that the latency command uses)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--minutes", type=float, default=30.0, help="of audio (default: 30)")
    arguments = parser.parse_args()
    pcm = Recording.load(arguments.recording).cut(10.0)
    generation = GenerationConfig(max_new_tokens=arguments.max_new_tokens)
    print(json.dumps(measure_endurance(Engine.load(arguments.bundle), pcm, generation, arguments.minutes), indent=1))


def measure_endurance(
    engine: Engine, pcm: F32, generation: GenerationConfig, minutes: float
) -> dict[str, float | bool | int]:
    """Memory and latency over many utterances in one stream."""
    stream = engine.stream(task="asr", generation=generation)
    latencies: list[float] = []
    memory: list[tuple[float, float]] = []  # minutes, MB
    audio = cycle([*np.array_split(pcm, max(1, len(pcm) // PIECE)), *[np.zeros(PIECE, np.float32)] * int(PAUSE_S * 10)])
    pushed = 0
    with tqdm(total=round(minutes * 60), desc="endurance", unit="s") as bar:
        while pushed < minutes * 60 * SAMPLE_RATE:
            piece = next(audio)
            latencies += [update.latency_s for update in stream.push(piece) if update.segment is None]
            before, pushed = pushed, pushed + len(piece)
            if before // (60 * SAMPLE_RATE) != pushed // (60 * SAMPLE_RATE):
                resident = resident_bytes()
                assert resident is not None, "this system does not say how much memory a process has"
                memory.append((pushed / SAMPLE_RATE / 60, resident / 2**20))
            bar.update(pushed // SAMPLE_RATE - before // SAMPLE_RATE)
    settled = np.array(memory[len(memory) // 6 :])  # buffers grow to their size at first
    utterances = len(stream.segments)
    lease = stream._lease  # its memory is what a cancel must give back
    stream.cancel()
    return {
        "minutes": minutes,
        "utterances": utterances,
        "updates": len(latencies),
        "rss_mb": settled[-1, 1],
        "rss_slope_mb_per_10_min": float(10 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]),
        "latency_of_the_first_hundred_ms": 1e3 * float(np.median(latencies[10:110])),
        "latency_of_the_last_hundred_ms": 1e3 * float(np.median(latencies[-100:])),
        "cancel_frees_the_slot": lease.closed,
    }


if __name__ == "__main__":
    main()
