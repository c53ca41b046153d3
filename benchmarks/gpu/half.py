"""Whether 16 bits suffice: encoders and Q-Former with float16 simulated, on audio of every loudness.

    python -m benchmarks.gpu.half CHECKPOINT [--recording FILE]

A GPU is not needed for it, and not used. The plan of tests does it with the demo's checkpoint; the command with any, of
which it exports both bundles.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.gpu.models import folder
from benchmarks.gpu.page import half_table
from benchmarks.gpu.plan import Plan
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.parity.encoders import bundled, half_inputs
from salmonrun.export.parity.half import HalfRun, SimulatedHalf
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle, open_bundle
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.latency.reference import noise
from salmonrun.runtime.parity import StageError

SECONDS = 10.0
LIMIT = 2e-3  # relative error (rms) that 16 bits may make, stage by stage
LOUD = 20.0
AUDIO: dict[str, Callable[[F32], F32]] = {
    "speech": lambda pcm: pcm,
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
        found = measure(open_bundle(exact), open_bundle(half), Recording.load(arguments.recording).cut(SECONDS))
    print(half_table(found))
    wrong = problems(found)
    print("\n".join(wrong) or f"nothing is too large, and every relative error is at most {LIMIT:g}")
    return 1 if wrong else 0


def safety(plan: Plan) -> dict[str, Any]:
    """By stage and audio: the relative error beside float32, and the largest magnitude in 16 bits."""
    exact, half = (open_bundle(folder(plan, name), verify=False) for name in ("demo-fp32", "demo-nf4"))
    found = measure(exact, half, Recording.load(None).cut(SECONDS))
    wrong = problems(found)
    assert not wrong, f"expected relative errors of at most {LIMIT:g}, and nothing too large; {'; '.join(wrong)}"
    return found


def problems(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """What of `measure`'s is too far off, or too large for 16 bits."""
    return [
        f"{stage}, {audio}: {each}"
        for stage, rows in found.items()
        for audio, each in rows.items()
        if not each["relative"] <= LIMIT or each["overflows"]
    ]


def measure(exact: Bundle, half: Bundle, pcm: F32) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each stage, given what float32 gives; and of all of them, one behind the other.

    Args:
        exact: a bundle whose encoders are in float32.
        half: the same in float16.
        pcm: speech [N] at 16 kHz.
    """
    encoder, run = AudioEncoder(exact, "cpu", usable_cores(), "onnx"), bundled(exact, "onnx")
    features = [encoder.features(change(pcm).astype(np.float32)) for change in AUDIO.values()]
    given: dict[str, list[list[F32]]] = {"whisper": [[mel[None]] for mel, _ in features]}
    if exact.manifest.fbank is not None:
        given["audio_encoder"] = [[bank[None]] for _, bank in features if bank is not None]
    expected = {part: run(part, arrays) for part, arrays in given.items()}
    halves = {part: _run(half, part, arrays) for part, arrays in given.items()}
    given["qformer"] = [list(states) for states in zip(*expected.values(), strict=True)]
    behind = [[each.result for each in runs] for runs in zip(*halves.values(), strict=True)]
    expected["qformer"] = run("qformer", given["qformer"])
    halves["qformer"] = _run(half, "qformer", given["qformer"])
    expected["all"], halves["all"] = expected["qformer"], _run(half, "qformer", behind)
    return {
        part: {
            audio: {
                "relative": StageError.between(found.result, reference).relative,
                "largest": found.largest,
                "overflows": found.overflows,
            }
            for audio, found, reference in zip(AUDIO, runs, expected[part], strict=True)
        }
        for part, runs in halves.items()
    }


def _run(bundle: Bundle, part: str, inputs: list[list[F32]]) -> list[HalfRun]:
    simulated = SimulatedHalf(bundle, part, usable_cores())
    return [simulated.run(**half_inputs(simulated.graph, arrays)) for arrays in inputs]


if __name__ == "__main__":
    raise SystemExit(main())
