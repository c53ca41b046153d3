"""What is in data sets: a table of counts, durations, texts, sample rates and problems, and a chart of the same."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import soundfile

from salmonrun.runtime.config import AudioConfig, PromptConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.picture import load_figure
from salmonrun.training.data.annotation import GAP_S, Entry, Problem, check_entry, check_recordings, read_annotation

if TYPE_CHECKING:  # an optional dependency
    from matplotlib.axes import Axes

_CELLS = "{:>8}{:>9.2f}   {:>6.1f} /{:>6.1f} /{:>6.1f}   {:>6} /{:>6} /{:>6}"
_HEADS = f"{'entries':>8}{'hours':>9}   {'s: min / median / max':>22}   {'characters: the same':>22}"


@dataclass(frozen=True)
class EntryStatistics:
    """Sizes of a usable entry."""

    dataset: str  # the annotation file
    task: str
    seconds: float  # of all its recordings and the gaps between them
    rates: tuple[int, ...]  # Hz, of each recording
    characters: int  # of the text


@dataclass(frozen=True)
class DataStatistics:
    """The usable entries of some data sets, and the problems of the others."""

    usable: tuple[EntryStatistics, ...]
    problems: tuple[Problem, ...]
    kinds: tuple[str, ...]  # of each problem: its reason without paths and numbers
    min_s: float  # shorter recordings are padded

    def table(self) -> str:
        """Lines to print: data sets by task, sample rates, problems by kind with the first example of each."""
        groups: dict[tuple[str, str], list[EntryStatistics]] = defaultdict(list)
        for row in self.usable:
            groups[row.dataset, row.task].append(row)
        if len(groups) > 1:
            groups["all", ""] = list(self.usable)
        width = 2 + max((len(dataset) for dataset, _ in groups), default=0)
        lines = [f"{'data set':<{width}}{'task':<20}{_HEADS}"] if groups else ["no usable entry"]
        lines += [f"{dataset:<{width}}{task:<20}{_cells(rows)}" for (dataset, task), rows in groups.items()]
        rates = Counter(rate for row in self.usable for rate in row.rates)
        lines += [f"sample rate {rate} Hz: {count}" for rate, count in sorted(rates.items())]
        if short := sum(row.seconds < self.min_s for row in self.usable):
            lines.append(f"{short} entries shorter than {self.min_s:g} s, to be padded with zeros")
        examples = dict(zip(reversed(self.kinds), reversed(self.problems), strict=True))  # the first of each stays
        lines += [
            f"{count} unusable: {kind}; the first is {examples[kind].dataset}: entry {examples[kind].index}"
            for kind, count in Counter(self.kinds).most_common()
        ]
        return "\n".join(lines)


def measure(
    files: Iterable[str | Path], prefix: str | None, prompts: PromptConfig | None, audio: AudioConfig
) -> DataStatistics:
    """Measure annotations and the headers of their recordings.

    Args:
        files: annotation JSONs.
        prefix: folder of relative paths; None for each annotation's own.
        prompts: tasks there are; None to take any task and text, and check the recordings alone.
        audio: shortest and longest recording.

    Raises:
        CheckpointError: a file is not such a JSON.
    """
    usable: list[EntryStatistics] = []
    problems: list[Problem] = []
    kinds: list[str] = []
    for file in files:
        entries, malformed = read_annotation(file, prefix)
        problems += malformed
        kinds += [_kind(problem.reason) for problem in malformed]
        for entry in entries:
            reason = check_entry(entry, prompts, audio) if prompts else check_recordings(entry, audio)
            if reason:
                problems.append(Problem(entry.dataset, entry.index, reason))
                kinds.append(_kind(reason, entry))
            else:
                usable.append(_measure_entry(entry))
    return DataStatistics(tuple(usable), tuple(problems), tuple(kinds), audio.min_s)


def draw(statistics: DataStatistics, file: str | Path) -> None:
    """Draw the distributions into one PNG: entries by data set and task, durations, text lengths.

    Raises:
        ConfigError: the name does not end in .png, or there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    figure_class = load_figure("--out")
    from matplotlib import colormaps

    if Path(file).suffix.lower() != ".png":
        raise ConfigError(f"the chart's name is {str(file)!r}; expected one that ends in .png")
    if not statistics.usable:
        raise ConfigError("there is no usable entry to draw; leave --out away to see the problems")
    datasets = list(dict.fromkeys(row.dataset for row in statistics.usable))
    tasks = sorted({row.task for row in statistics.usable})
    figure = figure_class(figsize=(10, 10 + 0.4 * len(datasets)), layout="constrained")
    counts, durations, texts = figure.subplots(3, 1, height_ratios=[2 + 0.4 * len(datasets), 4, 4])
    for axes in (counts, durations, texts):
        axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    hours = sum(row.seconds for row in statistics.usable) / 3600
    figure.suptitle(
        f"{len(statistics.usable)} entries, {hours:.2f} hours; {len(statistics.problems)} unusable entries left out"
    )
    _draw_counts(counts, statistics.usable, datasets, tasks)
    by_task = {task: [row for row in statistics.usable if row.task == task] for task in tasks}
    durations.hist([[row.seconds for row in rows] for rows in by_task.values()], bins=40, stacked=True, label=tasks)
    durations.set(title="Duration of the audio", xlabel="seconds", ylabel="entries")
    texts.hist([[row.characters for row in rows] for rows in by_task.values()], bins=40, stacked=True, label=tasks)
    texts.set(title="Length of the text", xlabel="characters", ylabel="entries")
    counts.legend(title="task", bbox_to_anchor=(1.0, 1.0), loc="upper left")  # one for all: the colours are the same
    figure.savefig(file, dpi=120)


def _draw_counts(axes: "Axes", usable: Sequence[EntryStatistics], datasets: list[str], tasks: list[str]) -> None:
    entries = Counter((row.dataset, row.task) for row in usable)
    left = [0] * len(datasets)
    for task in tasks:
        widths = [entries[dataset, task] for dataset in datasets]
        axes.barh(range(len(datasets)), widths, left=left, label=task)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    names = [name if len(name) <= 40 else f"…{name[-39:]}" for name in datasets]
    axes.set_yticks(range(len(datasets)), names)
    axes.invert_yaxis()  # the first data set on top
    axes.set(title="Entries by data set and task", xlabel="entries")


def _measure_entry(entry: Entry) -> EntryStatistics:
    headers = [soundfile.info(path) for path in entry.recordings]
    seconds = GAP_S * len(entry.appended) + sum(header.frames / header.samplerate for header in headers)
    rates = tuple(header.samplerate for header in headers)
    return EntryStatistics(entry.dataset, entry.task, seconds, rates, len(entry.text))


def _kind(reason: str, entry: Entry | None = None) -> str:
    """A reason without what is particular to one entry, so that equal ones can be counted."""
    for path in entry.recordings if entry else ():
        reason = reason.replace(str(path), "FILE")
    return re.sub(r"\d+(\.\d+)?", "N", reason)


def _cells(rows: Sequence[EntryStatistics]) -> str:
    seconds, characters = [row.seconds for row in rows], [row.characters for row in rows]
    spread = (min(seconds), median(seconds), max(seconds), min(characters), round(median(characters)), max(characters))
    return _CELLS.format(len(rows), sum(seconds) / 3600, *spread)
