"""Whether a token's logits are the same bits in any company: python -m benchmarks.decoders.identity BUNDLE

Of a bundle for our own kernels, of the size that is served: a prompt and the tokens behind it go through the decoder
alone, cut into pieces, in rounds with seven other sequences, on one, two and three threads, and in every instruction
set that the processor has. All logits are compared as integers. The exit status is 1 where one differs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.decoders.native_decoder import NativeDecoder, NativeSlot
from salmonrun.runtime.matrices import kernels

PROMPT, STEPS, OTHERS = 77, 5, 7  # positions, tokens behind them, sequences beside
CUTS = (16, 1, 33)  # of the prompt, the rest last
THREADS = (1, 2, 3)
Way = Callable[[NativeDecoder, Sequence[int]], F32]


def main() -> int:
    """Compare, and print a line for each way that was gone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = open_bundle(parser.parse_args().bundle)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, bundle.manifest.llm.vocab_size, PROMPT + STEPS).tolist()
    expected: F32 | None = None
    differ = 0
    cases = [*product(kernels().instruction_sets(), THREADS)]
    with tqdm(cases, unit="decoder") as bar:
        for instruction_set, threads in bar:
            decoder = NativeDecoder.load(bundle, threads, instruction_set)
            for name, way in WAYS.items():
                logits = way(decoder, ids)
                expected = logits if expected is None else expected
                other = int((logits.view(np.uint32) != expected.view(np.uint32)).sum())
                differ += bool(other)
                said = f"{other} of {logits.size} logits differ" if other else "the same bits"
                bar.write(f"{instruction_set}, {threads} threads, {name}: {said}", file=sys.stdout)
    print(f"{len(cases) * len(WAYS)} ways, {STEPS + 1} rows of logits each: {differ} differ")
    return int(differ > 0)


def alone(decoder: NativeDecoder, ids: Sequence[int]) -> F32:
    """The prompt at once, then token by token: logits [1 + STEPS, V]."""
    with decoder.open(1, len(ids)) as (slot,):
        return _rows(decoder, slot, [ids[:PROMPT], *([token] for token in ids[PROMPT:])])


def in_pieces(decoder: NativeDecoder, ids: Sequence[int]) -> F32:
    """The prompt in pieces, then all tokens in one."""
    ends = [*np.cumsum(CUTS).tolist(), PROMPT]
    with decoder.open(1, len(ids)) as (slot,):
        for begin, end in zip([0, *ends], ends[:-1], strict=False):
            decoder.forward([Chunk(slot, ids[begin:end], wanted=0)])
        first = decoder.forward([Chunk(slot, ids[ends[-2] : PROMPT])])[0]
        return np.concatenate([first, decoder.forward([Chunk(slot, ids[PROMPT:], wanted=STEPS)])[0]])


def in_company(decoder: NativeDecoder, ids: Sequence[int]) -> F32:
    """Among other sequences that are as long as they like, in the middle of every round."""
    rng = np.random.default_rng(1)
    with decoder.open(1 + OTHERS, 2 * len(ids)) as (slot, *others):
        return _rows(decoder, slot, [ids[:PROMPT], *([token] for token in ids[PROMPT:])], others, rng)


def _rows(
    decoder: NativeDecoder,
    slot: NativeSlot,
    pieces: Sequence[Sequence[int]],
    others: Sequence[NativeSlot] = (),
    rng: np.random.Generator | None = None,
) -> F32:
    """Logits behind each piece, each in a round with a few tokens of every other sequence."""
    rows = []
    for piece in pieces:
        beside = [Chunk(other, rng.choice(pieces[0], rng.integers(1, 9)).tolist()) for other in others] if rng else []
        half = len(beside) // 2
        rows.append(decoder.forward([*beside[:half], Chunk(slot, piece), *beside[half:]])[half])
    return np.concatenate(rows)


WAYS: dict[str, Way] = {"alone": alone, "in pieces": in_pieces, "among 8 sequences": in_company}

if __name__ == "__main__":
    sys.exit(guarded(main))
