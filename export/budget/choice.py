"""The fewest bytes of the LLM that stay within a budget: settings are measured beside PyTorch, the smallest one holds.

Between int4 and int8, products move to 8 bits one after the other: first those that cost most for each byte they save
in 4 bits, which is measured of each alone, the others in 8.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open

from salmonrun.export.budget.divergence import Answers, Divergence, Mixed, logits_of, read_answers
from salmonrun.export.graphs.llm_family import LlmShape
from salmonrun.export.manifest import llm_spec, max_length
from salmonrun.export.options import Budget, ExportOptions
from salmonrun.export.progress import Progress
from salmonrun.export.weights.native import native_weights, write_native
from salmonrun.export.weights.products import products
from salmonrun.export.weights.stored import NEAREST, StoredLlm
from salmonrun.runtime.decoders.native_weights import LlmReader
from salmonrun.runtime.errors import ParityError
from salmonrun.runtime.manifest import LlmSpec
from salmonrun.runtime.parity import Choice, Tried
from salmonrun.runtime.tensor_file import DTYPES, TensorFile
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.journal import append, resume

MOST_RECORDINGS = 32  # that settings are measured on
JOURNAL = "products.jsonl"
CALIBRATED, ROUNDED, INT8 = "int4, calibrated", "int4, nearest", "int8"


@dataclass(frozen=True)
class Cost:
    """What a product does in 4 bits while all others have 8."""

    product: str
    kl: float


def choose(
    source: Checkpoint,
    calibrated: StoredLlm,
    speech: Sequence[Entry],
    options: ExportOptions,
    budget: Budget,
    folder: Path,
    progress: Progress,
) -> StoredLlm:
    """The smallest setting that stays within the budget, with all that was tried.

    Args:
        source: the checkpoint.
        calibrated: its LLM in int4.
        speech: recordings to measure on, which nothing was rounded for; the first MOST_RECORDINGS.
        options: of the bundle.
        budget: to stay within.
        folder: for weights and what was measured; what an earlier call has measured there is not measured again.
        progress: shows the measurements.

    Raises:
        MissingExtraError: our own kernels, which measure, were not built.
        ParityError: int8 is not within the budget either.
    """
    merged = source.merged_llm()
    settings = {
        CALIBRATED: calibrated,
        ROUNDED: StoredLlm(merged, "int4"),
        INT8: StoredLlm(merged, "int8", calibrated.block),
    }
    progress("measuring int4 and int8")
    answers = read_answers(source, speech[:MOST_RECORDINGS], progress)
    measuring = Measuring(source, options, folder, answers)
    tried = [measuring.whole(name, stored) for name, stored in settings.items()]
    if not _holding(tried[:2], budget) and _holding(tried, budget):
        progress("measuring products")
        for one, stored in _narrowed(Mixtures(measuring, settings[CALIBRATED], settings[INT8], progress), budget):
            tried.append(one)
            settings[one.setting] = stored
    tried.sort(key=lambda one: (one.bytes, one.kl))
    holding = _holding(tried, budget)
    if not holding:
        best = min(tried, key=lambda one: one.kl)
        raise ParityError(
            f"no setting is within {budget}; the nearest is {best}: raise the budget, or use --llm-precision fp32"
        )
    tokens = sum(map(len, answers.logits))
    choice = Choice(str(budget), len(answers.rows), tokens, holding[0].setting, tuple(tried))
    chosen = settings[choice.chosen]
    return StoredLlm(chosen.tensors, chosen.precision, chosen.block, chosen.rounding, chosen.int8, choice)


def _holding(tried: Sequence[Tried], budget: Budget) -> list[Tried]:
    return [one for one in tried if budget.holds(one.kl, one.agreement)]


def _narrowed(mixtures: "Mixtures", budget: Budget) -> Iterator[tuple[Tried, StoredLlm]]:
    """Those that lead to the smallest one within the budget, between int4, which is not, and int8, which is."""
    fewest, most = 0, len(mixtures.order)
    while most - fewest > 1:
        count = (fewest + most) // 2
        one, stored = mixtures.with_int8(count)
        yield one, stored
        fewest, most = (fewest, count) if _holding([one], budget) else (count, most)


class Measuring:
    """Writes settings for our own kernels, and measures them along answers."""

    def __init__(self, source: Checkpoint, options: ExportOptions, folder: Path, answers: Answers) -> None:
        self.folder = folder
        self.answers = answers
        self._source = source
        self._options = options

    def whole(self, setting: str, stored: StoredLlm) -> Tried:
        """A setting in a file of its own."""
        weights = native_weights(stored.precision, stored.block)
        path = self.file(stored)
        if not path.exists():
            shape, length = LlmShape.from_config(self._source.config.llm), max_length(self._source, self._options)
            partial = path.with_suffix(".partial")
            write_native(partial, shape, stored.tensors, weights, length)
            partial.replace(path)
        reader = LlmReader(TensorFile(path), self.spec(stored), weights)
        return _tried(setting, _tensor_bytes(path), self.answers.divergence(logits_of(reader)))

    def file(self, stored: StoredLlm) -> Path:
        """Where it is, or will be."""
        calibrated = "" if stored.rounding == NEAREST else "-calibrated"
        return self.folder / f"{stored.precision}-{stored.block}{calibrated}.bin"

    def spec(self, stored: StoredLlm) -> LlmSpec:
        """Of the LLM."""
        return llm_spec(self._source, self._options, stored)


class Mixtures:
    """Between int4 and int8, both measured before: products by what 4 bits cost, the dearest first."""

    def __init__(self, measuring: Measuring, int4: StoredLlm, int8: StoredLlm, progress: Progress) -> None:
        self._answers = measuring.answers
        self._int4, self._int8 = int4, int8
        self._files = measuring.file(int4), measuring.file(int8)
        self._mixed = Mixed(measuring.spec(int4), self._files, native_weights("int4", int4.block))
        self._products = products(int4.tensors)
        self.order = self._order(measuring.folder / JOURNAL, progress)

    def with_int8(self, count: int) -> tuple[Tried, StoredLlm]:
        """The first products have 8 bits."""
        names = tuple(name for part in self._products if part in self.order[:count] for name in self._products[part])
        divergence = self._answers.divergence(self._mixed.with_int8(frozenset(names)))
        size = _tensor_bytes(self._files[0]) + sum(map(self._mixed.saved_bytes, names))
        tensors = self._int4.tensors | {f"{name}.weight": self._int8.tensors[f"{name}.weight"] for name in names}
        stored = StoredLlm(tensors, "int4", self._int4.block, self._int4.rounding, names)
        return _tried(f"{count} of {len(self.order)} products in int8", size, divergence), stored

    def _order(self, path: Path, progress: Progress) -> list[str]:
        """Each product alone in 4 bits: what that costs for every byte that it saves."""
        known = {cost.product: cost for cost in resume(path, {}, Cost, "what products cost in 4 bits")}
        every = frozenset(name for names in self._products.values() for name in names)
        with path.open("a", encoding="utf-8") as file, progress.weights("products", len(self._products), "") as done:
            for part, names in self._products.items():
                if part not in known:
                    divergence = self._answers.divergence(self._mixed.with_int8(every - {*names}))
                    known[part] = Cost(part, divergence.kl)
                    append(file, asdict(known[part]))
                done(1)
        least = self._answers.divergence(self._mixed.with_int8(every)).kl

        def cost(part: str) -> float:
            return (known[part].kl - least) / sum(map(self._mixed.saved_bytes, self._products[part]))

        return sorted(self._products, key=cost, reverse=True)


def _tensor_bytes(path: Path) -> int:
    """Of a file's tensors, without what fills it up to whole pages."""
    with safe_open(path, "np") as file:
        names = [name for name in file.offset_keys() if not name.startswith("padding.")]
        slices = [file.get_slice(name) for name in names]
        return sum(math.prod(each.get_shape()) * DTYPES[each.get_dtype()].itemsize for each in slices)


def _tried(setting: str, size: int, divergence: Divergence) -> Tried:
    return Tried(setting, size, divergence.kl, divergence.agreement, divergence.logit_error)
