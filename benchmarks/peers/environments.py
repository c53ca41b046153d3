"""The peers' Python environments, made from the package registry: ROOT/environments/NAME with pinned requirements.

    python benchmarks/peers/environments.py --root build/peers [NAME ...]

What is there already is left as it is; a change of the pins makes an environment anew. Output goes to ROOT/logs.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from salmonrun.runtime.commands.main import guarded

TORCH = "torch==2.13.0"
INSIDE = Path(__file__).parent / "inside"
GGUF = ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6")  # also makes the models of its forks
NATIVE = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"}
AVX512 = ("AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")


@dataclass(frozen=True)
class Sources:
    """A library that no registry has: a checkout of it is built, and linked into a bridge that a worker loads."""

    repository: str
    options: tuple[str, ...]  # CMake's
    target: str
    bridge: str  # in inside/


@dataclass(frozen=True)
class Environment:
    """What pip is to install."""

    requirements: tuple[str, ...]
    # Distributions built from source for this machine: no wheel of the registry knows its instructions.
    from_source: tuple[str, ...] = ()
    # Requirements of requirements that are removed: a torchvision of another build than the torch beside it cannot be
    # imported, and transformers then cannot either.
    unwanted: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    sources: Sources | None = None


ENVIRONMENTS = {
    "llama_cpp": Environment(GGUF, from_source=GGUF[:1], variables=NATIVE),
    "llama_cpp_without_amx": Environment(
        GGUF,
        from_source=GGUF[:1],
        variables={"CMAKE_ARGS": f"-DGGML_NATIVE=OFF {' '.join(f'-DGGML_{name}=ON' for name in AVX512)}"},
    ),
    "ik_llama": Environment(
        (*GGUF, "cmake==4.4.5"),
        from_source=GGUF[:1],
        variables=NATIVE,
        sources=Sources(
            "https://github.com/ikawrakow/ik_llama.cpp",
            tuple(f"-DLLAMA_{name}=OFF" for name in ("BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "CURL")),
            "llama",
            "ik_llama_bridge.cpp",
        ),
    ),
    "genai": Environment(
        (
            "onnxruntime-genai==0.18.0",
            "onnxruntime==1.31.1",
            "onnx==1.23.2",
            "onnx-ir==1.1.0",
            TORCH,
            "transformers==5.23.0",
        ),
    ),
    "openvino": Environment(
        ("openvino==2026.4.1", "optimum-intel==2.2.0", "nncf==3.4.0", TORCH),
        unwanted=("torchvision",),
    ),
    "torch": Environment(
        (TORCH, "transformers==5.23.0", "bitsandbytes==0.50.2", "accelerate==1.15.0", "ctranslate2==4.8.5"),
    ),
}


class InstallationError(Exception):
    """An environment could not be made; the message is the reason."""


def make(root: Path, name: str, checkouts: Mapping[str, Path]) -> Path:
    """Make an environment unless it is there; its Python. "salmonrun" is the one this runs in.

    Args:
        root: of all environments.
        name: of this one.
        checkouts: of libraries that no registry has, by the environment's name.

    Raises:
        InstallationError: pip or a compiler failed, or a checkout is needed and not given.
    """
    if name == "salmonrun":
        return Path(sys.executable)
    environment, python = ENVIRONMENTS[name], root / "environments" / name / "bin" / "python"
    folder, stamp = python.parents[1], python.parents[1] / "requirements.txt"
    wanted = "".join(f"{line}\n" for line in environment.requirements)
    if environment.sources:
        if name not in checkouts:
            raise InstallationError(f"git clone {environment.sources.repository}, and say --checkout {name}=FOLDER")
        wanted += f"{checkouts[name]} {_commit(checkouts[name])}\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    log = root / "logs" / f"environment-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheels = root / "wheels" / re.sub(r"\W+", "-", " ".join(environment.variables.values())).strip("-")
    wheels.mkdir(parents=True, exist_ok=True)
    pip = (str(python), "-m", "pip")
    with log.open("w") as output:
        _run((sys.executable, "-m", "venv", str(folder)), {}, log, output)
        for requirement in environment.from_source:
            if not _built(wheels, requirement):
                build = ("wheel", "--verbose", "--no-deps", "--no-binary", ":all:", "--wheel-dir", str(wheels))
                _run((*pip, *build, requirement), environment.variables, log, output)
        # What was built is named by its path, so that no wheel of the registry takes its place.
        built = [str(_built(wheels, requirement)) for requirement in environment.from_source]
        install = ("install", "--find-links", str(wheels), *built, *environment.requirements)
        _run((*pip, *install), environment.variables, log, output)
        for requirement in environment.unwanted:
            _run((*pip, "uninstall", "--yes", requirement), environment.variables, log, output)
        if environment.sources:
            _build(environment.sources, checkouts[name], python, log, output)
    stamp.write_text(wanted)
    return python


def _commit(checkout: Path) -> str:
    """
    Raises:
        InstallationError: it is not a checkout.
    """
    done = subprocess.run(("git", "-C", str(checkout), "rev-parse", "HEAD"), capture_output=True, text=True)
    if done.returncode:
        raise InstallationError(f"{checkout} is no checkout: {done.stderr.strip()}")
    return done.stdout.strip()


def _build(sources: Sources, checkout: Path, python: Path, log: Path, output: IO[str]) -> None:
    """lib/lib{bridge}.so of an environment, and commit.txt."""
    folder = python.parents[1]
    build, library = folder / "build", folder / "lib" / "lib"
    cmake, cores = (str(python), "-m", "cmake"), str(os.cpu_count() or 1)
    configure = ("-S", str(checkout), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON")
    shared = [build / "bin", build / "src", build / "ggml" / "src"]
    paths = [part for where in shared for part in (f"-L{where}", f"-Wl,-rpath,{where}")]
    include = (f"-I{checkout / 'include'}", f"-I{checkout / 'ggml' / 'include'}")
    bridge = INSIDE / sources.bridge
    compiled = ("g++", "-O2", "-shared", "-fPIC", *include, str(bridge), *paths, f"-l{sources.target}", "-lggml")
    for command in (
        (*cmake, *configure, "-DGGML_NATIVE=ON", *sources.options),
        (*cmake, "--build", str(build), "--target", sources.target, "--parallel", cores),
        (*compiled, "-o", f"{library}{bridge.stem}.so"),
    ):
        _run(command, {}, log, output)
    (folder / "commit.txt").write_text(f"{_commit(checkout)}\n")


def _built(wheels: Path, requirement: str) -> Path | None:
    name, _, version = requirement.partition("==")
    return next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def _run(command: tuple[str, ...], variables: Mapping[str, str], log: Path, output: IO[str]) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise InstallationError(f"{errors[-1].strip()} (all of it: {log})")


def add_checkout_option(parser: argparse.ArgumentParser) -> None:
    """Where libraries are that no registry has."""
    parser.add_argument(
        "--checkout",
        type=_checkout,
        action="append",
        default=[],
        metavar="ENVIRONMENT=FOLDER",
        help=f"a checkout to build it of: {', '.join(name for name, one in ENVIRONMENTS.items() if one.sources)}",
    )


def _checkout(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in ENVIRONMENTS or not ENVIRONMENTS[name].sources or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ENVIRONMENT=FOLDER of one that is built of a checkout")
    return name, Path(path).absolute()


def main() -> None:
    """Make the environments named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--root", type=Path, default=Path("build/peers"))
    add_checkout_option(parser)
    arguments = parser.parse_args()
    failed = False
    for name in arguments.names or ENVIRONMENTS:
        try:
            print(f"{name}: {make(arguments.root.absolute(), name, dict(arguments.checkout))}")
        except InstallationError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    sys.exit(guarded(main))
