"""Recordings that were heard for visitors of the page and may be asked about again: few, and not for long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from salmonrun.runtime.errors import BusyError
from salmonrun.runtime.heard import Heard

MOST = 8  # recordings at once, of all visitors and bundles
IDLE_S = 300.0  # after which one that nobody asks about is let go


@dataclass(eq=False)
class _Recording:
    path: str
    heard: Heard
    memory: ExitStack  # closed: it is given back
    users: int = 1
    used_at: float = 0.0
    dropped: bool = False  # to be closed when its last user is done


class KeptRecordings:
    """One for each visitor and bundle. What is being asked about is never taken away; threads may share it.

    Args:
        most: that are kept while nobody asks about them.
        idle_s: how long one is kept for nobody.
        clock: seconds.
    """

    def __init__(self, most: int = MOST, idle_s: float = IDLE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._recordings: dict[tuple[str, int], _Recording] = {}  # by visitor and bundle

    def __len__(self) -> int:
        return len(self._recordings)

    @contextmanager
    def heard(
        self, visitor: str, bundle: int, path: str, hear: Callable[[], AbstractContextManager[Heard]]
    ) -> Iterator[tuple[Heard, bool]]:
        """A recording that was heard, and whether it was heard just now: by `hear`, unless it is kept.

        Raises:
            BusyError: there is no memory for it, not even without all that nobody needs now.
        """
        recording = self._take((visitor, bundle), path)
        anew = recording is None
        recording = recording or self._keep((visitor, bundle), path, hear)
        try:
            yield recording.heard, anew
        finally:
            self._done(recording)

    def leave(self, visitor: str) -> None:
        """A visitor has gone."""
        self._drop(lambda key, _: key[0] == visitor)

    def sweep(self) -> None:
        """Let go of what nobody has asked about for long."""
        before = self._clock() - self._idle_s
        self._drop(lambda _, recording: not recording.users and recording.used_at <= before)

    def drop_unused(self) -> None:
        """Let go of all that nobody asks about now."""
        self._drop(lambda _, recording: not recording.users)

    def close(self) -> None:
        """Let go of everything; what is being asked about, when that is over."""
        self._drop(lambda *_: True)

    def _take(self, key: tuple[str, int], path: str) -> _Recording | None:
        with self._lock:
            recording = self._recordings.get(key)
            if recording is None or recording.path != path:
                return None
            recording.users += 1
            return recording

    def _keep(self, key: tuple[str, int], path: str, hear: Callable[[], AbstractContextManager[Heard]]) -> _Recording:
        self._drop(lambda other, _: other == key)
        memory = ExitStack()
        try:
            heard = memory.enter_context(hear())
        except BusyError:
            self.drop_unused()
            heard = memory.enter_context(hear())
        recording = _Recording(path, heard, memory)
        with self._lock:
            replaced = self._recordings.pop(key, None)  # the same visitor was faster, from another tab
            self._recordings[key] = recording
        self._let_go([replaced] if replaced else [])
        self._bound()
        return recording

    def _done(self, recording: _Recording) -> None:
        with self._lock:
            recording.users -= 1
            recording.used_at = self._clock()
            close = recording.dropped and not recording.users
        if close:
            recording.memory.close()
        self._bound()

    def _bound(self) -> None:
        """No more than there may be: who has not been asked about for longest goes first."""
        with self._lock:
            unused = sorted((one.used_at for one in self._recordings.values() if not one.users), reverse=True)
        if len(unused) > self._most:
            last = unused[self._most]
            self._drop(lambda _, recording: not recording.users and recording.used_at <= last)

    def _drop(self, which: Callable[[tuple[str, int], _Recording], bool]) -> None:
        with self._lock:
            keys = [key for key, recording in self._recordings.items() if which(key, recording)]
            dropped = [self._recordings.pop(key) for key in keys]
        self._let_go(dropped)

    def _let_go(self, recordings: list[_Recording]) -> None:
        for recording in recordings:
            with self._lock:
                recording.dropped = True
                close = not recording.users
            if close:
                recording.memory.close()
