"""The changelog and the version say the same."""

import re

from salmonrun.version import __version__
from tests.helpers.pages import ROOT

HEADINGS = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_versions_have_dates_and_the_newest_is_first() -> None:
    unreleased, *released = HEADINGS
    assert unreleased == "Unreleased"
    matches = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - \d{4}-\d\d-\d\d", heading) for heading in released]
    versions = [tuple(map(int, match.groups())) for match in matches if match]
    assert len(versions) == len(released)
    assert versions == sorted(versions, reverse=True)


def test_the_version_is_the_newest_of_the_changelog_or_on_the_way_to_the_next() -> None:
    newest = HEADINGS[1].split()[0]
    text = (ROOT / "CHANGELOG.md").read_text()
    if __version__.endswith(".dev0"):
        assert f"\nThis will be {__version__.removesuffix('.dev0')}.\n" in text
        assert __version__.removesuffix(".dev0") != newest
    else:
        assert __version__ == newest
