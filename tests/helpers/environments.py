"""Virtual environments that a test makes, and what it runs in them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


def outside(**more: str) -> dict[str, str]:
    """The variables of this process, without those that could lend another Python the packages of the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | more


@dataclass(frozen=True)
class Environment:
    """A virtual environment, used from a folder that has nothing to do with the checkout."""

    folder: Path

    @classmethod
    def fresh(cls, folder: Path, python: str = sys.executable) -> "Environment":
        """One with nothing in it but pip."""
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        return cls(folder)

    @property
    def programs(self) -> Path:
        """The folder of its programs."""
        return self.folder / "bin"

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """One of its programs."""
        command = [str(self.programs / program), *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=outside(), capture_output=True, text=True, errors="replace", check=False
        )

    def pip(self, *arguments: object) -> str:
        """What pip prints."""
        done = self.run("python", "-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lend(self, *more: Path) -> None:
        """Packages it does not have it takes from `more`, then from where this process has its own."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        paths = [*map(str, more), *(path for path in sys.path if path.endswith("site-packages"))]
        (site / "lent.pth").write_text("\n".join(paths) + "\n")

    def packages(self) -> set[str]:
        """The names of what is installed."""
        return {package["name"] for package in json.loads(self.pip("list", "--format", "json"))}

    def files(self, distribution: str) -> set[Path]:
        """Of the distribution, as its RECORD lists them, that are there."""
        code = "import importlib.metadata as m, sys; print(*[f.locate() for f in m.files(sys.argv[1])], sep='\\n')"
        done = self.run("python", "-c", code, distribution)
        assert done.returncode == 0, done.stderr
        return {path for line in done.stdout.splitlines() if (path := Path(line).resolve()).suffix != ".pyc"}
