"""Instruction sets of processors that this one is not, in an emulator: make emulate."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "kernels" / "cpu"
COMPARE = Path(__file__).with_name("compare_instruction_sets.cpp")
MATRIX_UNIT = COMPARE.with_name("matrix_unit_in_software.h")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-w"]
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-static"]


def compiled(compiler: str, folder: Path, files: dict[str, list[str]], flags_of_all: Sequence[str] = ()) -> Path:
    """The comparison, built of the files of kernels/cpu with their flags."""
    # A compiler that a sanitizer is loaded into fails for what it does not give back itself.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    objects = []
    always: dict[str, list[str]] = {"instruction_sets.cpp": [], "self_test.cpp": [], "isa/portable.cpp": []}
    for file, flags in {**always, **files, str(COMPARE): []}.items():
        objects.append(folder / f"{Path(file).stem}.o")
        command = [
            compiler,
            *FLAGS,
            *flags_of_all,
            *flags,
            f"-I{SOURCES}",
            "-c",
            str(SOURCES / file),
            "-o",
            str(objects[-1]),
        ]
        subprocess.run(command, check=True, env=environment)
    command = [compiler, "-static", *map(str, objects), "-o", str(folder / "compare")]
    subprocess.run(command, check=True, env=environment)
    return folder / "compare"


@pytest.mark.emulate
@pytest.mark.timeout(900)
def test_neon_computes_what_portable_does(tmp_path: Path) -> None:
    compiler = shutil.which("g++" if platform.machine() == "aarch64" else "aarch64-linux-gnu-g++")
    emulator = [] if platform.machine() == "aarch64" else [shutil.which("qemu-aarch64-static") or "", "-cpu", "max"]
    if compiler is None or "" in emulator:
        pytest.skip("no compiler for AArch64, or no qemu-user: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    program = compiled(compiler, tmp_path, {"isa/neon.cpp": ["-march=armv8.2-a+dotprod"]})
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("neon: "), done.stdout


@pytest.fixture
def avx512_vnni() -> None:
    """Skips where this processor has none."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    if not {"avx512vl", "avx512_vnni"} <= flags or shutil.which("g++") is None:
        pytest.skip("this processor has no VNNI of AVX-512, or there is no g++")


@pytest.mark.emulate
@pytest.mark.usefixtures("avx512_vnni")
def test_avx2_vnni_computes_what_portable_does(tmp_path: Path) -> None:
    """With the same instruction in AVX-512's encoding, where that is at hand: no emulator has this one."""
    encoding = ["-D_mm256_dpbusd_avx_epi32=_mm256_dpbusd_epi32", "-mavx512vl", "-mavx512vnni"]
    files = {"isa/avx2.cpp": AVX2, "isa/avx512_vnni.cpp": AVX512, "isa/avx2_vnni.cpp": [*AVX2, *encoding]}
    program = compiled("g++", tmp_path, files, ["-DCOMPARE_ALSO=avx2_vnni_operations"])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert {line.split(":")[0] for line in done.stdout.splitlines()} >= {"avx2", "avx2_vnni", "avx512_vnni"}


@pytest.mark.tools
@pytest.mark.usefixtures("avx512_vnni")
def test_amx_computes_what_portable_does_with_a_unit_in_software(tmp_path: Path) -> None:
    """What goes into the unit and out of it; no emulator that can be had as a package has one."""
    own = [*AVX512, "-include", str(MATRIX_UNIT)]
    files = {"isa/avx2.cpp": AVX2, "isa/avx512_vnni.cpp": AVX512, "isa/amx.cpp": own}
    program = compiled("g++", tmp_path, files, ["-DCOMPARE_ALSO=amx_operations"])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "amx: " in done.stdout
