"""`salmonrun check`: its options, and what it does with them."""

import argparse
import json
from dataclasses import asdict

from salmonrun.runtime.commands.options import add_engine_arguments, check_engine_arguments, load_engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Verify every file's hash, say what the bundle was checked for when it was exported, then replay its golden "
        "run and compare logits and tokens."
    )
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.set_defaults(run=_run, settings=check_engine_arguments)


def _run(arguments: argparse.Namespace, _: None) -> int:
    """Check; 1 if this machine computes something else."""
    from salmonrun.runtime.golden import check
    from salmonrun.runtime.parity import read_parity

    engine = load_engine(arguments)
    parity, report = read_parity(engine.bundle), check(engine)
    if arguments.json:
        found = {**asdict(report), "passed": report.passed, "exported": asdict(parity)}
        print(json.dumps({**found, "engine": asdict(engine.report())}))
        return 0 if report.passed else 1
    print(f"files     every size and sha256 as exported ({len(engine.bundle.manifest.files)} files)")
    print(f"weights   {', '.join(f'{part} {precision}' for part, precision in engine.report().precision.items())}")
    print(f"exported  {parity}")
    for tokens in parity.on_speech:
        print(f"speech    {tokens}")
    print(f"logits    largest difference {report.logits_difference:.2e}, allowed {report.tolerance:.2e}")
    print(
        f"tokens    {report.tokens - len(report.differing)} of {report.tokens} as exported"
        f" ({report.near_ties} near-ties may differ)"
    )
    print("passed" if report.passed else "FAILED: this machine does not compute what the exporter did")
    return 0 if report.passed else 1
