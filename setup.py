"""What pyproject.toml cannot say: the native kernels, which CMake builds, and README as PyPI shows it.

Where the kernels cannot be built (no compiler, no headers of Python) salmonrun is installed without them, and runs LLMs
on ONNX Runtime.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
SOURCE = (ROOT / "salmonrun" / "kernels" / "cpu").resolve()  # no link: CMake notes where it was


class CMakeBuild(build_ext):
    """Builds the extension where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and copy; what fails is told, and is no error for an optional extension."""
        target, build = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve() / "native"
        configure = ["cmake", "-S", SOURCE, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
        if not shutil.which("make"):  # CMake's default; a folder that was configured for it stays so
            configure += ["-G", "Ninja"]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
            subprocess.run(["cmake", "--install", build, "--prefix", target.parent, "--strip"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native kernels were not built: {error}") from error


def description() -> str:
    """README, its links led to the project's `Source` address; as long as it has none, they are their text alone."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    replacement = rf"[\1]({urls['Source'].rstrip('/')}/blob/main/\2)" if "Source" in urls else r"\1"
    return LINK.sub(replacement, (ROOT / "README.md").read_text())


setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("salmonrun.kernels.cpu._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
