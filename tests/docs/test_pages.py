"""What the pages say is so: their commands and programs run as they are written, and what they name is there.

`make test` runs what takes a moment, in the environment of the tests. `make docs-test` runs everything else, too: the
wheel in an empty environment, and what is for a checkout in a clone.
"""

import argparse
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from salmonrun.export.commands import EXPORTING
from salmonrun.runtime.commands import RUNNING
from salmonrun.runtime.errors import AudioError, MissingExtraError
from salmonrun.training.commands import TRAINING
from tests.helpers.environments import Environment, outside
from tests.helpers.pages import PAGES, ROOT, Block, blocks
from tests.helpers.watched import run_watched

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = {command.name: command for group in (TRAINING, EXPORTING, RUNNING) for command in group.commands}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
QUICK = [page for page in PAGES if any(not (b.needs or b.takes or b.place) for b in BLOCKS if b.page == page)]
COMMAND_S = 1800  # that a command may take, on a busy machine
RUN = [page for page in PAGES if any(not b.needs for b in BLOCKS if b.page == page)]


def execute(
    block: Block, folder: Path, programs: Path, recorders: Path, show: Callable[[str], object] = lambda _: None
) -> None:
    """Run a block as a reader would, and compare what it prints with what the page says."""
    path = f"{programs}:{recorders}:/usr/local/bin:/usr/bin:/bin"
    start = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [str(programs / "python"), "-c"]
    done = run_watched(start, block.code, folder, outside(PATH=path), COMMAND_S, show)
    assert done.returncode == 0, f"{block}\n{block.code}\n{done.stdout}\n{done.stderr}"
    if block.output is not None:
        assert masked(done.stdout) == masked(block.output), f"{block}\n{done.stdout}"


def masked(output: str) -> list[str]:
    """Its lines, without what another machine measures: numbers, and how wide columns are."""
    return [" ".join(re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "#", line).split()) for line in output.strip().splitlines()]


@pytest.mark.parametrize("page", QUICK)
def test_what_takes_a_moment_runs(page: str, furnish: Callable[[Path], Path], tmp_path: Path) -> None:
    recorders = furnish(tmp_path / "folder")
    for block in blocks(page):
        if not (block.needs or block.takes or block.place):
            execute(block, tmp_path / "folder", Path(sys.executable).parent, recorders)


def test_what_the_card_of_a_bundle_shows_runs_in_its_folder(furnish: Callable[[Path], Path], tmp_path: Path) -> None:
    recorders = furnish(tmp_path / "folder")
    bundle = tmp_path / "folder" / "bundle"
    shutil.copyfile(tmp_path / "folder" / "talk.wav", bundle / "talk.wav")
    shown = blocks(bundle / "README.md")
    assert len(shown) == 2
    for block in shown:
        execute(block, bundle, Path(sys.executable).parent, recorders)


@pytest.mark.docs
@pytest.mark.timeout(0)  # there is a limit for each command
@pytest.mark.parametrize("page", RUN)
def test_everything_runs(
    page: str,
    furnish: Callable[[Path], Path],
    tmp_path: Path,
    engine_environment: Environment,
    whole_environment: Environment,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorders = furnish(tmp_path / "folder")

    def show(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(text)
            sys.stdout.flush()

    for block in blocks(page):
        if block.needs:
            continue
        show(f"\n{block}\n")
        if block.place:
            execute(block, checkout, checkout / ".venv" / "bin", recorders, show)
        else:
            environment = whole_environment if needs_pytorch(block) else engine_environment
            execute(block, tmp_path / "folder", environment.programs, recorders, show)


def needs_pytorch(block: Block) -> bool:
    """Whether it is about checkpoints, and not about a bundle alone."""
    extras = {COMMANDS[name].extra for name in re.findall(r"\bsalmonrun (\w+)", block.code) if name in COMMANDS}
    return bool(extras - {None}) or "--baseline" in block.code


# Notes what would be run, where nothing is: every program, and cd, only says its name and arguments.
NOTE = """
note() { printf '%s\\0' "$@" $'\\001' >&9; }
command_not_found_handle() { note "$@"; }
cd() { note cd "$@"; }
.() { :; }
"""


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs], ids=str)
def test_what_cannot_run_here_is_well_formed(block: Block, tmp_path: Path) -> None:
    """Its commands are there, and take these arguments."""
    if block.language == "python":
        compile(block.code, str(block), "exec")
        return
    noted = tmp_path / "noted"
    script = f"exec 9>{shlex.quote(str(noted))}\n{NOTE}\n{block.code}"
    env = outside(PATH=str(tmp_path))
    done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), block
    calls = [call.split("\0")[:-1] for call in noted.read_text().split("\001\0")[:-1]]
    assert calls, block
    for call in calls:
        check_call(call)


def check_call(words: list[str]) -> None:
    """The command, target or module is there; ours take their arguments.

    Raises:
        ConfigError: a setting is not one.
        SystemExit: an argument is not one.
    """
    if words[0] in ("docker", "optimum-cli"):  # what stands behind is theirs
        return
    if words[0] == "make":
        assert set(words[1:]) <= {*TARGETS, ".venv/.export"}, words
    elif "salmonrun" in words:
        name, *given = words[words.index("salmonrun") + 1 :]
        parser = argparse.ArgumentParser(name)
        importlib.import_module(COMMANDS[name].module).add_arguments(parser)
        arguments = parser.parse_args(given)
        if "settings" in arguments:
            with suppress(AudioError, MissingExtraError):  # a file or a microphone that is not there
                arguments.settings(arguments)
    elif words[0] == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("page", PAGES)
def test_what_a_sentence_names_is_there(page: str) -> None:
    """`make X`, `salmonrun X`, `python -m X` and `python X` between single backticks."""
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", prose):
        words = span.split()
        if words[0] == "make" and len(words) > 1:
            assert words[1] in TARGETS, span
        elif words[0] == "salmonrun" and len(words) > 1 and words[1].isalpha() and words[1].islower():
            assert words[1] in COMMANDS, span
        elif words[0].endswith("python") and len(words) > 1:
            module = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
            assert importlib.util.find_spec(module), span


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Those into the checkout, headings among them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = ROOT / page if not name else (ROOT / page).parent / name
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(path: Path) -> set[str]:
    """As a link names them."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
