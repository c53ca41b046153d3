"""What pyproject.toml cannot say: the native kernels, which CMake builds, and README as PyPI shows it.

Where the kernels cannot be built (no compiler, no headers of Python) salmonrun is installed without them, and runs LLMs
on ONNX Runtime. They take minutes: with SALMONRUN_KERNEL_CACHE, a folder, what was built of the same sources in the
same way is taken from there.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
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
        """Build, or take what was built before; what fails is told, and is no error for an optional extension."""
        target, build = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve() / "native"
        try:
            cache = os.environ.get("SALMONRUN_KERNEL_CACHE")
            kept = Path(cache) / fingerprint() / target.name if cache else None
            if kept and kept.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(kept, target)
                return
            build_kernels(build, target.parent)
            if kept:
                keep(target, kept)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"the native kernels were not built: {error}") from error


def build_kernels(build: Path, folder: Path) -> None:
    """Configure and compile in a folder of their own, and put the extension into the other."""
    configure = ["cmake", "-S", SOURCE, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"]
    if not shutil.which("make"):  # CMake's default; a folder that was configured for it stays so
        configure += ["-G", "Ninja"]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", build, "--parallel"], check=True)
    subprocess.run(["cmake", "--install", build, "--prefix", folder, "--strip"], check=True)


def fingerprint() -> str:
    """Of all that decides what is built: sources, compiler and its flags, Python, nanobind."""
    compiler = os.environ.get("CXX", "c++")
    told = subprocess.run([compiler, "--version"], check=True, capture_output=True).stdout
    flags = {name: os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS")}
    digest = hashlib.sha256(repr((told, sorted(flags.items()), sys.version, version("nanobind"))).encode())
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix in (".cpp", ".h", ".txt"):
            digest.update(f"{path.relative_to(SOURCE)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def keep(built: Path, place: Path) -> None:
    """In the cache, where there is a whole file or none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.copy2(built, aside)
    aside.replace(place)


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
