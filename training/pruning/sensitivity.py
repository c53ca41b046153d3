"""How much a model needs each of its layers: every one left out in turn, on the user's own recordings."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import from_dict, to_dict
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.evaluation.answers import asked
from salmonrun.training.journal import append, resume
from salmonrun.training.pruning.calibration import Calibration, Score, load_measured, read_calibration, score
from salmonrun.training.pruning.layers import Part, count_layers, parts_of
from salmonrun.training.pruning.observe import Observation, observe
from salmonrun.training.tensors import read_json
from salmonrun.version import __version__

Criterion = Literal["loss", "perplexity", "influence", "angular", "taylor"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
OBSERVED: tuple[Criterion, ...] = ("influence", "angular", "taylor")  # of all layers in one pass, and of runs of layers
JOURNAL, RESULT, STATES = "measured.jsonl", "sensitivity.json", "features"


@dataclass(frozen=True)
class PartSensitivity:
    """Of each of a part's L layers. The lower, the less it is needed."""

    loss: tuple[float, ...]  # of the model without the layer
    perplexity: tuple[float, ...]
    influence: tuple[tuple[float, ...], ...]  # [n - 1][i]: of the run of n layers from layer i on, see `Observation`
    angular: tuple[tuple[float, ...], ...]  # the same
    taylor: tuple[float, ...]

    def of(self, criterion: Criterion) -> tuple[float, ...]:
        """Each layer's score by a criterion."""
        values = getattr(self, criterion)
        return values[0] if criterion in ("influence", "angular") else values

    def of_runs(self, criterion: Criterion, length: int) -> tuple[float, ...]:
        """The score of the runs of so many layers from each layer on, by a criterion of `OBSERVED`."""
        return _of_runs(self, criterion, length)


@dataclass(frozen=True)
class Sensitivity:
    """Of the layers of a model's parts, on one set of recordings."""

    tool: str
    checkpoint: str  # sha256 of the checkpoint's files and of those it refers to
    data: str  # sha256 of the answers and the paths of their recordings
    recordings: int
    tokens: int  # of their answers
    loss: float  # of the whole model
    perplexity: float
    parts: dict[str, PartSensitivity]


@dataclass(frozen=True)
class _Line:
    """What was measured: of the whole model (no `part`), without a `layer`, or of all layers at once (`observed`)."""

    part: Part | None = None
    layer: int | None = None
    score: dict[str, float] | None = None
    observed: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[str | None, int | None, bool]:
        return self.part, self.layer, self.observed is not None


def measure_sensitivity(
    checkpoint: str | Path,
    annotation: str | Path,
    out: str | Path,
    limit: int | None = None,
    parts: Sequence[Part] | None = None,
    progress: bool = False,
) -> Sensitivity:
    """Measure, and write sensitivity.json into `out`; what a run that was cut has measured is not measured again.

    Args:
        checkpoint: folder of the model.
        annotation: recordings with their answers.
        out: folder of the results, of what has been measured so far, and of the features that are kept meanwhile.
        limit: only the first so many entries.
        parts: whose layers; None: all.
        progress: show bars, with the time that is left.

    Raises:
        CheckpointError: the checkpoint or an entry cannot be used, or `out` is of other ones.
        ConfigError: the model has no such part.
    """
    source = open_checkpoint(checkpoint)
    chosen = tuple(parts) if parts is not None else parts_of(source.config)
    layers = {part: count_layers(source.config, part) for part in chosen}
    model, out = load_measured(checkpoint), Path(out)
    entries = read_calibration(annotation, model, limit)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"checkpoint sha256": source.sha256(), "data sha256": _data_sha256(entries)}
    known = {line.key: line for line in resume(out / JOURNAL, settings, _Line, "what `prune sensitivity` measured")}
    calibration = Calibration(model, entries, out / STATES, progress)
    wanted = [_Line()]
    for part, count in layers.items():
        wanted += [_Line(part, layer) for layer in range(count)] + [_Line(part, observed={})]
    missing = [line for line in wanted if line.key not in known]
    if missing:
        calibration.settle({})
    with (
        (out / JOURNAL).open("a", encoding="utf-8") as file,
        tqdm(total=len(missing) * len(entries), disable=None if progress else True, unit="recording") as bar,
    ):
        for line in missing:
            measured = _measured(calibration, line, bar.update)
            append(file, asdict(measured))
            known[line.key] = measured
    whole = known[_Line().key].score or {}
    result = Sensitivity(
        tool=tool(),
        checkpoint=settings["checkpoint sha256"],
        data=settings["data sha256"],
        recordings=len(entries),
        tokens=sum(len(calibration.target(entry)) for entry in entries),
        loss=whole["loss"],
        perplexity=whole["perplexity"],
        parts={part: _collected(known, part, count) for part, count in layers.items()},
    )
    write_sensitivity(result, out / RESULT)
    return result


def read_sensitivity(path: str | Path) -> Sensitivity:
    """What was measured: the JSON, or the folder it is in.

    Raises:
        CheckpointError: there is none, or it is something else.
    """
    path = Path(path) / RESULT if Path(path).is_dir() else Path(path)
    try:
        return from_dict(Sensitivity, read_json(path), str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}; expected what `salmonrun prune sensitivity` writes") from error


def write_sensitivity(sensitivity: Sensitivity, path: Path) -> None:
    """Write the JSON beside its place and rename it."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(to_dict(sensitivity), indent=1) + "\n")
    temporary.replace(path)


def score_layers(
    calibration: Calibration, part: Part, criterion: Criterion, gone: dict[Part, frozenset[int]], layers: Sequence[int]
) -> dict[int, float]:
    """Score of each of these layers by one criterion; nothing is measured that it does not need.

    Args:
        calibration: model and recordings.
        part: whose layers.
        criterion: by which: a pass over the recordings for each layer, or one for all where it is of `OBSERVED`.
        gone: layers that the model goes without already, those of this part with them.
        layers: numbers of layers that are left.
    """
    before = gone.get(part, frozenset())
    if criterion in OBSERVED:
        left = [layer for layer in range(count_layers(calibration.model.config, part)) if layer not in before]
        scores = dict(zip(left, _of_runs(observe(calibration, part, gone), criterion, 1), strict=True))
        return {layer: scores[layer] for layer in layers}
    bar = tqdm(layers, desc=f"{part} without {len(before)}", unit="layer", disable=not calibration.progress)
    return {layer: getattr(score(calibration.losses(gone | {part: before | {layer}})), criterion) for layer in bar}


def score_runs(
    calibration: Calibration, part: Part, criterion: Criterion, gone: dict[Part, frozenset[int]], length: int
) -> tuple[float, ...]:
    """Score of the runs of so many layers from each layer of a whole part on, by a criterion of `OBSERVED`."""
    return _of_runs(observe(calibration, part, gone), criterion, length)


def _of_runs(observed: Observation | PartSensitivity, criterion: Criterion, length: int) -> tuple[float, ...]:
    assert criterion in OBSERVED, "the others are of single layers"
    if criterion == "taylor":  # to first order, effects add up
        return tuple(sum(observed.taylor[i : i + length]) for i in range(len(observed.taylor) - length + 1))
    return tuple(getattr(observed, criterion)[length - 1])


def _measured(calibration: Calibration, line: _Line, done: Callable[[], object]) -> _Line:
    if line.part is not None and line.observed is not None:
        return _Line(line.part, observed=asdict(observe(calibration, line.part, {}, done)))
    gone = {} if line.part is None or line.layer is None else {line.part: {line.layer}}
    return _Line(line.part, line.layer, score=asdict(score(calibration.losses(gone, done))))


def _collected(known: dict[Any, _Line], part: Part, count: int) -> PartSensitivity:
    scores = [Score(**(known[_Line(part, layer).key].score or {})) for layer in range(count)]
    return _part(scores, Observation(**(known[_Line(part, observed={}).key].observed or {})))


def _part(scores: Sequence[Score], observed: Observation) -> PartSensitivity:
    return PartSensitivity(
        tuple(one.loss for one in scores),
        tuple(one.perplexity for one in scores),
        tuple(map(tuple, observed.influence)),
        tuple(map(tuple, observed.angular)),
        tuple(observed.taylor),
    )


def _data_sha256(entries: Sequence[Entry]) -> str:
    return hashlib.sha256(json.dumps([(*asked(entry), entry.text) for entry in entries]).encode()).hexdigest()


def tool() -> str:
    """By which a lineage names this program."""
    return f"salmonrun {__version__}"
