"""Commands, through main()."""

import pytest

from salmonrun.runtime.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of stdout, lines of stderr."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out.split("\n")[:-1], printed.err.split("\n")[:-1]
