"""What DOCS/performance.md shows of the results: tables in its marked places, and plots in DOCS/images.

python -m benchmarks.peers.page RESULTS.json --docs docs
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tables import replace_marked, seconds, table

Json = dict[str, Any]
LIMITS = {
    "read_bytes_s": ("reading memory", "GB/s"),
    "fp32_flop_s": ("products of matrices, fp32", "GFLOP/s"),
    "bf16_flop_s": ("products of matrices, bf16", "GFLOP/s"),
    "int8_flop_s": ("products of matrices, int8", "GOP/s"),
}
TABLES = {"llm-decode": "llm", "llm-prefill": "llm", "whisper-encoder": "encoder"}


def tables(results: Json) -> dict[str, str]:
    """Marker -> Markdown."""
    made = {name: _table(results["rows"], name) for name in TABLES}
    return {"machine": _machine(results)} | {name: text for name, text in made.items() if text}


def _machine(results: Json) -> str:
    machine, method = results["machine"], results["method"]
    where = (
        f"{machine['cpu']}, {method['threads']} threads, {machine['memory_gib']:.0f} GiB, {machine['system']}, "
        f"{results['date']}; {method['rounds']} rounds, at least {method['min_rounds']} of slow engines."
    )
    rows = []
    for key, (name, unit) in LIMITS.items():
        if figures := results["limits"].get(key):
            low, middle, high = (figures[part] / 1e9 for part in ("q1", "median", "q3"))
            rows.append([name, f"{middle:.0f} {unit}", f"{low:.0f} to {high:.0f}"])
    return f"{where}\n\n{table(['limit of the machine, measured beside', 'median', 'quartiles'], rows)}"


def _table(rows: list[Json], name: str) -> str:
    blocks = []
    shapes = dict.fromkeys(row["shape"] for row in rows if row["kind"] == TABLES[name])
    for shape in shapes:
        own = [row for row in rows if row["shape"] == shape]
        cases = [case for case in dict.fromkeys(case for row in own for case in row["cases"]) if _belongs(case, name)]
        own.sort(key=lambda row: row["cases"][cases[-1]]["median"] if _measured(row, cases) else float("inf"))
        header = [shape, *(_title(case) for case in cases), "error", "peak memory"]
        blocks.append(table(header, [_cells(row, cases) for row in own]))
    return "\n\n".join(blocks)


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
    """A PNG for each table: medians as bars, quartiles as whiskers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, kind in TABLES.items():
        rows = [row for row in results["rows"] if row["kind"] == kind and not row["failure"]]
        pairs = dict.fromkeys((row["shape"], case) for row in rows for case in row["cases"] if _belongs(case, name))
        if not pairs:
            continue
        shapes = len(dict.fromkeys(shape for shape, _ in pairs))
        lines = shapes if len(pairs) > 3 else 1  # every shape has the same cases
        columns = len(pairs) // lines
        figure, axes = pyplot.subplots(lines, columns, figsize=(4.5 * columns, 3.6 * lines), squeeze=False)
        for axis, (shape, case) in zip(axes.flat, pairs, strict=True):
            _bars(axis, [row for row in rows if row["shape"] == shape and case in row["cases"]], case)
            axis.set_title(f"{shape}, {_title(case)}", fontsize=9)
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"peers-{name}.png")
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
    page.write_text(replace_marked(page.read_text(), tables(results)))
    plot(results, docs / "images")


def main() -> None:
    """From a file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    write(json.loads(arguments.results.read_text()), arguments.docs)


if __name__ == "__main__":
    main()
