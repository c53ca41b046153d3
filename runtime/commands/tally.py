"""What a stream's updates cost."""

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salmonrun.runtime import Result, Update


@dataclass
class Tally:
    """Grows update by update."""

    policy: str  # of the stream
    utterances: int = 0  # that are over
    latencies: list[float] = field(default_factory=list)  # seconds, of each update
    lag_s: float = 0.0  # how far it was behind real time at most
    left_out: int = 0  # updates, because of that

    def add(self, update: "Update") -> None:
        """One more update."""
        self.utterances += update.segment is not None
        self.latencies.append(update.latency_s)
        self.lag_s = max(self.lag_s, update.lag_s)
        self.left_out += update.left_out

    def summary(self, result: "Result") -> str:
        """How it went, on a line."""
        parts = [
            f"{result.timings.audio_s:.1f} s of audio",
            f"policy {self.policy}",
            f"{self.utterances} utterance{'s' * (self.utterances != 1)}",
            f"{len(self.latencies)} update{'s' * (len(self.latencies) != 1)}",
        ]
        if self.latencies:
            median, last = 1000 * statistics.median(self.latencies), 1000 * self.latencies[-1]
            parts[-1] += f" in {median:.0f} ms (median), the last in {last:.0f} ms"
        parts.append(f"final text {1000 * result.timings.total_s:.0f} ms after the last sample")
        parts.append(f"at most {self.lag_s:.2f} s behind real time")
        if self.left_out:
            parts.append(f"{self.left_out} updates left out")
        parts.append(f"ended by {result.finish_reason}")
        return "; ".join([", ".join(parts), *result.notes])
