"""What the machine can do at most: bytes read from memory a second, and products of matrices.

    measure -> read_bytes_s, fp32_flop_s, bf16_flop_s, int8_flop_s

Reading: each thread takes the maximum of its part of 1 GiB of int32, which no cache holds. Products: PyTorch's of two
matrices of 2048 x 2048 (MKL and oneDNN), int8 ones with int32 sums. The better of two runs each.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
        self.threads = ThreadPoolExecutor(request["threads"])
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
        return {"read_bytes_s": read, "int8_flop_s": int8, **rates}


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(2):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    serve(Limits, {"torch": torch.__version__, "numpy": np.__version__})
