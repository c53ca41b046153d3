"""How much memory keys and values may take: asked for when slots are opened, so that no answer ends for want of it."""

import threading

from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import BusyError, CapacityError
from salmonrun.runtime.manifest import LlmSpec


class CacheBudget:
    """What open slots may come to take together, in bytes.

    A slot counts with all positions it may have, also where sequences share pages: what is promised can be kept.
    """

    def __init__(self, position_bytes: int, limit: int | None) -> None:
        self._position_bytes = position_bytes
        self._limit = limit
        self._taken = 0
        self._lock = threading.RLock()  # the collector may close a lease while this thread opens another

    @classmethod
    def of(cls, llm: LlmSpec, head_bytes: int, limits: Limits | None) -> "CacheBudget":
        """That of an LLM whose keys, and whose values, take so many bytes for each head and position."""
        limit = limits.max_cache_mib if limits else None
        return cls(2 * llm.layers * llm.kv_heads * head_bytes, None if limit is None else limit * 2**20)

    def take(self, positions: int) -> None:
        """Reserve memory of so many positions.

        Raises:
            BusyError: there is not so much left.
            CapacityError: there is not so much at all.
        """
        size = positions * self._position_bytes
        with self._lock:
            if self._limit is not None and size > self._limit:
                raise CapacityError(
                    f"prompt and answer may need {_mib(size)} MiB of keys and values, the limit is "
                    f"{_mib(self._limit)} MiB: lower max_new_tokens or num_beams, or load the engine with a larger "
                    "Limits(max_cache_mib=...)"
                )
            if self._limit is not None and self._taken + size > self._limit:
                free = f"{_mib(self._limit - self._taken)} of {_mib(self._limit)} MiB are free"
                raise BusyError(
                    f"prompt and answer may need {_mib(size)} MiB of keys and values, {free}: end what is open, ask "
                    "again later, or load the engine with a larger Limits(max_cache_mib=...)"
                )
            self._taken += size

    def give_back(self, positions: int) -> None:
        """What was taken before."""
        with self._lock:
            self._taken -= positions * self._position_bytes

    @property
    def usage(self) -> float:
        """The share of the limit that is reserved; 0 without one."""
        return self._taken / self._limit if self._limit else 0.0


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f}"
