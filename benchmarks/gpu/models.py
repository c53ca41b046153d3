"""What the plan runs: bundles of two checkpoints, the demo's, which hears speech, and one of random weights, sized."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.plan import Plan
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.options import EncoderPrecision, LlmPrecision
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.parity import read_parity

DEMO = Path("demo/checkpoint")
Kind = Literal["demo", "sized"]


@dataclass(frozen=True)
class Precision:
    """Of a bundle, and what stands beside it in PyTorch."""

    encoder: EncoderPrecision
    llm: LlmPrecision
    pytorch: Literal["fp32", "bf16", "nf4"]  # of the LLM that transformers computes


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("fp32", "fp32", "bf16"),  # the LLM is bfloat16 on a GPU
    "int4": Precision("fp16", "int4", "nf4"),
    "nf4": Precision("fp16", "nf4", "nf4"),
}


def name(kind: Kind, precision: str) -> str:
    """Of a bundle."""
    return f"{kind}-{precision}"


def checkpoint(plan: Plan, bundle: str) -> Path:
    """What a bundle is made of."""
    return DEMO if bundle.startswith("demo") else plan.out / f"{plan.preset}-checkpoint"


def precision(bundle: str) -> Precision:
    """Of a bundle."""
    return PRECISIONS[bundle.rpartition("-")[2]]


def folder(plan: Plan, bundle: str) -> Path:
    """Where a bundle is; the step that makes it has been done."""
    path = _folder(plan, bundle)
    assert path.is_dir(), f"{path} is not there: the step export-{bundle} makes it"
    return path


def make_checkpoint(plan: Plan) -> dict[str, Any]:
    """Random weights in the size that is measured."""
    path = checkpoint(plan, "sized")
    if not path.exists():
        dtype = ("--dtype", "bfloat16") if plan.preset != "tiny" else ()
        command = (sys.executable, "-m", "salmonrun", "init", str(path), "--preset", plan.preset, *dtype)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
    return {"preset": plan.preset, "bytes": sum(file.stat().st_size for file in path.iterdir())}


def make(plan: Plan, bundle: str) -> dict[str, Any]:
    """A bundle for GPUs, which a CPU runs, too; how near to PyTorch it is by its own account."""
    path, chosen = _folder(plan, bundle), precision(bundle)
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = ExportOptions(
        target="cuda",
        decoder="torch",
        encoder_precision=chosen.encoder,
        llm_precision=chosen.llm,
        # Random weights are moved far by 4 bits.
        parity_budget=ExportOptions.parity_budget if bundle.startswith("demo") else 2.0,
    )
    export_bundle(checkpoint(plan, bundle), path, options)
    parity = read_parity(open_bundle(path, verify=False))
    return {"relative": {stage: error.relative for stage, error in parity.measured.items()}}


def loaded(plan: Plan, bundle: str, device: str) -> Engine:
    """An engine of it."""
    return Engine.load(folder(plan, bundle), device=device, verify=False)


def _folder(plan: Plan, bundle: str) -> Path:
    return plan.out / "bundles" / (bundle if bundle.startswith("demo") else f"{plan.preset}-{bundle}")
