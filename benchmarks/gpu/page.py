"""What the steps have left, as tables for a page. They are made of the JSON alone, as far as there is any."""

from collections.abc import Callable
from typing import Any

from benchmarks.bundles import cases, figure, request_table, with_interval
from benchmarks.gpu.models import PRECISIONS
from benchmarks.gpu.plan import Plan, outcome_of
from benchmarks.serving.page import streams_table
from benchmarks.serving.streams import Told
from benchmarks.tables import seconds, table

Found = dict[str, Any]


def tables(plan: Plan) -> str:
    """All there is."""
    made = [heading(plan), *(make(plan) for make in TABLES)]
    return "\n\n".join(text for text in made if text) + "\n"


def heading(plan: Plan) -> str:
    """The card and the machine, or that there was none."""
    found = _found(plan, "machine")
    if not found:
        return ""
    lines = {finding["name"]: finding["found"] for finding in found["findings"]}
    card = lines.get(plan.device if ":" in plan.device else f"{plan.device}:0", "")
    where = (
        f"{plan.device}: {card}; {lines.get('driver', '')}" if plan.on_gpu else "no GPU: it was only tried, on a CPU"
    )
    kernels = ", ".join(
        f"{name} {lines[name].partition(':')[0]}" for name in ("torch", "flash-attn", "bitsandbytes") if name in lines
    )
    machine = found["machine"]
    return (
        f"{where}. {machine['processor']}, {machine['cores']} cores; onnxruntime {machine['onnxruntime']}, {kernels}; "
        f"salmonrun {machine['salmonrun']}, sized as {plan.preset}."
    )


def parity(plan: Plan) -> str:
    """Stages, tokens and rounds beside the CPU."""
    rows = []
    for precision in PRECISIONS:
        stages, tokens, rounds = (_found(plan, f"{step}-{precision}") for step in ("stages", "tokens", "rounds"))
        if stages and tokens and rounds:
            errors = [f"{error:.1e}" for error in stages["relative"].values()]
            equal = f"{tokens['equal']} of {tokens['answers']}"
            rows.append([precision, *errors, equal, f"{rounds['relative']:.1e}", f"{rounds['agreeing']:.0%}"])
            names = list(stages["relative"])
    together = ["answers equal", "steps together beside alone", "tokens of these equal"]
    return table(["relative error beside the CPU", *names, *together], rows) if rows else ""


def half(plan: Plan) -> str:
    """float16, simulated."""
    return half_table(_found(plan, "half"))


def half_table(found: Found) -> str:
    """By stage and audio; empty if nothing was found."""
    rows = [
        [stage, audio, f"{each['relative']:.1e}", f"{each['pytorch']:.1e}", f"{each['largest']:.3g}"]
        for stage, by_audio in found.items()
        for audio, each in by_audio.items()
    ]
    header = ["float16, simulated", "audio", "relative error beside float32", "PyTorch's, all in float16"]
    header.append("largest magnitude, of 65504")
    return table(header, rows) if rows else ""


def steps(plan: Plan) -> str:
    """How long a step takes, way by way; vLLM's below."""
    rows: list[list[str]] = []
    batches: list[str] = []
    for precision in PRECISIONS:
        for way, measured in _found(plan, f"steps-{precision}").items():
            batches, kernels = list(measured["ms"]), measured["kernels"]
            by = ", ".join(kernels[name] for name in ("activations", "attention", "products", "steps"))
            rows.append([f"{precision}, {way}", by, *_milliseconds(measured["ms"])])
    other = _found(plan, "steps-vllm")
    if rows and "ms" in other:
        rows.append([f"vLLM {other['version']}", "bfloat16, CUDA graphs", *_milliseconds(other["ms"])])
    if not rows:
        return ""
    made = table(["a step of the LLM", "computed by", *(f"{batch} at once" for batch in batches)], rows)
    return f"{made}\n\n{other['missing']}." if "missing" in other else made


def memory(plan: Plan) -> str:
    """MiB."""
    of_what = "of the GPU" if plan.on_gpu else "of the process"
    rows = [
        [precision, *(f"{found[name]:.0f}" for name in ("bundle_mib", "loaded_mib", "cache_mib", "answered_mib"))]
        for precision in PRECISIONS
        if (found := _found(plan, f"memory-{precision}"))
    ]
    header = [f"MiB {of_what}", "bundle", "loaded", "of these keys and values", "after an answer"]
    return table(header, rows) if rows else ""


def beside_pytorch(plan: Plan) -> str:
    """Protocol `reference`, and the stages of requests."""
    rows, below = [], []
    for precision in PRECISIONS:
        if found := _found(plan, f"latency-{precision}"):
            rows += _reference_rows(precision, found)
            below.append(f"Requests, {precision}:\n\n{request_table(found)}")
            below += [f"When {precision} was measured: {note}." for note in found["notes"]]
    header = ["10 s of noise", "first token", "further token", "both (95 % interval)", "PyTorch / bundle (quartiles)"]
    return "\n\n".join([table(header, rows), *below]) if rows else ""


def streams(plan: Plan) -> str:
    """Those of the server, and those of one engine."""
    served = [(run["streams"], run["seconds"], Told(**run["told"])) for run in _found(plan, "streams").get("runs", ())]
    made = {"a server, the demo's bundle": served} if served else {}
    if load := _found(plan, "load"):
        (protocol,) = load["protocols"]
        runs = [_as_told(case, load["config"]["utterance_s"]) for case in protocol["cases"]]
        made[f"one engine, {plan.preset}"] = runs
    return streams_table(made) if made else ""


def _as_told(case: Found, utterance_s: float) -> tuple[int, float, Told]:
    """A case of protocol `load` in the server's words: all its repetitions, one behind the other."""
    count, samples = int(case["name"].split()[0]), case["samples"]
    every = {name: [value for sample in samples for value in sample[name]] for name in ("lag", "final", "audio_per_s")}
    took = sum(count * utterance_s / rate for rate in every["audio_per_s"])
    return count, utterance_s * len(samples), Told(every["lag"], every["final"], 0, took)


def _reference_rows(precision: str, found: Found) -> list[list[str]]:
    (ours,) = cases(found, "reference")
    (theirs,) = next(entry["baseline"] for entry in found["protocols"] if entry["name"] == "reference")
    summary, ratio = ours["summary"], ours["baseline_ratio"]["latency"]
    spread = f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
    own = [figure(summary["ttft"]), figure(summary["tpot"]), with_interval(summary["latency"]), spread]
    llm = found["baseline"]["llm"]
    other = [seconds(_median(theirs, metric)) for metric in ("ttft", "tpot", "latency")]
    return [[f"bundle, {precision}", *own], [f"PyTorch, its LLM in {llm}", *other]]


def _median(case: Found, metric: str) -> float:
    values = sorted(value for sample in case["samples"] for value in sample[metric])
    return float(values[len(values) // 2])


def _milliseconds(by_batch: dict[str, float]) -> list[str]:
    return [seconds(value / 1000) for value in by_batch.values()]


def _found(plan: Plan, step: str) -> Found:
    found: Found = outcome_of(plan, step).get("found", {})
    return found


TABLES: tuple[Callable[[Plan], str], ...] = (parity, half, steps, memory, beside_pytorch, streams)
