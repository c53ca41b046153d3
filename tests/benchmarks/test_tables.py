"""Tables as Markdown, and where they go."""

import pytest

from benchmarks.tables import replace_marked, seconds, table


def test_every_row_has_a_cell_for_every_column() -> None:
    assert table(["", "a", "b"], [["x", "1", "2"], ["y", "no room"]]).splitlines() == [
        "|  | a | b |",
        "| --- | --- | --- |",
        "| x | 1 | 2 |",
        "| y | no room |  |",
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [(12.345, "12.3 s"), (1.0, "1 s"), (0.9876, "988 ms"), (0.0012345, "1.23 ms")]
)
def test_seconds_have_three_digits(value: float, expected: str) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(("page", "count"), [("nothing here", 0), (2 * "<!-- bench: x -->\n<!-- /bench -->\n", 2)])
def test_a_table_has_one_place(page: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} places for 'x'; expected one <!-- bench: x -->"):
        replace_marked(page, {"x": ""})
