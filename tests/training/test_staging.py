"""Folders that appear when they are whole: what killed processes have left goes, what others fill stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from salmonrun.training.staging import lock, staged


def test_a_folder_appears_when_it_is_done(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom salmonrun.training.staging import staged\n"
        "with staged(Path(sys.argv[1])) as folder:\n    (folder / 'a').write_text('1')\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")]).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with staged(tmp_path / "other"):  # of another's
        pass
    assert left.is_dir()
    with staged(tmp_path / "out"):
        assert not left.exists()


def test_what_another_process_fills_stays(tmp_path: Path) -> None:
    """Others that look like it stay, too."""
    held, own = tmp_path / ".out.abcdefgh", tmp_path / ".out.of-mine"
    held.mkdir()
    own.mkdir()
    descriptor = lock(held)
    assert descriptor is not None
    with staged(tmp_path / "out"):
        pass
    assert held.is_dir()
    assert own.is_dir()
    os.close(descriptor)
    with staged(tmp_path / "again"):
        pass
    assert held.is_dir()
