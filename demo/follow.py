"""Follow a recording as it is spoken: python demo/follow.py BUNDLE."""

import sys
import time
from pathlib import Path

from salmonrun.runtime import Engine, StreamConfig, load_audio
from salmonrun.runtime.audio import SAMPLE_RATE

RECORDING = Path(__file__).parent / "recordings" / "heating.flac"
PIECE = SAMPLE_RATE // 10


def main(bundle: str) -> None:
    """Push a recording at the speed it was spoken, and print every update."""
    engine = Engine.load(bundle)
    pcm = load_audio(RECORDING).pcm
    config = StreamConfig(block_s=0.32, update_s=0.32)  # the shortest blocks: early text, and more that changes
    with engine.stream(task="asr", config=config) as stream:
        print(
            f"{RECORDING.name}, {len(pcm) / SAMPLE_RATE:.1f} s, as it is spoken; behind the bar, what may still change"
        )
        started = time.perf_counter()
        for start in range(0, len(pcm), PIECE):
            piece = pcm[start : start + PIECE]
            time.sleep(max(0.0, started + (start + len(piece)) / SAMPLE_RATE - time.perf_counter()))
            for update in stream.push(piece):
                print(f"{update.audio_s:>6.2f} s   {update.stable}|{update.partial}", flush=True)
        result = stream.finish()
    milliseconds = round(1000 * result.timings.total_s)
    print(f"{result.timings.audio_s:>6.2f} s   {result.text}   ({milliseconds} ms after the last sample)")


if __name__ == "__main__":
    main(*sys.argv[1:])
