"""The native kernels, which CMake builds; all else stands in pyproject.toml.

Where they cannot be built (no compiler, no headers of Python) salmonrun is installed without them, and runs LLMs on
ONNX Runtime.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCE = (Path(__file__).parent / "salmonrun" / "kernels" / "cpu").resolve()  # no link: CMake notes where it was


class CMakeBuild(build_ext):
    """Builds the extension where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and copy; what fails is told, and is no error for an optional extension."""
        target, build = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve() / "native"
        configure = ["cmake", "-S", SOURCE, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
            subprocess.run(["cmake", "--install", build, "--prefix", target.parent, "--strip"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native kernels were not built: {error}") from error


setup(
    ext_modules=[Extension("salmonrun.kernels.cpu._native", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
