"""Kernels compiled for GPUs that need not be there."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from salmonrun.kernels.gpu.attention import attend
from salmonrun.kernels.gpu.launch import Launch, Launcher
from salmonrun.kernels.gpu.matrix import Kind, Matrix
from salmonrun.kernels.gpu.norm import add_norm
from salmonrun.kernels.gpu.products import attended_product, gated_product, normed_product, product
from salmonrun.kernels.gpu.window_attention import attend_windows

CAPABILITIES = (80, 90)  # A100, H100
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may have (CUDA C++ Programming Guide)
WARP = 32  # threads
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_DIVISIBLE = 16  # what Triton wants to know of addresses and sizes
BLOCK = 64  # inputs that share a scale, as bitsandbytes has them
EPS = 1e-5
LENGTH, PAGE, PAGES = 4096, 256, 64  # positions of a sequence and of a page, pages of the pool


@dataclass(frozen=True)
class Sizes:
    """Of an LLM."""

    name: str
    dim: int
    width: int  # of SwiGLU
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    head_norms: bool = False
    bias: bool = False  # of queries, keys and values
    window: int | None = None


# A small one, one whose shape is no power of two, and one with all that a layer may have.
LLMS = (
    Sizes("Llama-3.2-1B", 2048, 8192, 128256, 32, 8, 64),
    Sizes("SmolLM2-135M", 576, 1536, 49152, 9, 3, 64),
    Sizes("a Qwen of 8B", 4096, 12288, 151936, 32, 8, 128, head_norms=True, bias=True, window=4096),
)


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a multiprocessor."""

    kernel: str
    capability: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread, stored
    shared: int  # bytes of a program
    size: int  # bytes of the cubin


def launches_of(llm: Sizes, kind: Kind, dtype: torch.dtype, rows: int) -> Iterator[tuple[str, Launch]]:
    """The launches of a step, named; nothing is computed."""
    made: list[Launch] = []
    names = ("norm, qkv", "attention", "parts, o", "norm, gate and up, SwiGLU", "down", "sum, norm", "head")
    _step(llm, kind, dtype, rows, made.append)
    yield from zip(names, made, strict=True)


def window_launch(dtype: torch.dtype) -> Launch:
    """SALMONN's Q-Former: 12 heads of one query, windows of 17 frames of Whisper and BEATs."""
    made: list[Launch] = []
    attend_windows(_empty(1500, 2048, dtype=dtype), _empty(12, 2048, dtype=dtype), 17, 17, made.append)
    return made[0]


def compiled(launch: Launch, capability: int) -> Compiled:
    """Compile a launch's kernel for a compute capability, with ptxas as it comes with Triton."""
    kernel = launch.kernel
    constants = {
        param.name: launch.arguments[param.name]
        for param in kernel.params
        if param.is_constexpr or launch.arguments[param.name] is None
    }
    signature = {
        name: "constexpr" if name in constants else _type_of(launch.arguments[name]) for name in kernel.arg_names
    }
    divisible = {
        (place,): [["tt.divisibility", _DIVISIBLE]]
        for place, name in enumerate(kernel.arg_names)
        if name not in constants and _is_divisible(launch.arguments[name])
    }
    source = ASTSource(kernel, signature, constants, divisible)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    made = triton.compile(source, target=GPUTarget("cuda", capability, WARP), options=options)
    registers, spilled = _usage(made.asm["ptx"], capability)
    return Compiled(kernel.__name__, capability, registers, spilled, made.metadata.shared, len(made.asm["cubin"]))


def _step(llm: Sizes, kind: Kind, dtype: torch.dtype, rows: int, run: Launcher) -> None:
    """A layer behind another, and what is behind the last one."""
    x, norm = _empty(rows, llm.dim, dtype=dtype), _empty(llm.dim, dtype=dtype)
    head_norms = (_empty(llm.head_dim, dtype=dtype), _empty(llm.head_dim, dtype=dtype)) if llm.head_norms else None
    turns = _empty(LENGTH, llm.head_dim // 2), _empty(LENGTH, llm.head_dim // 2)
    page = PAGES, PAGE, llm.kv_heads, llm.head_dim
    cached = _empty(*page, dtype=dtype), _empty(*page, dtype=dtype)
    places = _empty(rows, 1, dtype=torch.int64), _empty(rows, dtype=torch.int64), _empty(rows, 16, dtype=torch.int32)
    attended, projected = llm.heads * llm.head_dim, (llm.heads + 2 * llm.kv_heads) * llm.head_dim

    x, qkv = normed_product(
        x, _empty(1, rows, llm.dim), norm, EPS, _matrix(projected, llm.dim, kind, dtype, llm.bias), run
    )
    states, weights = attend(qkv, head_norms, turns, cached, places, llm.window, EPS, run)
    parts = attended_product(states, weights, dtype, _matrix(llm.dim, attended, kind, dtype), run)
    x, hidden = gated_product(x, parts, norm, EPS, _matrix(2 * llm.width, llm.dim, kind, dtype), run)
    parts = product(hidden, _matrix(llm.dim, llm.width, kind, dtype), run)
    _, normed = add_norm(x, parts, norm, EPS, run)
    product(normed, _matrix(llm.vocab, llm.dim, "float" if kind in ("float", "nf4") else "int8", dtype), run)


def _matrix(rows: int, columns: int, kind: Kind, dtype: torch.dtype, bias: bool = False) -> Matrix:
    added = _empty(rows, dtype=dtype) if bias else None
    if kind == "float":
        return Matrix(kind, _empty(rows, columns, dtype=dtype), None, columns, added)
    blocks = -(-columns // BLOCK)
    values = _empty(rows, blocks, BLOCK if kind == "int8" else BLOCK // 2, dtype=torch.uint8)
    return Matrix(kind, values, _empty(rows, blocks), columns, added)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _is_divisible(value: object) -> bool:
    """PyTorch's tensors begin where they must."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % _DIVISIBLE == 0)


def _usage(ptx: str, capability: int) -> tuple[int, int]:
    """Registers of a thread and bytes that it spills, as ptxas counts them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = re.search(r"\.target (\S+?)[,\s]", ptx)
        assert target is not None, "PTX names its target"
        command = [get_ptxas(capability).path, "-v", "--gpu-name", target[1], str(source), "-o", f"{folder}/cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None, f"ptxas says how many registers it used, not {said!r}"
    return int(registers[1]), int(spilled[1]) if spilled else 0
