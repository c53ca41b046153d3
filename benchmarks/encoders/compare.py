"""Encoders of a bundle on all that runs them, beside PyTorch: python -m benchmarks.encoders.compare BUNDLE CHECKPOINT

Time of 10 s and 30 s in float32 and as the bundle stores them, and how far states are from PyTorch's in float32: for
speech, noise, silence, clipped and very quiet speech, and layer by layer. The bundle is exported from the checkpoint,
with `--encoder both`. Tables go to stdout, and to DOCS/performance.md with --docs.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.peers.machine import machine
from benchmarks.quiet import add_busy_option, refuse_busy
from benchmarks.tables import place_marked, seconds, table
from salmonrun.runtime.audio import F32, SAMPLE_RATE, load_audio
from salmonrun.runtime.bundle import Bundle, open_bundle
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.encoder import run_whisper
from salmonrun.runtime.encoders import load_encoder
from salmonrun.runtime.encoders.part import EncoderPart
from salmonrun.runtime.features import fbank, log_mel
from salmonrun.runtime.latency.recording import STORY
from salmonrun.training.checkpoint import Checkpoint, load_audio_encoder, load_whisper, open_checkpoint

Run = Callable[[F32], F32]  # features -> states
NAMES = {"whisper": "Whisper", "audio_encoder": "audio encoder"}
LOADERS: dict[str, Callable[[Checkpoint], torch.nn.Module]] = {
    "whisper": load_whisper,
    "audio_encoder": load_audio_encoder,
}


def main() -> None:
    """Measure, report."""
    parser = _parser()
    arguments = parser.parse_args()
    busy = refuse_busy(parser, arguments)
    bundle, source = open_bundle(arguments.bundle), open_checkpoint(arguments.checkpoint)
    torch.set_num_threads(arguments.threads)
    where = _where(bundle, arguments.threads, arguments.rounds, busy)
    parts = {}
    for part in ("whisper", *(["audio_encoder"] if source.config.audio_encoder else [])):
        runs = dict(runtimes(bundle, part, arguments.threads)) | {"PyTorch fp32": module(LOADERS[part](source))}
        parts[part] = times(bundle, part, runs, arguments.rounds), errors(bundle, part, runs)
    taken = {part: found for part, (found, _) in parts.items()}
    case = f"{bundle.folder.name}, {machine()['kind']}"
    tables = {
        f"encoders, {case}": f"{where}\n\n{_time_table(taken)}",
        f"encoder-errors, {case}": _error_table({part: found for part, (_, found) in parts.items()}),
    }
    if bundle.manifest.encoders:
        tables[f"encoder-layers, {case}"] = layer_table(bundle, source, arguments.threads)
    print("\n\n".join(tables.values()))
    if arguments.docs:
        place = arguments.docs / "performance.md"
        place.write_text(place_marked(place.read_text(), tables))


def runtimes(bundle: Bundle, part: str, threads: int) -> Iterator[tuple[str, Run]]:
    """What the bundle has weights of the encoder for."""
    for runtime in bundle.manifest.encoder_runtimes:
        yield runtime, part_run(load_encoder(bundle, part, runtime, "cpu", threads), part)


def part_run(loaded: EncoderPart, part: str) -> Run:
    """Features of a recording to its states."""
    if part == "whisper":
        return lambda mel: run_whisper(loaded, mel)
    return lambda bank: loaded.run(fbank=bank[None])[0]


def module(encoder: torch.nn.Module) -> Run:
    """The same in PyTorch."""

    def run(features: F32) -> F32:
        with torch.inference_mode():
            states: F32 = encoder(torch.from_numpy(features)[None])[0].numpy()
        return states

    return run


def features(bundle: Bundle, part: str, pcm: F32) -> F32:
    """What the encoder hears of a recording: as long as it is, or a window of 30 s, as the bundle has it."""
    if part == "whisper":
        audio = bundle.manifest.audio
        frames = round(audio.max_s * 50) if audio.window == "padded" else len(pcm) // 320
        return log_mel(pcm, audio, 2 * frames)
    assert bundle.manifest.fbank is not None
    return fbank(pcm, bundle.manifest.fbank)


def times(bundle: Bundle, part: str, runs: dict[str, Run], rounds: int) -> dict[int, dict[str, list[float]]]:
    """Seconds of each, in turn: 10 s and 30 s of audio, heard as long as they are."""
    rng, found = np.random.default_rng(0), {}
    for length in (10, 30):
        pcm = rng.normal(scale=0.1, size=length * SAMPLE_RATE).astype(np.float32)
        heard = log_mel(pcm, bundle.manifest.audio, 100 * length) if part == "whisper" else features(bundle, part, pcm)
        samples: dict[str, list[float]] = {name: [] for name in runs}
        for turn in tqdm(range(-1, rounds), desc=f"{NAMES[part]}, {length} s", unit="round"):  # the first warms up
            for name in [*runs][:: 1 if turn % 2 else -1]:
                start = time.perf_counter()
                runs[name](heard)
                if turn >= 0:
                    samples[name].append(time.perf_counter() - start)
        found[length] = samples
    return found


def sounds() -> dict[str, F32]:
    """Ten seconds each."""
    speech = load_audio(str(STORY), min_s=0, max_s=60).pcm[: 10 * SAMPLE_RATE]
    return {
        "speech": speech,
        "noise": np.random.default_rng(0).normal(scale=0.1, size=len(speech)).astype(np.float32),
        "silence": np.zeros_like(speech),
        "speech, clipped": np.clip(20 * speech, -1, 1),
        "speech, 60 dB quieter": speech * np.float32(1e-3),
    }


def errors(bundle: Bundle, part: str, runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Relative error, rms, against PyTorch in float32, of each sound."""
    found = {}
    for sound, pcm in sounds().items():
        heard = features(bundle, part, pcm)
        truth = runs["PyTorch fp32"](heard)
        found[sound] = {name: _error(run(heard), truth) for name, run in runs.items() if name != "PyTorch fp32"}
    return found


def layer_table(bundle: Bundle, source: Checkpoint, threads: int) -> str:
    """Whisper's error on speech behind so many of its layers and the last norm."""
    heard = features(bundle, "whisper", sounds()["speech"])
    whisper, manifest = load_whisper(source), bundle.manifest
    assert manifest.encoders is not None
    total = manifest.encoders.whisper.layers
    counts = sorted({1, 2, *range(4, total, 4), total})
    cells = []
    layers = list(whisper.layers)
    for count in counts:
        cut = replace(manifest.encoders, whisper=replace(manifest.encoders.whisper, layers=count))
        shorter = replace(bundle, manifest=replace(manifest, encoders=cut))
        whisper.layers = torch.nn.ModuleList(layers[:count])
        own = part_run(load_encoder(shorter, "whisper", "native", "cpu", threads), "whisper")(heard)
        cells.append(_percent(_error(own, module(whisper)(heard))))
    return table(["layers of Whisper", *map(str, counts)], [["error on speech, native", *cells]])


def _error(found: F32, truth: F32) -> float:
    return float(np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)))


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _time_table(found: dict[str, dict[int, dict[str, list[float]]]]) -> str:
    rows, names = [], []
    for part, lengths in found.items():
        for length, samples in lengths.items():
            names = [*samples]
            medians = {name: statistics.median(values) for name, values in samples.items()}
            others = [name for name in names if name != "native"]
            ratios = [_ratio(samples[name], samples["native"]) for name in others] if "native" in samples else []
            rows.append([f"{NAMES[part]}, {length} s", *(seconds(medians[name]) for name in names), *ratios])
    return table(["", *names, *(f"{name} / native" for name in names if name != "native")], rows)


def _ratio(other: list[float], own: list[float]) -> str:
    return f"{statistics.median(one / two for one, two in zip(other, own, strict=True)):.2f}"


def _error_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    columns = [(part, name) for part, kinds in found.items() for name in next(iter(kinds.values()))]
    kinds = next(iter(found.values()))
    rows = [[kind, *(_percent(found[part][kind][name]) for part, name in columns)] for kind in kinds]
    return table(["relative error of states", *(f"{NAMES[part]}, {name}" for part, name in columns)], rows)


def _where(bundle: Bundle, threads: int, rounds: int, busy: str) -> str:
    found: dict[str, Any] = machine()
    precision = bundle.manifest.precision
    said = (
        f"{bundle.folder.name}, encoders in {precision.whisper}; {found['cpu']} ({', '.join(found['instructions'])}), "
        f"{threads} threads, {datetime.date.today().isoformat()}, medians of {rounds} rounds."
    )
    return f"{said} {busy.capitalize()}." if busy else said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all cores")
    parser.add_argument("--docs", type=Path, help="folder of performance.md")
    add_busy_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
