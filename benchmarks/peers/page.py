"""What DOCS/performance.md shows of the results: tables in its marked places, and plots in DOCS/images.

A place is of a table, a shape and a kind of machine: a run elsewhere, or of another shape, replaces nothing else.

python -m benchmarks.peers.page RESULTS.json --docs docs
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.tables import place_marked, seconds, table
from salmonrun.runtime.commands.main import guarded

Json = dict[str, Any]
LIMITS = {
    "read_bytes_s": ("reading memory", "GB/s"),
    "read_huge_bytes_s": ("reading memory in pages of 2 MiB", "GB/s"),
    "fp32_flop_s": ("products of matrices, fp32", "GFLOP/s"),
    "bf16_flop_s": ("products of matrices, bf16", "GFLOP/s"),
    "int8_flop_s": ("products of matrices, int8", "GOP/s"),
    "vnni_op_s": ("int8 in registers, VNNI", "GOP/s"),
    "amx_op_s": ("int8 from the first cache, AMX", "GOP/s"),
}
TABLES = {"llm-decode": "llm", "llm-prefill": "llm", "whisper-encoder": "encoder"}


def tables(results: Json) -> dict[str, str]:
    """Marker -> Markdown."""
    kind, where = results["machine"]["kind"], _where(results)
    made = {f"machine, {kind}": _machine(results)}
    for name, shape in _places(results):
        picture = f"![{name}, {shape}, {kind}](images/{_picture(name, shape, kind)})"
        made[f"{name}, {shape}, {kind}"] = f"{where}\n\n{_table(results['rows'], name, shape)}\n\n{picture}"
    return made


def _places(results: Json) -> list[tuple[str, str]]:
    """Tables, and the shapes that were measured for them."""
    pairs = ((name, row["shape"]) for name, kind in TABLES.items() for row in results["rows"] if row["kind"] == kind)
    return list(dict.fromkeys(pairs))


def _picture(name: str, shape: str, kind: str) -> str:
    return f"peers-{name}-{shape}-{kind}.png".lower().replace(" ", "-")


def _where(results: Json) -> str:
    machine, method = results["machine"], results["method"]
    busy = f" {results['busy'].capitalize()}." if results["busy"] else ""
    has = ", ".join(machine["instructions"])
    return f"{machine['cpu']} ({has}), {method['threads']} threads, {results['date']}.{busy}"


def _machine(results: Json) -> str:
    machine, method = results["machine"], results["method"]
    where = (
        f"{_where(results)} {machine['memory_gib']:.0f} GiB, {machine['system']}; {method['rounds']} rounds, at least "
        f"{method['min_rounds']} of slow engines."
    )
    rows = []
    for key, (name, unit) in LIMITS.items():
        if figures := results["limits"].get(key):
            low, middle, high = (figures[part] / 1e9 for part in ("q1", "median", "q3"))
            rows.append([name, f"{middle:.0f} {unit}", f"{low:.0f} to {high:.0f}"])
    return f"{where}\n\n{table(['limit of the machine, measured beside', 'median', 'quartiles'], rows)}"


def _table(rows: list[Json], name: str, shape: str) -> str:
    own = [row for row in rows if row["shape"] == shape]
    cases = [case for case in dict.fromkeys(case for row in own for case in row["cases"]) if _belongs(case, name)]
    own.sort(key=lambda row: row["cases"][cases[-1]]["median"] if _measured(row, cases) else float("inf"))
    header = [shape, *(_title(case) for case in cases), "error", "peak memory"]
    return table(header, [_cells(row, cases) for row in own])


def _belongs(case: str, table: str) -> bool:
    return (case == "decode") if table == "llm-decode" else case != "decode"


def _measured(row: Json, cases: list[str]) -> bool:
    return not row["failure"] and bool(cases) and all(case in row["cases"] for case in cases)


def _title(case: str) -> str:
    return {"decode": "a token", "prefill": f"{case.split()[-1]} tokens"}.get(
        case.split()[0], case.removeprefix("encode ")
    )


def _cells(row: Json, cases: list[str]) -> list[str]:
    name = f"**{row['name']}**" if row["peer"] == "salmonrun" else row["name"]
    name += f" ({row['note']})" if row["note"] else ""
    if not _measured(row, cases):
        return [name, row["failure"].replace("|", "\\|") or "not measured"]
    error = "" if row["error"] is None else f"{row['error']:.2g}"
    return [name, *(_figures(row["cases"][case]) for case in cases), error, f"{row['peak_rss'] / 2**30:.1f} GiB"]


def _figures(figures: Json) -> str:
    """Median; ratio to salmonrun's in the same round with its quartiles; share of the machine's limit."""
    text = seconds(figures["median"])
    if ratio := figures["ratio"]:
        text += f"; {ratio['median']:.2f}x ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
    return text + (f"; {figures['share']:.0%}" if figures["share"] else "")


def plot(results: Json, folder: Path) -> list[Path]:
    """A PNG for each table of each shape: medians as bars, quartiles as whiskers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, shape in _places(results):
        rows = [row for row in results["rows"] if row["shape"] == shape and not row["failure"]]
        cases = list(dict.fromkeys(case for row in rows for case in row["cases"] if _belongs(case, name)))
        if not cases:
            continue
        figure, axes = pyplot.subplots(1, len(cases), figsize=(4.5 * len(cases), 3.6), squeeze=False)
        for axis, case in zip(axes.flat, cases, strict=True):
            _bars(axis, [row for row in rows if case in row["cases"]], case)
            axis.set_title(f"{shape}, {_title(case)}", fontsize=9)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / _picture(name, shape, results["machine"]["kind"]))
        figure.savefig(paths[-1], dpi=120)
        pyplot.close(figure)
    return paths


def _bars(axis: Any, rows: list[Json], case: str) -> None:
    rows = sorted(rows, key=lambda row: -row["cases"][case]["median"])
    figures = [row["cases"][case] for row in rows]
    medians = [1e3 * item["median"] for item in figures]
    whiskers = [
        [1e3 * (item["median"] - item["q1"]) for item in figures],
        [1e3 * (item["q3"] - item["median"]) for item in figures],
    ]
    colours = ["tab:orange" if row["peer"] == "salmonrun" else "tab:blue" for row in rows]
    axis.barh([row["name"] for row in rows], medians, xerr=whiskers, color=colours, error_kw={"linewidth": 1})
    axis.tick_params(labelsize=7)
    axis.set_xlabel("ms", fontsize=8)
    axis.set_xlim(left=0)


def write(results: Json, docs: Path) -> None:
    """Replace the tables of DOCS/performance.md and draw the plots."""
    page = docs / "performance.md"
    page.write_text(place_marked(page.read_text(), tables(results)))
    plot(results, docs / "images")


def main() -> None:
    """From a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    write(json.loads(arguments.results.read_text()), arguments.docs)


if __name__ == "__main__":
    sys.exit(guarded(main))
