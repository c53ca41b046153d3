"""What ways to round the LLM's matrices to 4 bits cost, beside PyTorch, on recordings that nothing was rounded on.

    python -m benchmarks.formats.rounding CHECKPOINT CALIBRATION [--recordings 64] [--docs docs --name NAME]
    python -m benchmarks.formats.rounding CALIBRATION --random-1b 1 [...]

CALIBRATION is an annotation: of the first recordings, every other one is rounded on, and the answers to the others are
measured. --random-1b has an LLM of Llama-3.2-1B's shape with so many layers and random weights, behind tiny encoders.
The table goes to stdout, and to DOCS/performance.md with --docs.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from benchmarks.commits.models import llm_alone
from benchmarks.peers.machine import machine
from benchmarks.tables import replace_marked, table
from salmonrun.export import ExportOptions
from salmonrun.export.budget.choice import Measuring, Mixtures
from salmonrun.export.budget.divergence import read_answers
from salmonrun.export.confidence import read_speech
from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.progress import Progress
from salmonrun.export.weights.calibrated import Inputs, store, stored, typical_rows
from salmonrun.export.weights.products import products
from salmonrun.export.weights.rounding import inverse_root, round_clipped, round_compensated
from salmonrun.export.weights.stored import Block, StoredLlm
from salmonrun.kernels.formats import SUPER_BLOCK
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.parity import Tried
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.starting.init import init_checkpoint

BLOCK: Literal[64] = 64
SUPER: Literal[32] = 32  # blocks of a super-block, as bundles have them
BLOCKS: tuple[Block, ...] = (BLOCK, SUPER)
PASS, INVERSE, ROUNDING = "the pass", "inverses", "rounding"


@dataclass(frozen=True)
class Way:
    """A way to round: what it needs of the inputs' sums is computed once for all matrices that have them."""

    name: str
    round: Callable[[Tensor, Tensor, Tensor], Tensor]  # of a matrix, its inputs' sums and `inverse_root` of these
    needs: tuple[str, ...] = ()  # of PASS and INVERSE: what their times are added to
    block: Block = BLOCK


WAYS = (
    Way("each block clipped", lambda weight, _, __: round_clipped(weight, 4, BLOCK)),
    Way("clipped for its inputs", lambda weight, sums, _: round_clipped(weight, 4, BLOCK, sums.diagonal()), (PASS,)),
    Way("GPTQ", lambda weight, _, root: round_compensated(weight, root, 4, BLOCK, [1.0]), (PASS, INVERSE)),
    Way("GPTQ, clipped", lambda weight, _, root: round_compensated(weight, root, 4, BLOCK), (PASS, INVERSE)),
    Way(
        f"GPTQ, clipped, {SUPER} of {SUPER_BLOCK}",
        lambda weight, _, root: round_compensated(weight, root, 4, SUPER, super_block=SUPER_BLOCK),
        (PASS, INVERSE),
        SUPER,
    ),
)


def main() -> None:
    """Measure, report."""
    arguments = _parser().parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=arguments.root) as name:
        folder = Path(name)
        source = _checkpoint(arguments, folder)
        speech = read_speech(arguments.calibration, source.config)[: arguments.recordings]
        seconds = round_all(source, speech[::2], folder)
        found = measure(source, speech[1::2], folder, seconds)
    text = page(source, found, seconds)
    print(text)
    if arguments.docs:
        place = arguments.docs / "performance.md"
        place.write_text(replace_marked(place.read_text(), {f"rounding, {arguments.name}": text}))


def measure(source: Checkpoint, speech: Sequence[Entry], folder: Path, seconds: dict[str, float]) -> list[Tried]:
    """What each way does; seconds of mixtures are added to the others'."""
    merged = source.merged_llm()
    names = [f"{name}.weight" for matrices in products(merged).values() for name in matrices]
    options = ExportOptions(llm_precision="int4", decoder="native")
    with Progress(1, show=False) as progress:
        answers = read_answers(source, speech, progress)
        found = []
        for block in BLOCKS:
            place = Measuring(source, options, folder, answers)
            name = f"nearest, {SUPER} of {SUPER_BLOCK}" if block == SUPER else f"nearest, blocks of {block}"
            found.append(place.whole(name, StoredLlm(merged, "int4", block)))
        for way in WAYS:
            place = Measuring(source, options, folder / way.name, answers)
            int4 = StoredLlm(merged | {name: partial(stored, place.folder, name) for name in names}, "int4", way.block)
            found.append(place.whole(way.name, int4))
        int8 = StoredLlm(merged, "int8", SUPER)
        whole = place.whole("int8", int8)
        started = time.perf_counter()
        mixtures = Mixtures(place, int4, int8, progress)
        for part in (8, 4, 2):
            one, _ = mixtures.with_int8(len(mixtures.order) // part)
            found.append(replace(one, setting=f"{WAYS[-1].name}, {one.setting}"))
            seconds[found[-1].setting] = seconds[WAYS[-1].name] + time.perf_counter() - started
    return [*found, whole]


def round_all(source: Checkpoint, speech: Sequence[Entry], folder: Path) -> dict[str, float]:
    """Round in every way in one pass; seconds of each."""
    merged, llm = source.merged_llm(), LayeredLlm(source)
    rows = typical_rows(source, llm, speech)
    inputs = Inputs(llm.linears(), [len(row) for row in rows])
    taken = dict.fromkeys((PASS, INVERSE, ROUNDING, *(way.name for way in WAYS)), 0.0)
    for way in WAYS:
        (folder / way.name).mkdir()

    def round_layer(_: Tensor) -> None:
        for names, sums in inputs.take():
            with timed(INVERSE):
                root = inverse_root(sums)
            parts = [merged[name]() for name in names]
            for way in WAYS:
                with timed(way.name):
                    rounded = way.round(torch.cat(parts), sums, root)
                for name, weight in zip(names, torch.split(rounded, [len(part) for part in parts]), strict=True):
                    store(folder / way.name, name, weight, way.block)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        taken[what] += time.perf_counter() - begun

    def timed_layer(states: Tensor) -> None:
        with timed(ROUNDING):
            round_layer(states)

    llm.behind = timed_layer
    with timed(PASS):
        llm.states(rows)
    taken[PASS] -= taken.pop(ROUNDING)
    return taken | {way.name: taken[way.name] + sum(taken[need] for need in way.needs) for way in WAYS}


def page(source: Checkpoint, found: Sequence[Tried], seconds: dict[str, float]) -> str:
    """Markdown."""
    header = ["matrices", "logits off", "KL, nats a token", "tokens flipped", "MiB", "time"]
    rows = [
        [
            *(one.setting, f"{one.logit_error:.3f}", f"{one.kl:.4f}", f"{1 - one.agreement:.1%}"),
            *(f"{one.bytes / 2**20:.1f}", f"{seconds[one.setting]:.0f} s" if one.setting in seconds else "-"),
        ]
        for one in found
    ]
    layers = source.config.llm["num_hidden_layers"]
    where = (
        f"{source.config.name}, {layers} layers; {machine()['cpu']}, {datetime.date.today().isoformat()}. "
        f"The pass takes {seconds[PASS]:.0f} s, inverses {seconds[INVERSE]:.0f} s."
    )
    return f"{where}\n\n{table(header, rows)}"


def _checkpoint(arguments: argparse.Namespace, folder: Path) -> Checkpoint:
    if arguments.random_1b is None:
        return open_checkpoint(arguments.checkpoint)
    config = llm_alone()
    config = replace(config, llm={**config.llm, "num_hidden_layers": arguments.random_1b})
    init_checkpoint(config, folder / "random", 0, torch.bfloat16)
    return open_checkpoint(folder / "random")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="left out with --random-1b")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--recordings", type=int, default=64, help="half to round, half to measure on (default: 64)")
    parser.add_argument("--random-1b", type=int, metavar="LAYERS", help="a random LLM of Llama-3.2-1B's shape")
    parser.add_argument("--root", type=Path, default=Path("build"), help="for weights, while it runs (default: build)")
    parser.add_argument("--docs", type=Path, help="folder of performance.md")
    parser.add_argument("--name", help="of the model, in the page's marker")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
