"""Models measured one after the other on the same recordings; those that are known are not measured again."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.device import Device
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.data.annotation import Entry
from salmonrun.training.evaluation.answers import asked
from salmonrun.training.evaluation.evaluate import evaluate, open_subject
from salmonrun.training.evaluation.report.cost import Cost, measure_cost
from salmonrun.training.evaluation.report.measured import Measured, Quality, agreement
from salmonrun.training.evaluation.report.models import Model
from salmonrun.training.journal import append, resume

JOURNAL = "measured.jsonl"


@dataclass(frozen=True)
class ReportOptions:
    """How models are measured."""

    threads: int = 1
    device: Device = "auto"
    max_new_tokens: int = 200
    num_beams: int = 1
    time_limit_s: float = 20.0  # of the repetitions of the latency

    def __post_init__(self) -> None:
        if self.time_limit_s <= 0:
            raise ConfigError(f"time_limit is {self.time_limit_s:g}; it must be above 0")


def first_of_each_task(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """The first so many entries of each task; None: all.

    Raises:
        ConfigError: `limit` is less than 1.
    """
    if limit is None:
        return list(entries)
    if limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    seen: Counter[str] = Counter()
    chosen = []
    for entry in entries:
        seen[entry.task] += 1
        if seen[entry.task] <= limit:
            chosen.append(entry)
    return chosen


class Report:
    """A folder of what was measured of models, on these recordings and with these options.

    Args:
        out: folder; what it holds of a run that was cut is gone on with.
        entries: recordings with their answers.
        options: how models are measured.

    Raises:
        CheckpointError: the folder is of other recordings or options.
    """

    def __init__(self, out: Path, entries: Sequence[Entry], options: ReportOptions) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._entries, self._options = out, list(entries), options
        settings = {"entries": [(*asked(entry), entry.text) for entry in entries], **asdict(options)}
        known = resume(out / JOURNAL, settings, _read, "what `salmonrun report` measured")
        self._known = {(row.name, row.sha256): row for row in known}

    def known(self, model: Model) -> Measured | None:
        """What was measured of this model, as it is now."""
        return self._known.get((model.name, model.sha256()))

    def measure(self, model: Model, progress: bool = False) -> Measured:
        """Measure a model, and keep what is found.

        Args:
            model: that may be known already.
            progress: show a bar, on a terminal.

        Raises:
            CheckpointError: it cannot be measured, or an entry cannot be used with it.
        """
        if found := self.known(model):
            return found
        started, options = time.perf_counter(), self._options
        sha256 = model.sha256()
        file = self._out / f"{model.name}-{sha256[:12]}"
        cost = measure_cost(
            model, file.with_suffix(".latency.json"), options.device, options.threads, options.time_limit_s
        )
        search = GenerationConfig(max_new_tokens=options.max_new_tokens, num_beams=options.num_beams)
        subject = open_subject(model.path, options.device, options.threads)
        done = evaluate(subject, self._entries, file.with_suffix(".answers.jsonl"), search, progress=progress)
        if done.skipped:  # rows of models that answered other recordings would not compare
            raise ConfigError(f"{model.path}: {done.skipped[0]}; leave such recordings out of the annotation")
        measured = Measured(
            name=model.name,
            kind=model.kind,
            sha256=sha256,
            size_bytes=model.size_bytes(),
            cost=cost,
            quality={task: Quality.of(score) for task, score in done.scores.items()},
            answers=tuple(row.hypothesis for row in done.answers),
            took_s=time.perf_counter() - started,
        )
        with (self._out / JOURNAL).open("a", encoding="utf-8") as journal:
            append(journal, asdict(measured))
        self._known[model.name, sha256] = measured
        return measured


def measure_all(
    report: Report, models: Sequence[Model], say: Callable[[str], object], progress: bool = False
) -> list[Measured]:
    """Each in turn; `say` is told which, and about how long the others will take."""
    found: list[Measured] = []
    unknown = [model for model in models if report.known(model) is None]
    for model in models:
        if model in unknown:
            taken = [one.took_s for one in found]
            left = len(unknown) - unknown.index(model)
            about = f", about {math.ceil(left * sum(taken) / len(taken) / 60)} min left" if taken else ""
            say(f"{len(found) + 1} of {len(models)}: {model.name}{about}")
        else:
            say(f"{len(found) + 1} of {len(models)}: {model.name} is known")
        found.append(report.measure(model, progress))
    return found


def agreements(models: Sequence[Model], measured: Sequence[Measured]) -> list[float]:
    """Of the tokens of each model's answers with those of the first, by the tokenizer of the first."""
    tokenizer = Tokenizer(models[0].path / "tokenizer.json")
    tokens = [[tokenizer.encode(text) for text in one.answers] for one in measured]
    return [agreement(tokens[0], other) for other in tokens]


def write_report(path: Path, measured: Sequence[Measured], shares: Sequence[float]) -> None:
    """All figures as JSON; the answers stay in the folder."""
    rows: list[dict[str, Any]] = []
    for one, share in zip(measured, shares, strict=True):
        row = {key: value for key, value in asdict(one).items() if key != "answers"}
        rows.append({**row, "agreement": share})
    path.write_text(json.dumps({"baseline": measured[0].name, "models": rows}, indent=1) + "\n")


def _read(**row: Any) -> Measured:
    """A line of the journal."""
    cost = row.pop("cost")
    quality = {task: Quality(**values) for task, values in row.pop("quality").items()}
    cost = Cost(**(cost | {"notes": tuple(cost["notes"])}))
    return Measured(**(row | {"answers": tuple(row["answers"])}), cost=cost, quality=quality)
