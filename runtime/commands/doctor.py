"""`salmonrun doctor`: its options, and what it prints."""

import argparse
import json
from dataclasses import asdict

MARKS = {"ok": "ok", "missing": "MISSING", "optional": "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Say what this machine can run, and why not the rest, each with its remedy: processor, kernels, ONNX Runtime; "
        "driver, GPUs, libraries of CUDA, PyTorch and what it uses. The exit status is 1 if no bundle can run here."
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from salmonrun.runtime.doctor import examine

    diagnosis = examine()
    runs = {"cpu": diagnosis.runs_on("cpu"), "gpu": diagnosis.runs_on("gpu")}
    if arguments.json:
        print(json.dumps({"runs": runs, "findings": [asdict(finding) for finding in diagnosis.findings]}))
        return 0 if any(runs.values()) else 1
    for part, title in (("cpu", "on the CPU"), ("gpu", "on a GPU")):
        print(f"{title}: {'bundles run' if runs[part] else 'no bundle runs'}")
        for finding in diagnosis.findings:
            if finding.part == part:
                print(f"  {MARKS[finding.state]:8}{finding.name:16}{finding.found}")
                if finding.remedy:
                    print(f"{'':26}-> {finding.remedy}")
    return 0 if any(runs.values()) else 1
