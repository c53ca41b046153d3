"""`salmonrun baseline`: its options, and what it does with them."""

import argparse
import json
import sys
import time
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer questions about how long this checkpoint takes in PyTorch (float32, eager): one JSON object a line on "
        "standard input, one on standard output. salmonrun latency --baseline starts and asks it."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--threads", type=int, required=True, help="of PyTorch")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch
    import transformers

    from salmonrun.training.checkpoint import load
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.evaluation.timing import Work, forget_peak, memory_mb, take_time

    quiet_transformers()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = load(arguments.checkpoint, verify=False)
    forget_peak()
    loaded = {"load_s": time.perf_counter() - started, "loaded_mb": memory_mb()["steady_mb"]}
    _say({**loaded, "versions": {"torch": torch.__version__, "transformers": transformers.__version__}})
    for line in sys.stdin:
        question = json.loads(line)
        _say(memory_mb() if "memory" in question else take_time(model, Work(**question)))
    return 0


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
