"""What the page shows of answers, as HTML. Every text is escaped: a model may say anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import PurePath

from salmonrun.runtime.report import Report
from salmonrun.runtime.result import ENCODERS
from salmonrun.runtime.server.page.ask import Card, Side
from salmonrun.runtime.server.page.talk import Talk

WORTH_TELLING_S = 0.1  # of waiting for a turn
# What people are told of stages, in the order of the path: each, its stages, where they are not waiting.
_STAGES: dict[str, tuple[str, ...]] = {
    "audio": ("audio", "features"),
    "encoders": (*ENCODERS, "wait"),
    "prompt": ("prompt", "prefill"),
    "decode": ("decode",),
}


def asset(name: str) -> str:
    """A text file beside this one."""
    return files(__package__).joinpath(name).read_text("utf-8")


def login(problem: str) -> str:
    """The form that asks for a key."""
    told = f'<p class="problem">{escape(problem)}</p>' if problem else ""
    return asset("login.html").replace("<!-- problem -->", told)


def header(reports: Sequence[Report]) -> str:
    """What is served."""
    told = "".join(
        f'<div class="sr-bundle"><b>{escape(one.name)}</b><span>{one.size}</span><span>{escape(one.runs)}</span></div>'
        for one in bundles(reports)
    )
    return f'<div class="sr-head"><h1>salmonrun</h1><div class="sr-bundles">{told}</div></div>'


@dataclass(frozen=True)
class BundleName:
    """What people are told of a bundle."""

    name: str  # that no other has: the model's, or where these are the same, the folder's
    size: str
    runs: str  # as what, and where


def bundles(reports: Sequence[Report]) -> list[BundleName]:
    """Of one that is served, or two side by side."""
    models = [report.model for report in reports]
    same = len(set(models)) < len(models)
    return [_bundle(PurePath(one.bundle).name if same else one.model, one) for one in reports]


def cards(shown: Sequence[Card], asked: Sequence[BundleName]) -> str:
    """Questions and their answers, the latest first."""
    if not shown:
        return '<div class="sr-empty">Give a recording, and ask about it. Answers appear here.</div>'
    return "".join(_card(card, asked) for card in shown)


def talk(shown: Talk | None) -> str:
    """The segments of a recording, and how far it is."""
    if shown is None:
        return '<div class="sr-empty">The text appears here, with its times, as it is decoded.</div>'
    rows = "".join(
        f'<tr><td class="sr-time">{_clock(one.start)}</td><td class="sr-time">{_clock(one.end)}</td>'
        f"<td>{escape(one.text)}{_doubt(one.low_confidence)}</td></tr>"
        for one in shown.segments
    )
    if shown.growing.strip():
        rows += f'<tr class="sr-growing"><td></td><td></td><td>{escape(shown.growing)}{_CURSOR}</td></tr>'
    table = f'<table class="sr-talk"><tbody>{rows}</tbody></table>' if rows else ""
    error = _problem(shown.error) if shown.error else ""
    return (
        f'<div class="sr-card">{_progress(shown)}{table}{error}{_notes(shown.info.notes if shown.info else ())}</div>'
    )


_CURSOR = '<span class="sr-cursor"></span>'


def _bundle(name: str, report: Report) -> BundleName:
    where = report.instruction_set or report.device
    return BundleName(name, _mib(report.bundle_bytes), f"LLM {report.precision['llm']}, {report.decoder} on {where}")


def _card(card: Card, asked: Sequence[BundleName]) -> str:
    several = len(card.sides) > 1
    longest = max((sum(_seconds(side).values()) for side in card.sides), default=0.0)
    sides = "".join(
        _side(side, f"{escape(one.name)} <span>{one.size}</span>" if several else "", longest)
        for side, one in zip(card.sides, asked, strict=True)
    )
    config = card.instruction.config
    how = f"{config.num_beams} beams, " if config.num_beams > 1 else ""
    queued = f"; waited {_ms(card.queued_s)} for its turn" if card.queued_s >= WORTH_TELLING_S else ""
    return (
        f'<div class="sr-card"><div class="sr-question">{escape(card.instruction.text)}</div>'
        f'<div class="sr-about">{escape(card.recording)}; {how}at most {config.max_new_tokens} tokens{queued}</div>'
        f'<div class="sr-sides sr-sides-{len(card.sides)}">{sides}</div></div>'
    )


def _side(side: Side, name: str, longest: float) -> str:
    title = f'<div class="sr-name">{name}</div>' if name else ""
    text = f'<div class="sr-answer sr-{side.state}">{_text(side)}</div>'
    error = _problem(side.error) if side.error else ""
    doubt = _doubt(side.result.low_confidence) if side.result else ""
    notes = _notes(side.result.notes if side.result else ())
    return f"<div>{title}{text}{doubt}{error}{_times(side, longest)}{notes}</div>"


def _text(side: Side) -> str:
    if side.state == "waiting":
        return f'<span class="sr-dim">waits</span>{_CURSOR}'
    if side.state == "answering":
        return escape(side.text) + _CURSOR
    if side.state == "stopped":
        return f'{escape(side.text)} <span class="sr-dim">(stopped)</span>'
    return escape(side.text) or ("" if side.error else '<span class="sr-dim">(no text)</span>')


def _seconds(side: Side) -> dict[str, float]:
    """By what people are told of."""
    stages: dict[str, float] = dict(side.hearing or {})
    for stage, seconds in (side.result.timings.stages if side.result else {}).items():
        stages[stage] = stages.get(stage, 0.0) + seconds
    return {name: sum(stages.get(stage, 0.0) for stage in of) for name, of in _STAGES.items()}


def _times(side: Side, longest: float) -> str:
    """A bar of stages, as long as it took beside the other's, and the numbers."""
    if side.result is None:
        return ""
    seconds, timings = _seconds(side), side.result.timings
    bar = "".join(
        f'<i class="sr-{name}" style="width:{100 * value / max(longest, 1e-9):.2f}%"></i>'
        for name, value in seconds.items()
    )
    heard = side.hearing
    parts = [
        f'<span><i class="sr-{name}"></i>{name} {_ms(value)}</span>'
        for name, value in seconds.items()
        if heard or name in ("prompt", "decode")
    ]
    if not heard:
        parts.insert(0, "<span>heard before</span>")
    before = sum((heard or {}).values())
    total = f"<b>{_ms(sum(seconds.values()))}</b> for {timings.audio_s:.1f} s of audio"
    if timings.token_s:
        total += f"; first token after {_ms(before + timings.ttft_s)}"
    total += f"; {timings.tokens} tokens"
    stages = f'<div class="sr-bar">{bar}</div><div class="sr-stages">{"".join(parts)}</div>'
    return f'{stages}<div class="sr-total">{total}</div>'


def _progress(shown: Talk) -> str:
    if shown.info is None:
        return f'<div class="sr-about">{escape(shown.recording)}</div>' + ("" if shown.error else _CURSOR)
    info, end = shown.info, shown.segments[-1].end if shown.segments else 0.0
    done = 1.0 if shown.state == "done" else min(1.0, end / info.duration_s) if info.duration_s else 0.0
    told = f"{escape(shown.recording)}; {_clock(info.duration_s)} of audio, {len(shown.segments)} segments"
    if shown.state == "done":
        told += (
            f", in {shown.took_s:.1f} s ({info.duration_s / max(shown.took_s, 1e-9):.0f} times as fast as it is spoken)"
        )
    if shown.state == "stopped":
        told += " (stopped)"
    bar = f'<div class="sr-bar"><i class="sr-decode" style="width:{100 * done:.1f}%"></i></div>'
    return f'<div class="sr-about">{told}</div>{bar}'


def _problem(message: str) -> str:
    return f'<div class="sr-problem" role="alert">{escape(message)}</div>'


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<div class="sr-note">{escape(note)}</div>' for note in notes)


def _doubt(low: bool | None) -> str:
    return (
        ' <span class="sr-doubt" title="its score is below the threshold of the bundle">not sure</span>' if low else ""
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _ms(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1000 * seconds:.0f} ms"
        if seconds >= 0.01
        else f"{1000 * seconds:.1f} ms"
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"
