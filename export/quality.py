"""How good a bundle is, by the answers that `salmonrun evaluate` has kept of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.manifest import Manifest

if TYPE_CHECKING:
    from salmonrun.training.evaluation.scores import TaskScore


@dataclass(frozen=True)
class Quality:
    """The scores on one task of one set of recordings."""

    dataset: str
    task: str
    score: "TaskScore"


def read_quality(path: Path, manifest: Manifest) -> list[Quality]:
    """Score the answers in a file; needs the extra `train`.

    Raises:
        CheckpointError: the file is something else.
        ConfigError: the answers are another model's.
    """
    from salmonrun.training.evaluation.answers import read_answers
    from salmonrun.training.evaluation.scores import score

    if not path.is_file():
        raise ConfigError(f"evaluation is {str(path)!r}, which is no file; expected what evaluate --out wrote")
    settings, answers = read_answers(path)
    if settings.get("model sha256") != manifest.manifest_sha256:
        raise ConfigError(
            f"evaluation {path} holds answers of the model {str(settings.get('model sha256'))[:12]}, this bundle is "
            f"{manifest.manifest_sha256[:12]}: evaluate the bundle itself"
        )
    groups = sorted({(answer.dataset, answer.task) for answer in answers if answer.reference})
    return [
        Quality(
            Path(dataset).stem,
            task,
            score([a for a in answers if (a.dataset, a.task) == (dataset, task)], manifest.prompt.nothing),
        )
        for dataset, task in groups
    ]
