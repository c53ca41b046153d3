"""Rounds of each decoder that a bundle has weights for, in turn: python -m benchmarks.decoders.compare BUNDLE

One token, one token of eight sequences, eight tokens of one, prompts, whole answers. Each decoder has a process of its
own, stopped by a signal while another is measured; ratios are of times within a round. The bundle needs weights for
several: `salmonrun export CHECKPOINT BUNDLE --llm-precision int4 --decoder both`. Tables go to stdout, and to
DOCS/performance.md with --docs.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.decoders.inside.worker import CASES
from benchmarks.peers.engines import REPOSITORY
from benchmarks.peers.machine import machine
from benchmarks.peers.processes import Worker, closing_all
from benchmarks.peers.summary import LIMITS, quartiles
from benchmarks.quiet import add_busy_option, refuse_busy
from benchmarks.tables import place_marked, seconds, table
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.cores import usable_cores

Json = dict[str, Any]
SCRIPT = Path(__file__).parent / "inside" / "worker"
REFERENCE = "onnx"
MIB = 2**20


def main() -> None:
    """Measure, report."""
    parser = _parser()
    arguments = parser.parse_args()
    busy = refuse_busy(parser, arguments)
    decoders = open_bundle(arguments.bundle).manifest.llm.weights.decoders
    if REFERENCE not in decoders or len(decoders) < 2:
        sys.exit(f"error: {arguments.bundle} has weights for {', '.join(decoders)}; export it with --decoder both")
    workers: dict[str, Worker] = {}
    with closing_all(workers):
        for name in ("limits", *decoders):
            log = arguments.root / "logs" / f"decoder-{name}.log"
            script = "limits_worker" if name == "limits" else str(SCRIPT)
            workers[name] = Worker(Path(sys.executable), script, arguments.threads, log.absolute(), REPOSITORY)
        results = measure(workers, arguments.bundle.absolute(), arguments.threads, arguments.rounds) | {"busy": busy}
    (arguments.root / "decoders.json").write_text(json.dumps(results, indent=1) + "\n")
    text = page(results)
    print(text)
    if arguments.docs:
        place = arguments.docs / "performance.md"
        place.write_text(place_marked(place.read_text(), {f"decoders, {results['machine']['kind']}": text}))


def measure(workers: dict[str, Worker], bundle: Path, threads: int, rounds: int) -> Json:
    """What every decoder took in every round, and what the machine could do meanwhile."""
    limits = workers["limits"]
    limits.request(do="load", model="", threads=threads, options={})
    decoders = {name: worker for name, worker in workers.items() if worker is not limits}
    loaded = {
        name: worker.request(do="load", bundle=str(bundle), decoder=name, threads=threads)
        for name, worker in tqdm(decoders.items(), desc="loading", unit="decoder")
    }
    samples: dict[str, dict[str, list[float]]] = {case: {name: [] for name in decoders} for case in CASES}
    read: list[float] = []
    for turn in tqdm(range(-1, rounds), desc="measuring", unit="round"):  # the first warms up
        for case in CASES:
            for name in [*decoders][:: 1 if turn % 2 else -1]:
                reply = decoders[name].request(do="time", case=case)
                loaded[name]["peak_rss"] = reply["peak_rss"]
                if turn >= 0:
                    samples[case][name].append(reply["seconds"])
        measured = limits.request(do="measure")
        read.append(max(measured.get(name, 0.0) for name in LIMITS["read"]))
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "bundle": bundle.name,
        "threads": threads,
        "rounds": rounds,
        "read_bytes_s": quartiles(read),
        "decoders": loaded,
        "samples": samples,
    }


def page(results: Json) -> str:
    """Markdown."""
    names = [*results["decoders"]]
    others = [name for name in names if name != REFERENCE]
    rows = []
    for case, samples in results["samples"].items():
        medians = {name: quartiles(samples[name])["median"] for name in names}
        cells = [seconds(medians[name]) + _bandwidth(results, name, case, medians[name]) for name in names]
        rows.append([case, *cells, *(_ratio(samples[name], samples[REFERENCE]) for name in others)])
    memory = [f"{results['decoders'][name]['peak_rss'] / MIB:.0f} MiB" for name in names]
    weights = [f"{results['decoders'][name]['weight_bytes'] / MIB:.0f} MiB" for name in names]
    rows += [["weights that a token reads", *weights], ["peak resident memory, mapped files included", *memory]]
    where = (
        f"{results['machine']['cpu']} ({', '.join(results['machine']['instructions'])}), {results['threads']} threads, "
        f"{results['date']}, {results['rounds']} rounds; memory reads at "
        f"{results['read_bytes_s']['median'] / 1e9:.0f} GB/s."
    )
    where += f" {results['busy'].capitalize()}." if results["busy"] else ""
    header = [results["bundle"], *names, *(f"{name} / {REFERENCE}" for name in others)]
    return f"{where}\n\n{table(header, rows)}"


def _bandwidth(results: Json, name: str, case: str, median: float) -> str:
    """The share of the bandwidth at which a single token reads the weights."""
    if case != next(iter(CASES)):
        return ""
    rate = results["decoders"][name]["weight_bytes"] / median
    return f"; {rate / results['read_bytes_s']['median']:.0%} of the bandwidth"


def _ratio(own: list[float], reference: list[float]) -> str:
    found = quartiles([one / other for one, other in zip(own, reference, strict=True)])
    return f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each decoder (default: all cores)")
    parser.add_argument("--root", type=Path, default=Path("build/bench"), help="for logs and JSON")
    parser.add_argument("--docs", type=Path, help="folder of performance.md")
    add_busy_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
