"""Live streams at a server: 1 to 64 of them, in Riva's form. Of the demo, which says what it hears and then stops."""

from dataclasses import asdict
from typing import Any

from benchmarks.gpu.latency import STREAMS, TRIED
from benchmarks.gpu.models import folder
from benchmarks.gpu.plan import Plan
from benchmarks.serving.server import serving
from benchmarks.serving.streams import Told, measure

UTTERANCE_S = 6.0


def served(plan: Plan) -> dict[str, Any]:
    """What the clients of each number of streams were told, and when; up to where it is late."""
    counts, seconds = (STREAMS, 18.0) if plan.on_gpu else (TRIED, 3.0)
    runs: list[tuple[int, Told]] = []
    limits = ("--device", plan.device, "--max-streams", str(2 * STREAMS[-1]), "--max-waiting", str(2 * STREAMS[-1]))
    with serving(folder(plan, "demo-nf4"), None, *limits) as url:
        for count in counts:
            runs.append((count, measure(url, count, seconds, min(seconds, UTTERANCE_S))))
            if not runs[-1][1].real_time:
                break
    assert not runs[0][1].lost, "a stream that was alone was lost"
    return {"runs": [{"streams": count, "seconds": seconds, "told": asdict(told)} for count, told in runs]}
