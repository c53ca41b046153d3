"""The peers' Python environments, made from the package registry: ROOT/environments/NAME with pinned requirements.

    python benchmarks/peers/environments.py --root build/peers [NAME ...]

What is there already is left as it is; a change of the pins makes an environment anew. Output goes to ROOT/logs.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

TORCH = "torch==2.13.0"


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


ENVIRONMENTS = {
    "llama_cpp": Environment(
        ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),
        from_source=("llama-cpp-python==0.3.36",),
        variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release"},
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


def make(root: Path, name: str) -> Path:
    """Make an environment unless it is there; its Python. "salmonrun" is the one this runs in.

    Raises:
        InstallationError: pip failed.
    """
    if name == "salmonrun":
        return Path(sys.executable)
    environment, python = ENVIRONMENTS[name], root / "environments" / name / "bin" / "python"
    folder, stamp = python.parents[1], python.parents[1] / "requirements.txt"
    wanted = "".join(f"{line}\n" for line in environment.requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    log = root / "logs" / f"environment-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheels = root / "wheels"
    wheels.mkdir(exist_ok=True)
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
    stamp.write_text(wanted)
    return python


def _built(wheels: Path, requirement: str) -> Path | None:
    name, _, version = requirement.partition("==")
    return next(wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def _run(command: tuple[str, ...], variables: Mapping[str, str], log: Path, output: IO[str]) -> None:
    done = subprocess.run(command, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise InstallationError(f"{errors[-1].strip()} (all of it: {log})")


def main() -> None:
    """Make the environments named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--root", type=Path, default=Path("build/peers"))
    arguments = parser.parse_args()
    failed = False
    for name in arguments.names or ENVIRONMENTS:
        try:
            print(f"{name}: {make(arguments.root.absolute(), name)}")
        except InstallationError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
