"""Models that are set beside each other: their names, what tells them apart, how large they are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.tensors import read_json

MANIFEST = "bundle.json"


@dataclass(frozen=True)
class Model:
    """A bundle or a checkpoint, by the name that it goes by in tables and pictures."""

    name: str
    path: Path

    @property
    def kind(self) -> Literal["bundle", "checkpoint"]:
        """A bundle, if the folder has a bundle.json; otherwise a checkpoint."""
        return "bundle" if (self.path / MANIFEST).is_file() else "checkpoint"

    def sha256(self) -> str:
        """The same for the same weights and settings, as of an `evaluate.Subject`.

        Raises:
            CheckpointError: it is neither, or not whole.
        """
        if self.kind == "bundle":
            return str(read_json(self.path / MANIFEST).get("manifest_sha256"))
        return open_checkpoint(self.path, verify=False).sha256()

    def size_bytes(self) -> int:
        """Of its files; of a checkpoint, those that it refers to, too."""
        files = {path for path in self.path.rglob("*") if path.is_file()}
        if self.kind == "checkpoint":
            for _, source in open_checkpoint(self.path, verify=False).config.sources.items():
                for part in (source, source.adapter) if source.adapter else (source,):
                    where = Path(part.path)
                    files |= {where} if where.is_file() else {where / name for name in part.sha256}
        return sum(path.stat().st_size for path in files)


def name_models(given: Sequence[str]) -> list[Model]:
    """Models by arguments PATH or NAME=PATH; without a name, by the end of the path that no other has.

    Raises:
        ConfigError: there is none, or two have the same name.
        CheckpointError: a folder is not there.
    """
    if not given:
        raise ConfigError("no model is given; expected bundles or checkpoints, the first of them the baseline")
    named = [_split(text) for text in given]
    parts = 1
    while parts < 4 and len({_end(path, parts) for name, path in named if not name}) < sum(not n for n, _ in named):
        parts += 1
    models = [Model(name or _end(path, parts), path) for name, path in named]
    for name, count in Counter(model.name for model in models).items():
        if count > 1:
            raise ConfigError(f"{count} models are called {name!r}; name them: NAME=PATH")
    for model in models:
        if not (model.path / MANIFEST).is_file() and not (model.path / "config.json").is_file():
            raise CheckpointError(f"{model.path} has neither bundle.json nor config.json; expected a model's folder")
    return models


def _split(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name and "/" not in name else ("", Path(text))


def _end(path: Path, parts: int) -> str:
    return "-".join(path.resolve().parts[-parts:])
