"""The files that an engine maps, held open: whether they are still what was loaded."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from salmonrun.runtime.errors import BundleIntegrityError

_REMEDY = "load the bundle again; put a new one in place by renaming, or load with copy=True"


@dataclass(frozen=True)
class _State:
    """What changes with a file."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "_State":
        """What the system says of it."""
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def difference(self, now: "_State") -> str:
        """What has become of it since, in words; empty: nothing."""
        if (self.device, self.inode) != (now.device, now.inode):
            return "another file is in its place"
        if self.size != now.size:
            return f"it had {self.size} bytes and has {now.size}"
        return "it was written to" if self.changed_ns != now.changed_ns else ""


class HeldFiles:
    """Descriptors of files, from when they are loaded until nobody needs them.

    What is held cannot vanish, whatever becomes of its name. What is written to, or cut, changes under who maps it.

    Raises:
        BundleIntegrityError: one cannot be opened.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._held: dict[Path, tuple[int, _State]] = {}
        for path in paths:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise BundleIntegrityError(f"{path} cannot be opened: {error.strerror}") from error
            self._held[path] = descriptor, _State.of(os.fstat(descriptor))

    def check(self) -> None:
        """Whether all of them, held and by their names, are as they were.

        Raises:
            BundleIntegrityError: one is not.
        """
        for path, (descriptor, before) in self._held.items():
            if difference := before.difference(_State.of(os.fstat(descriptor))):
                raise BundleIntegrityError(
                    f"{path} was changed in place while the engine runs ({difference}), so answers cannot be "
                    f"believed: {_REMEDY}"
                )
            try:
                now = _State.of(os.stat(path))
            except OSError as error:
                raise BundleIntegrityError(f"{path} has gone while the engine runs: {_REMEDY}") from error
            if difference := before.difference(now):
                raise BundleIntegrityError(f"{path} is not what the engine has loaded ({difference}): {_REMEDY}")

    def __del__(self) -> None:
        for descriptor, _ in self._held.values():
            os.close(descriptor)
