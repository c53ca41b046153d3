"""Each checkout's own export of each model, kept for the next run."""

import filecmp
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.commits.checkouts import Checkout
from benchmarks.commits.models import Model, make_once
from benchmarks.peers.processes import Worker
from salmonrun.runtime.manifest import MANIFEST

MEASURED = ("golden.npz", "parity.json")  # sums may round differently from run to run


def export(checkout: Checkout, models: Sequence[Model], root: Path, threads: int, keep: bool) -> dict[str, Path]:
    """Model -> bundle. What this code has exported before is not exported again.

    Args:
        keep: take what an earlier state of this checkout's code has exported last, if there is any.

    Raises:
        WorkerError: an export failed.
    """
    bundles: dict[str, Path] = {}
    missing: dict[str, list[str]] = {}
    fingerprint = checkout.fingerprint()
    for model in models:
        checkpoint = model.checkpoint(root / "checkpoints")
        latest = root / "bundles" / model.name / checkout.name
        if keep and latest.exists():
            bundles[model.name] = latest.resolve()
            continue
        key = hashlib.sha256(f"{fingerprint} {_sha256(checkpoint)} {model.options}".encode()).hexdigest()[:16]
        bundles[model.name] = latest.with_name(key)
        if not bundles[model.name].exists():
            missing[model.name] = ["export", str(checkpoint), "--quiet", *model.options]
    if missing:
        _export(checkout, missing, bundles, threads, root / "logs" / f"export-{checkout.name}.log")
    for name, bundle in bundles.items():
        _remember(bundle, root / "bundles" / name / checkout.name)
    return bundles


def _export(
    checkout: Checkout, missing: dict[str, list[str]], bundles: dict[str, Path], threads: int, log: Path
) -> None:
    worker = checkout.worker(threads, log)
    try:
        for name, command in (bar := tqdm(missing.items(), desc=f"exporting, {checkout.name}", unit="bundle")):
            bar.set_postfix_str(name)
            make_once(bundles[name], _exporting(worker, command))
    finally:
        worker.close()


def _exporting(worker: Worker, command: list[str]) -> Callable[[Path], object]:
    module, checkpoint, *options = command
    return lambda out: worker.request(do="run", commands=[[module, checkpoint, str(out), *options]])


def _remember(bundle: Path, latest: Path) -> None:
    """As what this checkout has exported last."""
    latest.unlink(missing_ok=True)
    latest.symlink_to(bundle.name)


def same_weights_and_graphs(one: Path, other: Path) -> bool:
    """Whether all files have the same bytes but what was measured, and the manifest, which has hashes of that.

    The card, which tells people what was measured, is none of a bundle's files.
    """
    names = [
        {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file() and path.name != "README.md"}
        for bundle in (one, other)
    ]
    compared = {name for name in names[0] if name.name not in (MANIFEST, *MEASURED)}
    return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in compared)


def _sha256(checkpoint: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()
