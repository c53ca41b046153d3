"""What the machine can do at most: bytes read from memory a second, and products of matrices.

    measure -> read_bytes_s, fp32_flop_s, bf16_flop_s, int8_flop_s; where a compiler is there: read_huge_bytes_s, and
               what the processor has of vnni_op_s, amx_op_s

Reading: each thread takes the maximum of its part of 1 GiB of int32, which no cache holds. Products: PyTorch's of two
matrices of 2048 x 2048 (MKL and oneDNN), int8 ones with int32 sums. The better of two runs each. limits.cpp has loops
that do nothing but read pages of 2 MiB, or multiply in registers.
"""

import atexit
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from protocol import Json, serve

SIZE = 2**30
SIDE = 2048


class Limits:
    """Buffers for all that is measured."""

    weight_bytes = 0

    def __init__(self, request: Json) -> None:
        torch.set_num_threads(request["threads"])
        self.count = request["threads"]
        self.threads = ThreadPoolExecutor(self.count)
        self.loops = compiled(Path(__file__).with_name("limits.cpp"))
        self.parts = np.array_split(np.ones(SIZE // 4, np.int32), request["threads"])
        self.matrices = {"fp32": torch.rand(SIDE, SIDE), "bf16": torch.rand(SIDE, SIDE).bfloat16()}
        self.bytes = torch.randint(-128, 127, (SIDE, SIDE), dtype=torch.int8)

    def measure(self) -> Json:
        """All, in turn."""
        read = sum(part.nbytes for part in self.parts) / _seconds(lambda: list(self.threads.map(np.max, self.parts)))
        flop = 2.0 * SIDE**3
        rates = {
            f"{name}_flop_s": flop / _seconds(partial(torch.matmul, matrix, matrix))
            for name, matrix in self.matrices.items()
        }
        int8 = flop / _seconds(lambda: torch._int_mm(self.bytes, self.bytes.T))
        loops = subprocess.run([self.loops, str(self.count)], capture_output=True, check=True) if self.loops else None
        own = json.loads(loops.stdout) if loops else {}
        return {"read_bytes_s": read, "int8_flop_s": int8, **rates, **own}


def compiled(source: Path) -> Path | None:
    """A program, for as long as this one runs; None without a compiler."""
    if not shutil.which("g++"):
        return None
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder, source.stem)
    options = ("-std=c++20", "-O3", "-march=native", "-pthread")
    subprocess.run(["g++", *options, str(source), "-o", str(program)], check=True)
    return program


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(2):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    serve(Limits, {"torch": torch.__version__, "numpy": np.__version__})
