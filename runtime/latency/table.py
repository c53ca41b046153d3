"""An outcome as text for people."""

import textwrap

from salmonrun.runtime.latency.outcome import MORE_IS_BETTER, Outcome, ProtocolOutcome, interval, quantiles
from salmonrun.runtime.latency.request import STAGES
from salmonrun.runtime.latency.sampling import LEAST, Measured

COUNTS = ("updates",)
RATES = ("rtf", *MORE_IS_BETTER)


def format_outcome(outcome: Outcome) -> str:
    """Where it was measured, then a table for each protocol."""
    machine, engine = outcome.machine, outcome.engine
    precision = ", ".join(f"{part} {value}" for part, value in engine.precision.items())
    provider = "/".join(
        sorted({name.removesuffix("ExecutionProvider") for p in engine.providers.values() for name in p})
    )
    encoder = _named(engine.encoder, engine.encoder_instruction_set)
    decoder = _named(engine.decoder, engine.instruction_set)
    lines = [
        f"{engine.model}: {precision}; {engine.window} window; {engine.bundle_bytes / 2**20:.0f} MiB",
        f"  bundle {outcome.manifest_sha256[:12]}, encoders {encoder}, decoder {decoder} on {provider}, "
        f"{engine.threads} threads",
        f"  {machine['processor']}, {machine['cores']} cores, {machine['memory_mb']} MiB; onnxruntime "
        f"{engine.onnxruntime}, salmonrun {machine['salmonrun']}; {outcome.date}",
        f"  loaded and verified in {outcome.load_s:.2f} s (files in the page cache as they were found)",
    ]
    if outcome.baseline:
        lines.append(f"  beside it {outcome.baseline}, in turn")
    lines += [f"  {note}" for note in outcome.notes]
    for protocol in outcome.protocols:
        lines += ["", *_protocol(protocol)]
    return "\n".join(lines)


def _named(runs: str, instruction_set: str | None) -> str:
    return f"{runs} ({instruction_set})" if instruction_set else runs


def _protocol(protocol: ProtocolOutcome) -> list[str]:
    lines = textwrap.wrap(f"{protocol.name}: {protocol.definition}", 112, subsequent_indent="  ")
    for case in protocol.cases:
        lines += ["", *_case(protocol, case)]
    return [*lines, "", *_memory(protocol), *_real_time(protocol)]


def _case(protocol: ProtocolOutcome, case: Measured) -> list[str]:
    ends = "they are known well enough" if case.stopped == "narrow" else "the time was up"
    count = "once" if len(case.samples) == 1 else f"{len(case.samples)} times"
    ranges = "" if len(case.samples) >= LEAST else "; of so few, the interval is the range"
    head = f"{'':<14}{'median':>10}  {'95 % interval':<19}{'p90':>10}{'p99':>10}{'cold':>10}"
    staged = [sample for sample in case.samples if "prefill" in sample]
    ratios = {metric: protocol.ratio(case, metric) for metric in case.metrics}
    if any(ratios.values()):
        head += "   PyTorch / bundle (quartiles)"
    lines = [f"  {case.name}: {count}, until {ends}{ranges}", "  " + head]
    for metric in case.metrics:
        values = case.values(metric)
        between = interval(case, metric)
        if not values or not between:
            lines.append(f"  {metric:<14}{'-':>10}")
            continue
        found = quantiles(values)
        cold = case.cold.get(metric)
        row = (
            f"  {metric:<14}{show(metric, found['p50']):>10}  "
            f"{show(metric, between[0]) + ' - ' + show(metric, between[1]):<19}"
            f"{show(metric, found['p90']):>10}{show(metric, found['p99']):>10}"
            f"{show(metric, max(cold)) if cold else '-':>10}"
        )
        if ratio := ratios[metric]:
            row += f"   {ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})"
        lines.append(row)
    if shares := [
        sum(sample[stage][0] for stage in sample if stage in STAGES) / sample["total"][0] for sample in staged
    ]:
        lines.append(f"  the stages add up to {min(shares):.1%} to {max(shares):.1%} of the total")
    return lines


def show(metric: str, value: float) -> str:
    """A figure with its unit, in three digits."""
    if metric in COUNTS:
        return f"{value:.0f}"
    if metric in RATES:
        return f"{value:.3g}"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _memory(protocol: ProtocolOutcome) -> list[str]:
    memory = protocol.memory
    since = "since it was loaded" if memory.peak_is_since_load else "loading included"
    lines = [
        f"  memory: {memory.loaded_mb:.0f} MiB resident when loaded (at most {memory.load_peak_mb:.0f} until then), "
        f"{memory.steady_mb:.0f} at the end, at most {memory.peak_mb:.0f} {since}"
        + (f"; {memory.device_mb:.0f} MiB of the GPU" if memory.device_mb is not None else "")
    ]
    if other := protocol.baseline_memory_mb:
        ratio = other["peak_mb"] / memory.peak_mb
        lines.append(
            f"  PyTorch: {other['steady_mb']:.0f} MiB at the end, at most {other['peak_mb']:.0f}: {ratio:.1f} times"
        )
    return lines


def _real_time(protocol: ProtocolOutcome) -> list[str]:
    if not protocol.keeps_real_time:
        return []
    kept = [case for case, keeps in protocol.keeps_real_time.items() if keeps]
    most = max(kept, key=lambda case: int(case.split()[0]), default="none of these")
    return [f"  the most that keep real time: {most}"]
