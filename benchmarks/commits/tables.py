"""Tables of what was found."""

from collections.abc import Sequence

from benchmarks.commits.cases import Json
from benchmarks.commits.tokens import Outcome
from benchmarks.tables import seconds, table

SHOWN = 40  # differences; the JSON has all


def tokens_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each way to ask, a column for each model: how many answers, and how many of them differ."""
    groups = list(dict.fromkeys(outcome.model.group for outcome in outcomes))
    rows = []
    for kind in dict.fromkeys(outcome.case.kind for outcome in outcomes):
        cells = [
            _cell([each for each in outcomes if (each.case.kind, each.model.group) == (kind, group)])
            for group in groups
        ]
        rows.append([kind, *cells])
    return table(["answers", *groups], rows)


def _cell(outcomes: Sequence[Outcome]) -> str:
    found = tokens_summary(outcomes)
    differing = f", **{found['differ']} differ**" if found["differ"] else ""
    return f"{found['answers']}{differing}" + (f", {found['errors']} errors" if found["errors"] else "")


def tokens_summary(outcomes: Sequence[Outcome]) -> Json:
    """Counts."""
    found = [difference for outcome in outcomes for difference in outcome.differences]
    return {
        "answers": sum(outcome.answers for outcome in outcomes),
        "differ": len(found),
        "near_ties": sum(bool(difference.get("near_tie")) for difference in found),
        "other_audio": sum(difference["field"] == "windows" for difference in found),
        "notes": sum(difference["field"] == "notes" for difference in found),
        "errors": sum(outcome.errors for outcome in outcomes),
    }


def differences_list(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each answer that differs."""
    lines = []
    for outcome in outcomes:
        for found in outcome.differences:
            where = found["field"] if found["position"] is None else f"token {found['position']}"
            values = " / ".join(_shortened(found[name]) for name in ("base", "new"))
            line = f"{outcome.model.name}: {outcome.case.name}, answer {found['answer']}: {where}: {values}"
            if found["margin"] is not None:
                line += f"; the best logit led by {found['margin']:.2g}{', a near-tie' if found['near_tie'] else ''}"
            lines.append(line)
    return lines


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def latency_table(rows: Sequence[Json]) -> str:
    """A row for each stage."""
    lines = []
    for row in rows:
        before, after = (_figure(row["stage"], row[name]) for name in ("base", "new"))
        name = row["case"] if row["same_answers"] else f"{row['case']} (other answers)"
        lines.append([row["model"], name, row["stage"], before, after, _ratio(row["ratio"])])
    return table(["model", "case", "", "base", "new", "new / base (quartiles)"], lines)


def _figure(stage: str, figures: Json | None) -> str:
    if figures is None:
        return "no such stage"
    shown, median = seconds(figures["median"]), figures["median"]
    return f"{shown} ({1 / median:.0f} tokens/s)" if stage == "one token" else shown


def _ratio(figures: Json | None) -> str:
    return f"{figures['median']:.2f} ({figures['q1']:.2f} to {figures['q3']:.2f})" if figures else ""
