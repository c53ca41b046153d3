"""Measure a bundle as a stream: python demo/streaming_quality.py BUNDLE ANNOTATION.

Each spoken recording of the annotation is answered at once, and pushed in pieces of 100 ms through each policy the
bundle has; then all of them, joined with pauses, are transcribed as long recordings.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jiwer
import numpy as np
from tqdm import tqdm

from salmonrun.runtime import Engine, StreamConfig, Update, load_audio
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.vad import VAD_HOP, load_vad

PIECE = SAMPLE_RATE // 10
LONG_S = 3.0  # recordings that must show text before the speech ends
JOINED_S = 600.0


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("annotation", type=Path)
    parser.add_argument("--limit", type=int, default=None, help="only the first so many recordings")
    arguments = parser.parse_args()
    entries = json.loads(arguments.annotation.read_text())["annotation"]
    spoken = [entry for entry in entries if entry["task"] == "asr"][: arguments.limit]
    recordings = [load_audio(arguments.annotation.parent / entry["path"], min_s=0.1).pcm for entry in spoken]
    references = [entry["text"] for entry in spoken]
    engine = Engine.load(arguments.bundle)
    offline = measure_offline(engine, recordings, references)
    configs = [StreamConfig(policy="agreement")]
    if engine.bundle.manifest.streaming:
        configs.append(StreamConfig(policy="block"))
    measured = {config.policy: measure_stream(engine, recordings, references, config) for config in configs}
    joined = measure_joined(engine, recordings, references)
    print(json.dumps({"offline": offline, **measured, "joined": joined}, indent=1))


def measure_offline(engine: Engine, recordings: list[F32], references: list[str]) -> dict[str, float]:
    """Each recording at once."""
    texts, times = [], []
    for pcm in tqdm(recordings, desc="offline"):
        started = time.perf_counter()
        texts.append(engine.generate(pcm, task="asr", sample_rate=SAMPLE_RATE).text)
        times.append(time.perf_counter() - started)
    return {"wer": jiwer.wer(references, texts), "median_ms": 1e3 * float(np.median(times))}


def measure_stream(
    engine: Engine, recordings: list[F32], references: list[str], config: StreamConfig
) -> dict[str, float | int]:
    """Each recording as a stream."""
    texts, finals, latencies, in_time, rewrites = [], [], [], [], []
    for pcm in tqdm(recordings, desc=config.policy):
        with engine.stream(task="asr", config=config) as stream:
            updates = [update for piece in pieces(pcm) for update in stream.push(piece)]
            result = stream.finish()
        texts.append(result.text.replace("\n", " "))
        finals.append(result.timings.total_s)
        latencies += [update.latency_s for update in updates]
        rewrites += rewritten(updates, result.text)
        if len(pcm) > LONG_S * SAMPLE_RATE:
            end = end_of_speech(pcm) / SAMPLE_RATE
            in_time.append(any(update.audio_s < end and update.stable + update.partial for update in updates))
    return {
        "wer": jiwer.wer(references, texts),
        f"recordings_over_{LONG_S:g}_s": len(in_time),
        "of_these_with_text_before_the_end_of_speech": float(np.mean(in_time)) if in_time else 0.0,
        "updates": len(latencies),
        "words_rewritten_per_word_shown": float(np.mean(rewrites)),
        "update_median_ms": 1e3 * float(np.median(latencies)),
        "final_median_ms": 1e3 * float(np.median(finals)),
    }


def rewritten(updates: list[Update], final: str) -> list[bool]:
    """For each word an update shows, whether the final text has another one in its place."""
    said = final.split()
    return [
        index >= len(said) or word != said[index]
        for update in updates
        for index, word in enumerate((update.stable + update.partial).split())
    ]


def measure_joined(engine: Engine, recordings: list[F32], references: list[str]) -> dict[str, float | int]:
    """Recordings joined with pauses to ten minutes each, transcribed."""
    texts, wanted, segments_count, seconds = [], [], 0, 0.0
    for pcm, reference in joined(recordings, references):
        segments, _ = engine.transcribe(pcm, task="asr", sample_rate=SAMPLE_RATE)
        said = [segment.text for segment in tqdm(segments, desc="joined")]
        texts.append(" ".join(said))
        wanted.append(reference)
        segments_count += len(said)
        seconds += len(pcm) / SAMPLE_RATE
    return {"wer": jiwer.wer(wanted, texts), "seconds": seconds, "segments": segments_count}


def joined(recordings: list[F32], references: list[str]) -> Iterator[tuple[F32, str]]:
    """Pieces of up to ten minutes, with pauses of 0.6 to 2 s of faint noise between the recordings."""
    rng = np.random.default_rng(0)
    parts: list[F32] = []
    texts: list[str] = []
    for pcm, reference in zip(recordings, references, strict=True):
        pause = rng.standard_normal(int(rng.uniform(0.6, 2.0) * SAMPLE_RATE), dtype=np.float32) * np.float32(1e-3)
        parts += [pcm, pause]
        texts.append(reference)
        if sum(map(len, parts)) > JOINED_S * SAMPLE_RATE:
            yield np.concatenate(parts), " ".join(texts)
            parts, texts = [], []
    if parts:
        yield np.concatenate(parts), " ".join(texts)


def pieces(pcm: F32) -> Iterator[F32]:
    """100 ms after 100 ms."""
    for start in range(0, len(pcm), PIECE):
        yield pcm[start : start + PIECE]


def end_of_speech(pcm: F32) -> int:
    """The sample after the last hop with speech."""
    is_speech: Callable[[F32], bool] = load_vad().open().is_speech
    hops = [start for start in range(0, len(pcm) - VAD_HOP + 1, VAD_HOP) if is_speech(pcm[start : start + VAD_HOP])]
    return hops[-1] + VAD_HOP if hops else len(pcm)


if __name__ == "__main__":
    main()
