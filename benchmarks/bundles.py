"""What bundles take on this machine: python -m benchmarks.bundles makes tables and pictures of docs/performance.md.

The demo, and two of random weights in published sizes: one that hears the whole window, beside PyTorch, and one that
hears in blocks. Each is measured by `salmonrun latency`; its JSON stays in build/bench. The last line is JSON.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import replace_marked, seconds, table
from salmonrun.runtime.commands.main import guarded

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAGES = ("features", "whisper", "audio_encoder", "qformer", "prefill", "decode")
Found = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One latency command: what it measures, with which options, and how its figures are shown."""

    name: str  # of its files, and of its place in the page
    bundle: str
    options: str
    table: Callable[[Found], str]


def main() -> None:
    """Make what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT / "build" / "bench", help="default: build/bench")
    parser.add_argument("--only", help="names of runs, with commas (default: all)")
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only.split(",") if arguments.only else [run.name for run in RUNS]
    summary = {}
    for run in RUNS:
        if run.name in chosen:
            summary[run.name] = measure(run, arguments.root)
    print(json.dumps(summary))


def measure(run: Run, root: Path) -> Found:
    """Run it, and put its table and picture into the page."""
    bundle, checkpoint = make_bundle(run.bundle, root)
    options = run.options.replace("CHECKPOINT", str(checkpoint))
    output = root / f"{run.name}.json"
    picture = DOCS / "images" / f"latency-{run.name}.png"
    picture.parent.mkdir(exist_ok=True)
    page = DOCS / "performance.md"
    shown_there = ["--plot", str(picture)] if picture.name in page.read_text() else []
    call("latency", str(bundle), *shlex.split(options), "--json", str(output), *shown_there)
    found: Found = json.loads(output.read_text())
    shown = f"{command_block(run)}\n\n{where(found)}\n\n{run.table(found)}"
    page.write_text(replace_marked(page.read_text(), {f"latency-{run.name}": shown}))
    return {
        protocol["name"]: {case["name"]: case["summary"] for case in protocol["cases"]}
        for protocol in found["protocols"]
    }


def command_block(run: Run) -> str:
    """The command as the page shows it: it runs in a checkout, where `make bench` has left the bundles."""
    preset, _ = BUNDLES[run.bundle]
    options = run.options.replace("CHECKPOINT", f"build/bench/{preset}-checkpoint")
    marker = "<!-- needs: the bundles of make bench -->"
    return f"{marker}\n```sh\nsalmonrun latency build/bench/{run.bundle} {options}\n```"


def make_bundle(name: str, root: Path) -> tuple[Path, Path]:
    """The bundle, int8 encoders and int4 LLM, and the checkpoint it is made from; both are made once."""
    preset, options = BUNDLES[name]
    checkpoint, bundle = root / f"{preset}-checkpoint", root / name
    if preset is None:
        checkpoint = ROOT / "demo" / "checkpoint"
    elif not checkpoint.exists():
        call("init", str(checkpoint), "--preset", preset, "--dtype", "bfloat16")
    if not bundle.exists():
        precisions = ["--encoder-precision", "int8", "--llm-precision", "int4"]
        call("export", str(checkpoint), str(bundle), *precisions, *options)
    return bundle, checkpoint


def call(*arguments: str) -> None:
    """One of salmonrun's commands."""
    subprocess.run([sys.executable, "-m", "salmonrun", *arguments], cwd=ROOT, check=True)


def where(found: Found) -> str:
    """Machine, date and size in a sentence."""
    machine, engine, date = found["machine"], found["engine"], found["date"][:10]
    memory = found["protocols"][-1]["memory"]
    return (
        f"{engine['model']}, {engine['bundle_bytes'] / 2**20:.0f} MiB, loaded and verified in {found['load_s']:.1f} s; "
        f"{machine['processor']}, {engine['threads']} threads, onnxruntime {engine['onnxruntime']}, {date}. "
        f"Resident memory: {memory['loaded_mb']:.0f} MiB when loaded, at most {memory['peak_mb']:.0f} MiB since."
    )


def cases(found: Found, protocol: str) -> list[Found]:
    """What a protocol found."""
    (one,) = (entry for entry in found["protocols"] if entry["name"] == protocol)
    return list(one["cases"])


def figure(summary: Found, quantile: str = "p50") -> str:
    """One of a metric's; a dash if it has no values."""
    value = summary.get(quantile)
    return "-" if value is None else seconds(value)


def with_interval(summary: Found) -> str:
    """A median and its 95 % interval."""
    low, high = summary["median_interval"]
    return f"{seconds(summary['p50'])} ({seconds(low)} - {seconds(high)})"


def request_table(found: Found) -> str:
    """Stages of requests."""
    header = ["", *STAGES, "first token", "per token", "total (95 % interval)", "RTF"]
    rows = []
    for case in cases(found, "request"):
        summary = case["summary"]
        stages = [figure(summary.get(stage, {})) for stage in STAGES]
        total = with_interval(summary["total"])
        rtf = f"{summary['rtf']['p50']:.3f}"
        rows.append([case["name"], *stages, figure(summary["ttft"]), figure(summary["tpot"]), total, rtf])
    return table(header, rows)


def stream_table(found: Found, protocol: str = "stream") -> str:
    """Streams, one or many at once."""
    header = [
        "",
        "first text",
        "update p50 / p95",
        "last sample to whole text p50 / p95",
        "lag p95",
        "RTF",
        "real time",
    ]
    real_time = next(entry["keeps_real_time"] for entry in found["protocols"] if entry["name"] == protocol)
    rows = []
    for case in cases(found, protocol):
        summary = case["summary"]
        pairs = [f"{figure(summary[m])} / {figure(summary[m], 'p95')}" for m in ("update", "final")]
        keeps = {True: "yes", False: "no", None: ""}[real_time.get(case["name"])]
        rtf = f"{summary['rtf']['p50']:.3f}"
        rows.append([case["name"], figure(summary["first_partial"]), *pairs, figure(summary["lag"], "p95"), rtf, keeps])
    return table(header, rows)


def demo_table(found: Found) -> str:
    """All of the demo."""
    return "\n\n".join([request_table(found), stream_table(found), stream_table(found, "load")])


def streaming_table(found: Found) -> str:
    """Streams alone and many at once."""
    at_once = cases(found, "stream")[0]["summary"]["at_once"]
    whole = f"The same recording at once takes {with_interval(at_once)}."
    return "\n\n".join([stream_table(found), whole, stream_table(found, "load")])


def reference_table(found: Found) -> str:
    """The bundle beside PyTorch."""
    (protocol,) = found["protocols"]
    (ours,), (theirs,) = protocol["cases"], protocol["baseline"]
    rows = []
    for metric, label in (("ttft", "first token"), ("tpot", "one further token"), ("latency", "both")):
        values = sorted(value for sample in theirs["samples"] for value in sample[metric])
        ratio = ours["baseline_ratio"][metric]
        spread = f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
        median = seconds(values[len(values) // 2])
        rows.append([label, with_interval(ours["summary"][metric]), median, spread])
    peak, other = protocol["memory"]["peak_mb"], protocol["baseline_memory_mb"]["peak_mb"]
    rows.append(["most resident memory", f"{peak:.0f} MiB", f"{other:.0f} MiB", f"{other / peak:.2f}"])
    header = ["", "bundle (95 % interval)", "PyTorch fp32, eager", "ratio (quartiles)"]
    return table(header, rows) + f"\n\n{len(ours['samples'])} repetitions of each, in turn."


RANDOM = ("--parity-budget", "2")  # random weights amplify what 4 bits round off
# Bundle -> the preset of its checkpoint, None for the demo's own; options of its export.
BUNDLES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "demo": (None, ()),
    "v3-turbo-llama-1b": ("v3-turbo-llama-1b", RANDOM),
    "v3-turbo-llama-1b-trimmed": ("v3-turbo-llama-1b", ("--window", "trimmed", *RANDOM)),
    "v3-turbo-llama-1b-streaming": ("v3-turbo-llama-1b-streaming", RANDOM),
}
# A random model's tokenizer has a token for each byte: as many make a prompt as a real tokenizer makes of a real one.
SHORT = "--prompt '<SpeechHere>?' --tokens 12"
RUNS = (
    Run("demo", "demo", "--protocol request,stream,load --time-limit 60", demo_table),
    Run(
        "reference",
        "v3-turbo-llama-1b",
        "--protocol reference --baseline CHECKPOINT --time-limit 150",
        reference_table,
    ),
    Run(
        "reference-trimmed",
        "v3-turbo-llama-1b-trimmed",
        "--protocol reference --baseline CHECKPOINT --time-limit 100",
        reference_table,
    ),
    Run("request", "v3-turbo-llama-1b", "--protocol request --time-limit 180", request_table),
    Run(
        "streaming",
        "v3-turbo-llama-1b-streaming",
        f"--protocol stream,load {SHORT} --block-s 0.32 --time-limit 60",
        streaming_table,
    ),
)

if __name__ == "__main__":
    sys.exit(guarded(main))
