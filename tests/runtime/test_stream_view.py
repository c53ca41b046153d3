"""What the stream command shows, on terminals and elsewhere."""

import io
from dataclasses import replace

from salmonrun.runtime import Result, Segment, Update
from salmonrun.runtime.commands.stream_view import (
    DIM,
    ERASE_LINE,
    NORMAL,
    JsonView,
    TextView,
    growing_line,
    last_columns,
    open_view,
)
from salmonrun.runtime.commands.tally import Tally
from salmonrun.runtime.result import Timings
from salmonrun.runtime.transcript import one_line


def test_partial_text_is_dimmed() -> None:
    assert growing_line("wake me", " at ten", 80, dim=True) == f"wake me{DIM} at ten{NORMAL}"
    assert growing_line("wake me", " at ten", 80, dim=False) == "wake me at ten"
    assert growing_line("wake me", "", 80, dim=True) == "wake me"
    assert growing_line("", " at ten", 80, dim=True) == f"{DIM}at ten{NORMAL}"
    assert growing_line("", "", 80, dim=True) == ""


def test_the_end_of_a_wide_text_is_shown() -> None:
    assert growing_line("0123456789", "abcdef", 10, dim=True) == f"789{DIM}abcdef{NORMAL}"
    assert growing_line("0123456789", "abcdef", 7, dim=True) == f"{DIM}abcdef{NORMAL}"
    assert growing_line("0123456789", "abcdef", 5, dim=True) == f"{DIM}cdef{NORMAL}"
    assert growing_line("0123456789", "abcdef", 17, dim=False) == "0123456789abcdef"
    assert growing_line("0123456789", "abcdef", 0, dim=False) == ""


def test_characters_of_other_widths() -> None:
    assert last_columns("日本語", 4) == "本語"
    assert last_columns("日本語", 5) == "本語"  # a half of a character cannot be shown
    assert last_columns("abe\u0301", 2) == "be\u0301"  # e with a mark on it has one column
    assert last_columns("abc", 0) == ""


def test_a_line_stays_one_and_steers_nothing() -> None:
    assert one_line(" a\nb\r\x1b[2Jc\x9b\u2028d\t ") == "a b [2Jc d"
    assert one_line("क\u200dष") == "क\u200dष"  # a joiner is part of the word


UPDATE = Update("one two", "two", " thr", audio_s=1.0, latency_s=0.04, lag_s=0.25)
SEGMENT = Segment("one two three", [1, 2, 3], 3200, 32000, (3200, 32000), "stop")
ENDED = replace(UPDATE, stable="one two three", delta=" three", partial="", segment=SEGMENT)
NEXT = replace(UPDATE, stable="one two three\nfour", delta="\nfour", partial=" five", left_out=2)


def test_a_terminal_is_redrawn_in_place() -> None:
    out, report = io.StringIO(), io.StringIO()
    view = TextView(out, report, lambda: 80, dim=True)
    drawn = []
    for step in (
        lambda: view.update(UPDATE),
        lambda: (view.update(ENDED), view.utterance(SEGMENT)),
        lambda: view.update(NEXT),
        lambda: view.close(),
        lambda: view.close(),
    ):
        step()
        drawn.append(out.getvalue())
        out.seek(out.truncate(0))
    assert drawn == [
        f"{ERASE_LINE}one two{DIM} thr{NORMAL}",
        f"{ERASE_LINE}[0.20 - 2.00] one two three\n",
        f"{ERASE_LINE}four{DIM} five{NORMAL}",
        f"{ERASE_LINE}[...] four\n",
        ERASE_LINE,
    ]


def test_elsewhere_only_what_is_over_is_written() -> None:
    out, report = io.StringIO(), io.StringIO()
    view = TextView(out, report)
    view.update(UPDATE)
    assert out.getvalue() == ""
    view.update(ENDED)
    view.utterance(SEGMENT)
    view.update(NEXT)
    assert out.getvalue() == "[0.20 - 2.00] one two three\n"
    view.result(Result("one two three\nfour and", [], "cancelled", Timings()), Tally("block"))
    view.close()
    assert out.getvalue() == "[0.20 - 2.00] one two three\n[...] four and\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_view_suits_the_output() -> None:
    def shown(out: io.StringIO, **environment: str) -> str:
        open_view(out, io.StringIO(), False, environment).update(UPDATE)
        return out.getvalue()

    assert shown(Terminal()) == f"{ERASE_LINE}one two{DIM} thr{NORMAL}"
    assert shown(Terminal(), NO_COLOR="1") == f"{ERASE_LINE}one two thr"
    assert DIM in shown(Terminal(), NO_COLOR="")
    assert shown(Terminal(), TERM="dumb") == ""
    assert shown(io.StringIO()) == ""
    assert isinstance(open_view(Terminal(), io.StringIO(), True, {}), JsonView)


def test_the_summary() -> None:
    tally = Tally("block")
    for update in (UPDATE, replace(ENDED, latency_s=0.02, lag_s=0.0), replace(NEXT, latency_s=0.07)):
        tally.add(update)
    result = Result("", [], "stop", Timings(4.0, {"finish": 0.123}), ("a note", "another"))
    assert tally.summary(result) == (
        "4.0 s of audio, policy block, 1 utterance, 3 updates in 40 ms (median), the last in 70 ms, "
        "final text 123 ms after the last sample, at most 0.25 s behind real time, 2 updates left out, "
        "ended by stop; a note; another"
    )
