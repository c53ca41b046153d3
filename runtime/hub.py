"""Bundles on the Hugging Face Hub: had from its cache, or downloaded, file by file as the manifest lists them."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.bundle import read_manifest
from salmonrun.runtime.errors import BundleError, ConfigError, HubError, MissingExtraError
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.manifest import MANIFEST
from salmonrun.runtime.signed import SIGNATURE

# As the Hub has them; "runs/bundle" is one, too, so a folder of that name comes first.
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_S = 10.0  # until the hub answers with what a revision is


@dataclass(frozen=True)
class Located:
    """Where a bundle lies, and how it came there."""

    folder: Path
    hub: str = ""  # org/name@commit; empty: it is a folder of this machine
    downloaded: int = 0  # bytes; 0: the cache had all of it

    def __str__(self) -> str:
        """In a line."""
        how = f"{self.downloaded / 2**20:.1f} MiB downloaded to" if self.downloaded else "from the cache,"
        return f"{self.hub}: {how} {self.folder}" if self.hub else str(self.folder)


def locate_bundle(
    name: str | os.PathLike[str],
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    signed: bool = False,
) -> Located:
    """A bundle's folder: a local one of that name as it is, else that of a repository, in the hub's cache.

    Nothing is verified here: `open_bundle` hashes what was downloaded.

    Args:
        name: a folder, `org/name` or `org/name@revision`. What can be no hub id is taken for a folder.
        revision: branch, tag or commit; None: the default branch.
        cache_dir: of the hub; None: where HF_HUB_CACHE says, as for all that use it.
        token: None: the one that was logged in with, if any.
        local_files_only: take what the cache has, and ask nobody.
        signed: have the signature, too, if the repository has one.

    Raises:
        BundleError: the repository holds no bundle, or none of this format.
        ConfigError: a revision of a folder, or two of a repository.
        HubError: no such repository or revision, no access, or neither network nor all of it in the cache.
        MissingExtraError: huggingface_hub is not installed.
    """
    matched = None if os.path.exists(name) else _HUB_ID.fullmatch(os.fspath(name))
    if matched is None:
        if revision is not None:
            raise ConfigError(f"revision is {revision!r}, and {name} is a folder here, or no hub id; leave it out")
        return Located(Path(name))
    repo, named = matched.groups()
    if named and revision:
        raise ConfigError(f"revision is {revision!r}, and {name} names one; leave out one of them")
    return _fetch(_Repository(repo, named or revision, cache_dir, token), local_files_only, signed)


@dataclass(frozen=True)
class _Repository:
    repo: str
    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def _fetch(asked: _Repository, cached: bool, signed: bool) -> Located:
    hub = library(f"{asked.repo} is no folder here, and to have it from the Hugging Face Hub")
    with told(str(asked), asked.repo):
        on_hub = None if cached else _commit_on_hub(hub, asked)
        options: dict[str, Any] = {
            "cache_dir": asked.cache_dir,
            "token": asked.token,
            "local_files_only": on_hub is None,
        }
        folder = Path(hub.hf_hub_download(asked.repo, MANIFEST, revision=asked.revision, **options)).parent
        commit = folder.name
        if on_hub not in (None, commit):
            LOGGER.warning("%s is at %s on the hub, which did not hand it out; the cache has %s", asked, on_hub, commit)
        sizes = {name: spec.size for name, spec in read_manifest(folder).files.items()}
        sizes |= {SIGNATURE: 0} if signed else {}
        missing = [name for name in sizes if not (folder / name).exists()]
        if missing:
            patterns = [glob.escape(name) for name in missing]
            hub.snapshot_download(asked.repo, revision=commit, allow_patterns=patterns, **options)
    return Located(folder, f"{asked.repo}@{commit}", sum(sizes[name] for name in missing))


def _commit_on_hub(hub: Any, asked: _Repository) -> str | None:
    """The commit of a revision; None: the hub cannot be asked, and the cache must do, which is logged."""
    if asked.revision and _COMMIT.fullmatch(asked.revision):
        return asked.revision
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = hub.HfApi(token=asked.token).model_info(asked.repo, revision=asked.revision, timeout=_TIMEOUT_S)
    except OfflineModeIsEnabled:  # which is what was asked for
        return None
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        LOGGER.warning("%s: the hub fails (%s); the cache is used, if it has it", asked, first_line(error))
        return None
    except http_error() as error:
        LOGGER.warning("%s: the hub cannot be reached (%s); the cache is used, if it has it", asked, first_line(error))
        return None
    return str(info.sha)


@contextmanager
def told(what: str, repo: str) -> Iterator[None]:
    """Have errors of the hub be ours.

    Args:
        what: was asked for, for messages: a repository, with its revision if one is named.
        repo: `org/name`.

    Raises:
        BundleError: the repository has no manifest.
        HubError: all else.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{what} is gated: ask for access at {page}, then log in with hf auth login, or pass a token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{what} is neither a folder here nor a repository at {page}; if it is private, log in with hf auth login, "
            "or pass a token"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{what}: there is no such revision; {page} lists branches, tags and commits") from error
    except errors.HFValidationError as error:
        raise HubError(f"{what} is no hub id, org/name or org/name@revision: {first_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{what} is not here as a folder, nor wholly in the hub's cache, and cannot be downloaded now "
            f"({first_line(error.__cause__ or error)}); get it once with hf download {repo}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise BundleError(
            f"{what} has no {MANIFEST}, or lacks a file that it lists: it is no bundle; a checkpoint becomes one by "
            "salmonrun export, and a repository by salmonrun push"
        ) from error
    except http_error() as error:
        raise HubError(f"{what}: the hub at {constants.ENDPOINT} does not do it: {first_line(error)}") from error


def http_error() -> type[Exception]:
    """The base of what the hub's HTTP client raises."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # which client it is has changed

    kind: type[Exception] = HTTPError
    return kind


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def library(purpose: str) -> Any:
    """huggingface_hub.

    Args:
        purpose: what it is needed for, in the middle of a sentence.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{purpose}, huggingface_hub is needed: pip install 'salmonrun[hub]'") from error
    return huggingface_hub
