"""Whether 16 bits suffice: encoders and Q-Former with float16 simulated, on audio of every loudness.

    python -m benchmarks.gpu.half CHECKPOINT [--recording FILE]

A GPU is not needed for it, and not used. The plan of tests does it with the demo's checkpoint; the command with any, of
which it exports both bundles. What 16 bits cost at least is what they cost PyTorch, whose modules compute the same with
every value in float16, on the CPU.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import checkpoint, folder
from benchmarks.gpu.page import half_table
from benchmarks.gpu.plan import Plan
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.parity.encoders import bundled, half_inputs, modules_of
from salmonrun.export.parity.half import HalfRun, SimulatedHalf
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle, open_bundle
from salmonrun.runtime.commands.main import guarded
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.reference import noise
from salmonrun.runtime.parity import StageError
from salmonrun.training.checkpoint import Checkpoint, open_checkpoint

SECONDS = 10.0
LIMIT = 2e-3  # relative error (rms) that 16 bits may make, stage by stage
# On what is no speech, where the weights may ask for more than that: so many times what PyTorch is off in float16.
AS_PYTORCH = 1.25
LOUD = 20.0
SPEECH = "speech"
AUDIO: dict[str, Callable[[F32], F32]] = {
    SPEECH: lambda pcm: pcm,
    "loud, beyond full scale": lambda pcm: LOUD * pcm,
    "clipped": lambda pcm: np.clip(LOUD * pcm, -1, 1),
    "quiet": lambda pcm: 1e-3 * pcm,
    "silent": np.zeros_like,
    "noise, beyond full scale": lambda pcm: noise()[: len(pcm)],
}


def main() -> int:
    """Export, measure, print; 1 where 16 bits do not suffice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recording", type=Path, help="speech (default: 10 s that come with the package)")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        exact = export_bundle(arguments.checkpoint, Path(name) / "exact", ExportOptions(encoder="onnx"))
        half = export_bundle(
            arguments.checkpoint, Path(name) / "half", ExportOptions(target="cuda", encoder_precision="fp16")
        )
        source, pcm = open_checkpoint(arguments.checkpoint), Recording.load(arguments.recording).cut(SECONDS)
        found = measure(open_bundle(exact), open_bundle(half), source, pcm)
    print(half_table(found))
    wrong = problems(found)
    print("\n".join(wrong) or f"nothing is too large, and every relative error is within {_bounds()}")
    return 1 if wrong else 0


def safety(plan: Plan) -> dict[str, Any]:
    """By stage and audio: the relative error beside float32, and the largest magnitude in 16 bits."""
    exact, half = (open_bundle(folder(plan, name), verify=False) for name in ("demo-fp32", "demo-nf4"))
    found = measure(exact, half, open_checkpoint(checkpoint(plan, "demo-fp32")), Recording.load(None).cut(SECONDS))
    wrong = problems(found)
    assert not wrong, f"expected nothing too large, and relative errors within {_bounds()}; {'; '.join(wrong)}"
    return found


def problems(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What of `measure`'s is too far off, or too large for 16 bits."""
    return [
        f"{stage}, {audio}: {each}"
        for stage, rows in found.items()
        for audio, each in rows.items()
        if not each["relative"] <= _limit(audio, each["pytorch"]) or each["overflows"]
    ]


def _limit(audio: str, pytorch: float) -> float:
    """Of a relative error, where PyTorch in float16 has this one: not a number where something was too large for it."""
    return LIMIT if audio == SPEECH or not np.isfinite(pytorch) else max(LIMIT, AS_PYTORCH * pytorch)


def _bounds() -> str:
    return f"{LIMIT:g}, or where there is no speech {AS_PYTORCH} times what PyTorch is off in float16"


def measure(exact: Bundle, half: Bundle, source: Checkpoint, pcm: F32) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each stage, given what float32 gives; and of all of them, one behind the other.

    Args:
        exact: a bundle whose encoders are in float32.
        half: the same in float16.
        source: what both were made of.
        pcm: speech [N] at 16 kHz.
    """
    encoder, run = AudioEncoder(exact, "cpu", usable_cores(), "onnx"), bundled(exact, "onnx")
    features = [encoder.features(change(pcm).astype(np.float32)) for change in AUDIO.values()]
    given: dict[str, list[list[F32]]] = {"whisper": [[mel[None]] for mel, _ in features]}
    if exact.manifest.fbank is not None:
        given["audio_encoder"] = [[bank[None]] for _, bank in features if bank is not None]
    pytorch = modules_of(source, torch.float16)
    expected = {part: run(part, arrays) for part, arrays in given.items()}
    halves = {part: _run(half, part, arrays) for part, arrays in given.items()}
    beside = {part: pytorch(part, arrays) for part, arrays in given.items()}
    behind = _joined({part: [each.result for each in runs] for part, runs in halves.items()})
    behind_pytorch = _joined(beside)
    given["qformer"] = _joined(expected)
    expected["qformer"] = run("qformer", given["qformer"])
    halves["qformer"] = _run(half, "qformer", given["qformer"])
    beside["qformer"] = pytorch("qformer", given["qformer"])
    expected["all"], halves["all"] = expected["qformer"], _run(half, "qformer", behind)
    beside["all"] = pytorch("qformer", behind_pytorch)
    return {
        part: {
            audio: {
                "relative": StageError.between(found.result, reference).relative,
                "pytorch": StageError.between(other, reference).relative,
                "largest": found.largest,
                "overflows": found.overflows,
            }
            for audio, found, other, reference in zip(AUDIO, runs, beside[part], expected[part], strict=True)
        }
        for part, runs in halves.items()
    }


def _joined(states: dict[str, list[F32]]) -> list[list[F32]]:
    """What the Q-Former is given in each run: every encoder's states."""
    return [list(each) for each in zip(*states.values(), strict=True)]


def _run(bundle: Bundle, part: str, inputs: list[list[F32]]) -> list[HalfRun]:
    simulated = SimulatedHalf(bundle, part, usable_cores())
    return [simulated.run(**half_inputs(simulated.graph, arrays)) for arrays in inputs]


if __name__ == "__main__":
    sys.exit(guarded(main))
