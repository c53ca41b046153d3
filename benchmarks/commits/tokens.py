"""Are all answers the same? What differs is told with where, and how near the two best tokens were to each other."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.commits.cases import Case, Json, token_cases
from benchmarks.commits.models import Model
from benchmarks.peers.processes import Worker, WorkerError

NEAR_TIE = 0.01  # logits so near to each other change places when sums are added up in another order
PLAIN = {"max_new_tokens", "stop_strings"}  # settings with which the best logit is the next token


@dataclass(frozen=True)
class Outcome:
    """What both said in a case."""

    model: Model
    case: Case
    request: Json
    base: list[Json]
    new: list[Json]
    differences: list[Json] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """How many were compared."""
        return max(len(self.base), len(self.new))

    @property
    def errors(self) -> int:
        """How many of them are errors in both: equal, and yet they prove nothing."""
        return sum("error" in one and "error" in other for one, other in zip(self.base, self.new, strict=False))


def compare(
    models: Sequence[Model],
    workers: dict[str, Worker],
    bundles: dict[str, dict[str, Path]],
    root: Path,
    threads: int,
    kinds: Sequence[str],
) -> list[Outcome]:
    """Ask both workers, about every model, in these ways."""
    outcomes = []
    for model in (bar := tqdm(models, desc="asking both", unit="model")):
        bar.set_postfix_str(model.name)
        for name, worker in workers.items():
            worker.request(do="load", bundle=str(bundles[name][model.name]), threads=threads)
        blocks = hears_in_blocks(model.checkpoint(root / "checkpoints"))
        cases = token_cases(root / "inputs", blocks, every_recording=model.name.startswith("demo"))
        outcomes += _compare_model(model, workers, chosen(cases, kinds))
    return outcomes


def chosen(cases: Sequence[Case], kinds: Sequence[str]) -> list[Case]:
    """Those of some kinds, and those whose answers they need."""
    needed = {case.stops_in for case in cases if case.kind in kinds}
    return [case for case in cases if case.kind in kinds or case.name in needed]


def hears_in_blocks(checkpoint: Path) -> bool:
    """Whether policy "block" is there."""
    return json.loads((checkpoint / "config.json").read_text()).get("streaming") is not None


def _compare_model(model: Model, workers: dict[str, Worker], cases: Iterable[Case]) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    for case in tqdm(cases, desc=model.name, unit="case", leave=False):
        request = case.request
        if case.stops_in:
            text = outcomes[case.stops_in].base[0].get("text", "")
            request = request | {"config": request["config"] | {"stop_strings": [stop_string(text)]}}
        replies = {name: ask(worker, request) for name, worker in workers.items()}
        outcome = Outcome(model, case, request, replies["base"], replies["new"])
        for index, difference in differences(outcome.base, outcome.new):
            told = {"answer": index, **difference, **_margin(workers, outcome, index, difference["position"])}
            outcome.differences.append(told)
        outcomes[case.name] = outcome
    return list(outcomes.values())


def ask(worker: Worker, request: Json) -> list[Json]:
    """Its answers, or the one error that came instead.

    Raises:
        WorkerError: the worker has died.
    """
    try:
        answers: list[Json] = worker.request(**request)["answers"]
        return answers
    except WorkerError as error:
        if worker.process.poll() is not None:
            raise
        return [{"error": str(error)}]


def stop_string(text: str) -> str:
    """Two characters of the middle, so that the answer is cut there or before."""
    return text[len(text) // 2 :][:2] or "?"


def differences(base: list[Json], new: list[Json]) -> list[tuple[int, Json]]:
    """Answer -> what differs first: the audio it is about, a token, or else a field."""
    missing: Json = {}
    pairs = enumerate(zip_longest(base, new, fillvalue=missing))
    return [(index, _difference(one, other)) for index, (one, other) in pairs if one != other]


def _difference(one: Json, other: Json) -> Json:
    places, others = windows(one), windows(other)
    if places and others and places != others:  # of other audio, other tokens are expected
        return {"field": "windows", "position": None, "base": places, "new": others}
    tokens = zip_longest(one.get("token_ids", []), other.get("token_ids", []))
    for position, (token, instead) in enumerate(tokens):
        if token != instead:
            return {"field": "token_ids", "position": position, "base": token, "new": instead}
    name = next(key for key in [*one, *other] if one.get(key) != other.get(key))
    return {"field": name, "position": None, "base": one.get(name), "new": other.get(name)}


def windows(answer: Json) -> list[list[int]]:
    """The samples that a segment, or each segment of a stream, was heard in; none of what was asked about a whole."""
    parts = [answer] if "window" in answer else answer.get("segments", [])
    return [part["window"] for part in parts]


def _margin(workers: dict[str, Worker], outcome: Outcome, index: int, position: int | None) -> Json:
    """How far the best logit led where tokens part, by the first commit that can tell; else why there is none."""
    place = margin_request(outcome, index)
    if position is None or place is None:
        return {"margin": None, "why_no_margin": "no token that is the best logit's differs"}
    place["token_ids"] = outcome.base[index]["token_ids"][:position]
    reasons = []
    for name, worker in workers.items():
        try:
            found = worker.request(do="margin", **place)
            return {**found, "near_tie": found["margin"] < NEAR_TIE}
        except WorkerError as error:
            reasons.append(f"{name}: {error}")
    return {"margin": None, "why_no_margin": "; ".join(reasons)}


def margin_request(outcome: Outcome, index: int) -> Json | None:
    """Where an answer's tokens come from; None where they are not simply the best ones."""
    request = outcome.request
    config: dict[str, Any] = request.get("config", {})
    if request["do"] == "transcribe":
        config = request["generation"]
    if "token_ids" not in dict(enumerate(outcome.base)).get(index, {}) or not set(config) <= PLAIN:
        return None
    match request["do"]:
        case "generate" | "pieces":
            return {"audio": request["audio"], "window": None, "ask": request["ask"]}
        case "listen":
            return {"audio": request["audio"], "window": None, "ask": request["asks"][index]}
        case "transcribe":
            return {"audio": request["audio"], "window": outcome.base[index]["window"], "ask": {"task": "asr"}}
    return None
