"""A bundle as a stream: python benchmarks/streaming.py BUNDLE RECORDING.

- The wait after the last sample: pieces of the recording, each as a stream of 100 ms pieces and at once, in turn.
- Endurance: the recording again and again with pauses, in one stream; memory and latency on the way; then a cancel.
"""

import argparse
import json
import time
from itertools import cycle
from pathlib import Path

import numpy as np
from tqdm import tqdm

from runtime import Engine, GenerationConfig, StreamConfig, load_audio
from runtime.audio import F32, SAMPLE_RATE
from runtime.prompt import choose_prompt

PIECE = SAMPLE_RATE // 10
PAUSE_S = 1.6  # ends an utterance


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the utterances (default: 10)")
    parser.add_argument("--utterances", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="default: 32")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the endurance run; 0: none (default: 30)")
    parser.add_argument("--prompt", help="default: the bundle's for asr")
    parser.add_argument("--block-s", type=float, default=None, help="default: the stream's own")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    engine = Engine.load(arguments.bundle, threads=arguments.threads)
    pcm = load_audio(arguments.recording, max_s=None).pcm
    generation = GenerationConfig(max_new_tokens=arguments.max_new_tokens)
    prompt = arguments.prompt or choose_prompt(engine.bundle.manifest.prompt, "asr", None)
    config = StreamConfig(endpoint=None, block_s=arguments.block_s)
    found = {"final": measure_final(engine, pcm, prompt, config, generation, arguments.seconds, arguments.utterances)}
    if arguments.minutes:
        found["endurance"] = measure_endurance(engine, pcm, generation, arguments.minutes)
    print(json.dumps(found, indent=1))


def measure_final(
    engine: Engine,
    pcm: F32,
    prompt: str,
    config: StreamConfig,
    generation: GenerationConfig,
    seconds: float,
    count: int,
) -> dict[str, float | str | list[float]]:
    """Milliseconds from the last sample to the whole text, as a stream and at once."""
    length = round(seconds * SAMPLE_RATE)
    policy = "block" if engine.bundle.manifest.streaming else "agreement"
    streamed, at_once, same = [], [], 0
    for index in tqdm(range(count + 1), desc="final"):
        utterance = np.take(pcm, np.arange(index * length // 2, index * length // 2 + length), mode="wrap")
        with engine.stream(prompt=prompt, config=config, generation=generation) as stream:
            for start in range(0, length, PIECE):
                stream.push(utterance[start : start + PIECE])
            started = time.perf_counter()
            text = stream.finish().text
            streamed.append(1e3 * (time.perf_counter() - started))
        started = time.perf_counter()
        whole = engine.generate(utterance, sample_rate=SAMPLE_RATE, prompt=prompt, config=generation).text
        at_once.append(1e3 * (time.perf_counter() - started))
        same += index > 0 and text == whole
    ratios = np.array(streamed[1:]) / np.array(at_once[1:])  # the first one warms up
    return {
        "policy": policy,
        "stream_median_ms": float(np.median(streamed[1:])),
        "at_once_median_ms": float(np.median(at_once[1:])),
        "ratio_median": float(np.median(ratios)),
        "ratio_quartiles": [float(x) for x in np.quantile(ratios, (0.25, 0.75))],
        "same_text": same,
    }


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
                memory.append((pushed / SAMPLE_RATE / 60, resident_mb()))
            bar.update(pushed // SAMPLE_RATE - before // SAMPLE_RATE)
    settled = np.array(memory[len(memory) // 6 :])  # buffers grow to their size at first
    utterances = len(stream.segments)
    slot = stream._slot  # its memory is what a cancel must give back
    stream.cancel()
    return {
        "minutes": minutes,
        "utterances": utterances,
        "updates": len(latencies),
        "rss_mb": settled[-1, 1],
        "rss_slope_mb_per_10_min": float(10 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]),
        "latency_of_the_first_hundred_ms": 1e3 * float(np.median(latencies[10:110])),
        "latency_of_the_last_hundred_ms": 1e3 * float(np.median(latencies[-100:])),
        "cancel_frees_the_slot": slot.cache.released,
    }


def resident_mb() -> float:
    """Resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
