"""`python -m training baseline`: its options, and what it does with them."""

import argparse
import json
import sys
import time
from typing import Any

import torch
import transformers

from salmonrun.training.checkpoint import load
from salmonrun.training.evaluation.timing import Work, forget_peak, memory_mb, take_time


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    baseline = commands.add_parser(
        "baseline",
        help="the PyTorch side of python -m runtime latency --baseline",
        description="Answer questions about how long this checkpoint takes in PyTorch (float32, eager): one JSON "
        "object a line on standard input, one on standard output. python -m runtime latency --baseline starts and "
        "asks it.",
    )
    baseline.add_argument("checkpoint", metavar="CHECKPOINT")
    baseline.add_argument("--threads", type=int, required=True, help="of PyTorch")
    baseline.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> str:
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = load(arguments.checkpoint, verify=False)
    forget_peak()
    loaded = {"load_s": time.perf_counter() - started, "loaded_mb": memory_mb()["steady_mb"]}
    _say({**loaded, "versions": {"torch": torch.__version__, "transformers": transformers.__version__}})
    for line in sys.stdin:
        question = json.loads(line)
        _say(memory_mb() if "memory" in question else take_time(model, Work(**question)))
    return ""


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
