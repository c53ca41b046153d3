"""What each numeric format of the native decoder costs in words and gains in time, on a trained checkpoint.

    python -m benchmarks.formats.compare CHECKPOINT SPEECH CALIBRATION [--recordings 200] [--docs docs]

SPEECH and CALIBRATION are annotations; voices and sentences of the first should be in neither the training data nor the
second, on which 4-bit weights are rounded. Logits are compared with PyTorch's along the transcripts. The table goes to
stdout, and to DOCS/performance.md with --docs.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from tqdm import tqdm

from benchmarks.peers.machine import machine
from benchmarks.tables import replace_marked, table
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.confidence import read_speech
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.manifest import list_files, max_length, write_manifest
from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.progress import Progress
from salmonrun.export.weights.calibrated import rounded_llm, typical_rows
from salmonrun.export.weights.native import native_weights, write_native
from salmonrun.runtime import Engine
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.config import KvCacheType
from salmonrun.runtime.decoder import Chunk, prefill, step
from salmonrun.runtime.manifest import NativeWeights
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.evaluation.scores import spell_digits, word_errors
from salmonrun.training.tensors import LazyTensors

COMPARED = 64  # recordings along which logits are compared, at the last positions of each
LAST = 8
PROMPT, STEPS, ROUNDS = 128, 32, 9
BLOCKS: tuple[Literal[64, 128], ...] = (64, 128)


@dataclass(frozen=True)
class Format:
    """A row of the table."""

    weights: NativeWeights
    calibrated: bool = False
    kv_cache: KvCacheType = "fp16"

    @property
    def block(self) -> str:
        """Inputs that share a scale."""
        own, shared = self.weights.block, self.weights.super_block
        return f"{own} of {shared}" if shared and self.weights.precision == "int4" else str(own)

    @property
    def name(self) -> str:
        """Its first cell."""
        rounding = "" if self.weights.precision == "int8" else ", calibrated" if self.calibrated else ", nearest"
        cache = "" if self.kv_cache == "fp16" else f", keys and values in {self.kv_cache}"
        return f"{self.weights.precision}{rounding}{cache}"


def formats() -> Iterator[Format]:
    """The rows of the table."""
    int8, int4 = native_weights("int8"), native_weights("int4")
    plain = replace(int4, super_block=None)
    yield Format(int8)
    yield Format(int8, kv_cache="int8")
    yield Format(replace(int8, block=128, activation_block=128))
    yield Format(replace(plain, activation_block=32))
    yield Format(plain)
    for calibrated in (False, True):
        yield Format(int4, calibrated)
        yield from (Format(replace(plain, block=block), calibrated) for block in BLOCKS)
    yield Format(replace(plain, block=64, activation_block=64), calibrated=True)
    yield Format(replace(plain, block=64, activation_block=256), calibrated=True)
    yield Format(replace(int4, lm_head="int4"), calibrated=True)
    yield Format(int4, calibrated=True, kv_cache="int8")


@dataclass(frozen=True)
class Found:
    """What a format does."""

    error: float  # of the logits, relative (rms)
    agreeing: float  # share of the positions whose likeliest token is PyTorch's
    word_errors: float
    bytes: int  # of the weights
    token_s: float
    prompt_s: float


def main() -> None:
    """Measure, report."""
    arguments = _parser().parse_args()
    source = open_checkpoint(arguments.checkpoint)
    speech = read_speech(arguments.speech, source.config)[: arguments.recordings]
    calibration = read_speech(arguments.calibration, source.config)
    with TemporaryDirectory(dir=arguments.root) as folder:
        found = measure(source, speech, calibration, Path(folder))
    text = page(arguments.checkpoint.name, len(speech), found)
    print(text)
    if arguments.docs:
        place = arguments.docs / "performance.md"
        place.write_text(replace_marked(place.read_text(), {"formats": text}))


def measure(
    source: Checkpoint, speech: Sequence[Entry], calibration: Sequence[Entry], folder: Path
) -> dict[Format, Found]:
    """One format after another, in the same bundle: encoders are those of the checkpoint."""
    options = ExportOptions(encoder_precision="int8", llm_precision="int4", decoder="native")
    options = replace(options, parity_budget=10.0, token_agreement=0.0)
    bundle = export_bundle(source.folder, folder / "bundle", options)
    llm = LayeredLlm(source)
    rows = typical_rows(source, llm, speech[:COMPARED])
    expected = llm.logits(rows, LAST).numpy()
    tensors: dict[int, LazyTensors] = {0: source.merged_llm()}
    found = {}
    for form in tqdm([*formats()], desc="formats"):
        kind = form.weights.block if form.calibrated else 0
        if kind not in tensors:
            scratch = folder / f"rounded-{kind}"
            scratch.mkdir()
            with Progress(1, show=False) as progress:
                tensors[kind] = rounded_llm(source, calibration, scratch, progress, kind)
        _rewrite(source, bundle, form.weights, tensors[kind], options)
        found[form] = _judge(bundle, form.kv_cache, speech, [row.numpy() for row in rows], expected)
    return found


def _rewrite(
    source: Checkpoint, bundle: Path, weights: NativeWeights, tensors: LazyTensors, options: ExportOptions
) -> None:
    """Give the bundle weights of another format."""
    manifest, shape = open_bundle(bundle, verify=False).manifest, LlmShape.from_config(source.config.llm)
    write_native(bundle / weights.file, shape, tensors, weights, max_length(source, options))
    llm = replace(manifest.llm, weights=replace(manifest.llm.weights, native=weights))
    write_manifest(replace(manifest, llm=llm, files=list_files(bundle)), bundle)


def _judge(bundle: Path, kv_cache: KvCacheType, speech: Sequence[Entry], rows: Sequence[F32], expected: F32) -> Found:
    with Engine.load(bundle, decoder="native", verify=False, kv_cache=kv_cache) as engine:
        got = np.stack([_logits(engine, row) for row in rows])
        audio = engine.bundle.manifest.audio
        errors = words = 0
        for entry in speech:
            text = engine.generate(load_recording(entry, audio), task=entry.task, question=entry.question or None).text
            counted = word_errors(spell_digits(entry.text), spell_digits(text))
            errors, words = errors + counted.errors, words + counted.words
        return Found(
            error=float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))),
            agreeing=float(np.mean(got.argmax(axis=2) == expected.argmax(axis=2))),
            word_errors=errors / words,
            bytes=(bundle / "llm" / "native.bin").stat().st_size,
            token_s=_median(lambda: _steps(engine)) / STEPS,
            prompt_s=_median(lambda: _prompt(engine)),
        )


def _logits(engine: Engine, row: F32) -> F32:
    """[LAST, V]."""
    decoder = engine.model.decoder
    with decoder.open(1, len(row)) as (slot,):
        (logits,) = decoder.forward([Chunk(slot, row, wanted=LAST)])
    return logits


def _prompt(engine: Engine) -> None:
    decoder = engine.model.decoder
    with decoder.open(1, PROMPT) as (slot,):
        prefill(decoder, slot, decoder.embed([1] * PROMPT))


def _steps(engine: Engine) -> None:
    decoder = engine.model.decoder
    with decoder.open(1, STEPS) as slots:
        for _ in range(STEPS):
            step(decoder, slots, [1])


def _median(work: Callable[[], None]) -> float:
    """Seconds."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def page(checkpoint: str, recordings: int, found: dict[Format, Found]) -> str:
    """Markdown."""
    header = ["weights", "block", "activations", "output layer", "logits off", "tokens", "words wrong", "MiB"]
    rows = [
        [
            *(form.name, form.block, str(form.weights.activation_block), form.weights.lm_head),
            *(f"{one.error:.3f}", f"{one.agreeing:.1%}", f"{one.word_errors:.1%}", f"{one.bytes / 2**20:.0f}"),
            *(f"{1e3 * one.token_s:.2f} ms", f"{1e3 * one.prompt_s:.1f} ms"),
        ]
        for form, one in found.items()
    ]
    where = f"{checkpoint}, {recordings} recordings; {machine()['cpu']}, {datetime.date.today().isoformat()}."
    return f"{where}\n\n{table([*header, 'a token', f'a prompt of {PROMPT}'], rows)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--recordings", type=int, default=200, help="that words are counted in (default: 200)")
    parser.add_argument("--root", type=Path, default=Path("build"), help="for bundles, while it runs (default: build)")
    parser.add_argument("--docs", type=Path, help="folder of performance.md")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
