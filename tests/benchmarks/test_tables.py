"""Tables as Markdown, and where they go."""

import pytest

from benchmarks.tables import place_marked, replace_marked, seconds, table


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


def test_a_case_gets_a_place_behind_the_last_of_its_table() -> None:
    page = "<!-- bench: x, a -->\nA\n<!-- /bench -->\nbetween\n<!-- bench: y, b -->\nB\n<!-- /bench -->\n"
    placed = place_marked(page, {"x, b": "new", "y, b": "newer"})
    assert placed == page.replace("between", "\n<!-- bench: x, b -->\nnew\n<!-- /bench -->\nbetween").replace(
        "B\n", "newer\n"
    )
    with pytest.raises(ValueError, match=r"no place for 'z, b'; expected at least one <!-- bench: z, ... -->"):
        place_marked(page, {"z, b": "new"})
