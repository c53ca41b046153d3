"""Parts named by their place on the Hugging Face hub: from its cache or downloaded, at a revision that is recorded."""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is its HTTP client's
    DryRunError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
)

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.weight_files import weight_files
from salmonrun.training.model.config import PartSource

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:/([\w./-]+?))?(?:@([\w./-]+))?")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
BINS = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # downloaded where there are no safetensors


@dataclass(frozen=True)
class Wanted:
    """Which files of a repository are needed."""

    patterns: tuple[str, ...]  # all that is downloaded
    groups: tuple[tuple[str, ...], ...] = ()  # one of each must be there
    single: bool = False  # one file, not a folder


MODEL = ("config.json", "generation_config.json", "model-*-of-*.safetensors", *WEIGHTS)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
WHISPER = Wanted(MODEL, (("config.json",), WEIGHTS))
LLM = Wanted(
    (*MODEL, *TOKENIZER, "added_tokens.json", "chat_template.jinja"),
    (("config.json",), WEIGHTS, ("tokenizer.json", "tokenizer.model")),
)
ADAPTER = Wanted(("adapter_config.json", "adapter_model.safetensors"), (("adapter_config.json",),))
SALMONN = Wanted(("*.pth",), single=True)
AUDIO_ENCODER = Wanted(("*.pt",), single=True)


@dataclass(frozen=True)
class HubId:
    """`org/name`, `org/name/file` or either with `@revision`."""

    repo: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"/{self.file}" if self.file else "") + (f"@{self.revision}" if self.revision else "")


def parse_id(text: str) -> HubId | None:
    """The parts of a hub id; None if it cannot be one."""
    match = HUB_ID.fullmatch(text)
    return HubId(*match.groups()) if match else None


def source_name(source: PartSource) -> str:
    """What people call a part: a folder in the hub's cache is named by its commit."""
    hub = parse_id(source.hub) if source.hub else None
    return (hub.file or hub.repo).rpartition("/")[2] if hub else Path(source.path).resolve().name


def locate(reference: str | Path, wanted: Wanted) -> PartSource:
    """A local path as it is, or a hub id as a path in the hub's cache, downloaded if need be and possible. Not pinned.

    Raises:
        CheckpointError: the hub and its cache do not have all that is wanted; names the command that gets it.
    """
    path = Path(reference)
    hub = None if path.exists() else parse_id(str(reference))
    if hub is None:
        return PartSource(str(path), {})
    if wanted.single or hub.file:
        hub = HubId(hub.repo, hub.file or _only_file(hub, wanted), hub.revision)
        wanted = Wanted((str(hub.file),), ((str(hub.file),),), single=True)
    folder = _snapshot(hub, wanted.patterns)
    hub = HubId(hub.repo, hub.file, folder.name)
    if WEIGHTS in wanted.groups and not any((folder / name).is_file() for name in WEIGHTS):
        _snapshot(hub, (*BINS, "pytorch_model-*-of-*.bin"))
    missing = _missing(folder, wanted)
    if missing:
        raise CheckpointError(f"{hub} has no {' or '.join(missing)} in the cache; {how_to_get(hub, missing)}")
    return PartSource(str(folder / hub.file if hub.file else folder), {}, str(hub))


def cached_folder(hub: HubId) -> Path:
    """What the cache has of a repository: a snapshot's folder; nothing is downloaded.

    Raises:
        CheckpointError: it has nothing of it.
    """
    return _snapshot(hub, (hub.file or "*",), cached=True)


def find_cached(hub: str, files: list[str]) -> Path:
    """The path in the cache of a part that a checkpoint has from the hub; nothing is downloaded.

    Raises:
        CheckpointError: a file is not there; names the command that gets it.
    """
    where = parse_id(hub)
    if where is None:
        raise CheckpointError(f"{hub!r} is no hub id; expected org/name@commit")
    wanted = [where.file] if where.file else files
    folder = _snapshot(where, tuple(wanted), cached=True)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{hub} lacks {missing} in the cache; {how_to_get(where, missing)}")
    return folder / where.file if where.file else folder


def how_to_get(hub: HubId, patterns: list[str]) -> str:
    """The command that downloads what is missing."""
    revision = f" --revision {hub.revision}" if hub.revision else ""
    return f"get it with: hf download {hub.repo}{revision} " + " ".join(f"--include '{name}'" for name in patterns)


def _snapshot(hub: HubId, patterns: tuple[str, ...], cached: bool = False) -> Path:
    try:
        return Path(
            snapshot_download(hub.repo, revision=hub.revision, allow_patterns=list(patterns), local_files_only=cached)
        )
    except (HTTPError, HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{hub} is neither a path here nor to be had from the hub or its cache ({reason}); "
            f"{how_to_get(hub, list(patterns))}"
        ) from error


def _only_file(hub: HubId, wanted: Wanted) -> str:
    """The one file of the repository that fits."""
    try:
        listed = snapshot_download(hub.repo, revision=hub.revision, allow_patterns=list(wanted.patterns), dry_run=True)
        names = [entry.filename for entry in listed]
    except (HTTPError, HFValidationError, DryRunError):  # offline: what the cache has, and errors are raised there
        folder = _snapshot(hub, wanted.patterns)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    fitting = sorted(name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in wanted.patterns))
    if len(fitting) != 1:
        raise CheckpointError(
            f"{hub} has {fitting or 'no file'} matching {' '.join(wanted.patterns)}; expected one: "
            f"name it as {hub.repo}/FILE, or {how_to_get(hub, list(wanted.patterns))}"
        )
    return fitting[0]


def _missing(folder: Path, wanted: Wanted) -> list[str]:
    """Of the first group that has nothing, what would do; or shards that the index lists."""
    for group in wanted.groups:
        enough = (*group, *BINS) if group == WEIGHTS else group
        if not any((folder / name).is_file() for name in enough):
            return list(group)
    if WEIGHTS in wanted.groups:
        return [file.name for file in weight_files(folder) if not file.is_file()]
    return []
