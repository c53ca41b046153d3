"""A bundle becomes a repository of the Hugging Face Hub: checked, with its card, in one commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.export.card import CARD
from salmonrun.export.hub_card import hub_card
from salmonrun.export.quality import read_quality
from salmonrun.runtime.bundle import Bundle, open_bundle, read_manifest
from salmonrun.runtime.errors import BundleError, ConfigError, HubError
from salmonrun.runtime.hub import first_line, library, told
from salmonrun.runtime.manifest import MANIFEST
from salmonrun.runtime.signed import SIGNATURE


@dataclass(frozen=True)
class Pushed:
    """What was written to the hub."""

    repo_id: str
    commit: str
    url: str
    files: int
    size: int  # bytes
    removed: int  # files of the bundle that was there before


def push_bundle(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    evaluations: Sequence[str | Path] = (),
    token: str | None = None,
) -> Pushed:
    """Check a bundle, and upload its files and a model card in one commit; large files go by LFS or Xet.

    What a bundle that was there before has more is removed in the same commit; other files of the repository are kept.

    Args:
        folder: the bundle.
        repo_id: `org/name`; made if it is not there.
        private: make it private; one that is there and public is refused.
        revision: a branch, which is made if it is not there; None: main.
        message: of the commit.
        evaluations: what `salmonrun evaluate --out` wrote about this bundle, for the card; needs the extra `train`.
        token: with write access; None: the one that was logged in with.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: answers of another model, or a card that the Hub would not read.
        HubError: no access, a public repository where a private one was wanted, or no network.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = library("to push a bundle to the Hugging Face Hub")
    bundle = open_bundle(folder)
    quality = [one for path in evaluations for one in read_quality(Path(path), bundle.manifest)]
    card = hub_card(bundle, repo_id, revision, quality)
    api = hub.HfApi(token=token)
    with told(repo_id, repo_id):
        _make_repository(api, repo_id, private, revision)
        adds = [hub.CommitOperationAdd(CARD, card.encode())]
        adds += [hub.CommitOperationAdd(name, str(bundle.folder / name)) for name in _files(bundle)]
        stale = _stale_files(hub, api, bundle, repo_id, revision)
        operations = [*adds, *(hub.CommitOperationDelete(name) for name in stale)]
        message = message or f"Bundle of {bundle.manifest.provenance.model}, by {bundle.manifest.provenance.exporter}"
        try:
            done = api.create_commit(repo_id, operations, commit_message=message, revision=revision)
        except ValueError as error:
            if isinstance(error, OSError):  # an answer of the hub, which `told` tells
                raise
            raise ConfigError(f"the hub does not take it: {first_line(error)}") from error
    size = sum(spec.size for spec in bundle.manifest.files.values())
    return Pushed(repo_id, done.oid, done.commit_url, len(adds), size, len(stale))


def _make_repository(api: Any, repo_id: str, private: bool, revision: str | None) -> None:
    api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the organisation has it
    if private and not api.model_info(repo_id).private:
        raise HubError(f"{repo_id} is there, and public; make it private in its settings, or leave out private")
    if revision is not None and revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _stale_files(hub: Any, api: Any, bundle: Bundle, repo_id: str, revision: str | None) -> list[str]:
    """Files of a bundle that is there, which this one has not; what is no bundle's is let alone."""
    there = set(api.list_repo_files(repo_id, revision=revision))
    if MANIFEST not in there:
        return []
    before = Path(hub.hf_hub_download(repo_id, MANIFEST, revision=revision, token=api.token)).parent
    try:
        listed = read_manifest(before).files
    except BundleError:  # of another format: nothing is known of it
        return []
    return sorted(({SIGNATURE, *listed} - set(_files(bundle))) & there)


def _files(bundle: Bundle) -> list[str]:
    """All that make the bundle, and its signature if it has one."""
    signed = [SIGNATURE] if (bundle.folder / SIGNATURE).exists() else []
    return [MANIFEST, *signed, *bundle.manifest.files]
