"""What a change costs: the same requests to both commits in turn, stage by stage, the one asleep while the other works.

Ratios are of times within a round, new to base: below 1, the new code is faster.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.commits import recordings
from benchmarks.commits.cases import ASKS, BLOCK_STREAMS, STREAMS, Case, Json, stream, together
from benchmarks.commits.models import Model
from benchmarks.commits.tokens import ask, chosen, differences, hears_in_blocks
from benchmarks.peers.processes import Worker
from benchmarks.peers.summary import quartiles

Samples = dict[str, list[dict[str, float]]]  # commit -> what each round took


@dataclass(frozen=True)
class Method:
    """How often, how long, and how much is asked."""

    rounds: int
    min_rounds: int
    budget_s: float  # a case ends after so much time, but not before min_rounds
    threads: int
    tokens: int  # of an answer
    transcribed_s: float


def measure(
    models: Sequence[Model],
    workers: dict[str, Worker],
    bundles: dict[str, dict[str, Path]],
    root: Path,
    method: Method,
    kinds: Sequence[str],
) -> list[Json]:
    """A row for each model, case of these kinds, and stage."""
    rows = []
    for model in models:
        for name, worker in workers.items():
            worker.request(do="load", bundle=str(bundles[name][model.name]), threads=method.threads)
        blocks = hears_in_blocks(model.checkpoint(root / "checkpoints"))
        cases = chosen(latency_cases(root / "inputs", blocks, method), kinds)
        for case in (bar := tqdm(cases, desc=model.name, unit="case")):
            bar.set_postfix_str(case.name)
            warm = {name: ask(worker, case.request) for name, worker in workers.items()}
            same = not differences(warm["base"], warm["new"])
            rows += stage_rows(model, case, same, _samples(workers, case, method))
    return rows


def latency_cases(folder: Path, blocks: bool, method: Method) -> list[Case]:
    """One of each way to ask. Answers are of the same length whatever they say, but for those of streams."""
    exactly = {"max_new_tokens": method.tokens, "min_new_tokens": method.tokens}
    spoken, other = recordings.story(folder, 10), recordings.story(folder, 5)
    question = {"do": "generate", "audio": str(spoken), "ask": ASKS[0]}
    live = {"max_new_tokens": method.tokens}
    streams = STREAMS | BLOCK_STREAMS if blocks else STREAMS
    long = str(recordings.story(folder, method.transcribed_s))
    return [
        Case("greedy", "10 s, greedy", question | {"config": exactly}),
        Case("beams", "10 s, 4 beams", question | {"config": exactly | {"num_beams": 4}}),
        Case(
            "listen",
            "listen to 10 s, 3 asks",
            {"do": "listen", "audio": str(spoken), "asks": [*ASKS[:3]], "config": exactly},
        ),
        *(
            Case("stream", f"stream of 10 s, {policy}", stream(spoken, streams[policy][1], live))
            for policy in ("agreement", "block")
            if policy in streams
        ),
        Case(
            "transcribe",
            f"transcribe {method.transcribed_s:g} s",
            {"do": "transcribe", "audio": long, "generation": exactly, "config": {}},
        ),
        Case("8 threads", "8 threads, mixed", together([other, spoken], other, blocks, exactly)),
    ]


def _samples(workers: dict[str, Worker], case: Case, method: Method) -> Samples:
    """Round by round; who comes first alternates."""
    samples: Samples = {name: [] for name in workers}
    started = time.perf_counter()
    for turn in range(method.rounds):
        if turn >= method.min_rounds and time.perf_counter() - started > method.budget_s:
            break
        for name in [*workers] if turn % 2 == 0 else [*workers][::-1]:
            samples[name].append(workers[name].request(**case.request)["seconds"])
    return samples


def stage_rows(model: Model, case: Case, same: bool, samples: Samples) -> list[Json]:
    """A row for each stage that either of them has."""
    rows = []
    for stage in dict.fromkeys(stage for taken in samples.values() for stage in taken[0]):
        base, new = ([round_[stage] for round_ in samples[name] if stage in round_] for name in ("base", "new"))
        ratios = [other / one for one, other in zip(base, new, strict=False) if one > 0]
        rows.append(
            {
                "model": model.name,
                "case": case.name,
                "stage": stage,
                "base": quartiles(base) if base else None,
                "new": quartiles(new) if new else None,
                "ratio": quartiles(ratios) if ratios else None,
                "same_answers": same,
                "samples": {"base": base, "new": new},
            }
        )
    return rows
