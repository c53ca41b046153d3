"""The options of the page, on the command line."""

import importlib.util

import pytest

from salmonrun.runtime.__main__ import main


def test_the_page_needs_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "no/bundle", "--page"]) == 1
    said = capsys.readouterr().err
    assert said == "error: --page needs Gradio, which is not installed: pip install 'salmonrun[demo]'\n"


def test_a_bundle_beside_needs_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "no/bundle", "--page-with", "other/bundle"])
    assert ended.value.code == 2
    assert "--page-with is of the page: add --page" in capsys.readouterr().err
