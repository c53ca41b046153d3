"""`salmonrun baseline`: its options, and what it does with them."""

import argparse
import json
import sys
import time
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Answer questions about how long this checkpoint takes in PyTorch, eager: one JSON object a line on "
        "standard input, one on standard output. salmonrun latency --baseline starts and asks it."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--threads", type=int, required=True, help="of PyTorch")
    parser.add_argument("--device", default="cpu", help="of PyTorch's: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument(
        "--llm",
        choices=("fp32", "bf16", "nf4"),
        default="fp32",
        help="what the LLM is in, the rest being float32: nf4 is bitsandbytes' 4 bits beside bfloat16 (default: fp32)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch
    import transformers

    from salmonrun.training.checkpoint import load
    from salmonrun.training.commands.quiet import quiet_transformers
    from salmonrun.training.evaluation.timing import Work, forget_peak, memory_mb, take_time
    from salmonrun.training.finetuning.qlora import hold_in_4_bits

    quiet_transformers()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as in the bundle
    dtype, device = torch.float32 if arguments.llm == "fp32" else torch.bfloat16, torch.device(arguments.device)
    model = load(arguments.checkpoint, verify=False, dtype=dtype).to(device)
    if arguments.llm == "nf4":
        hold_in_4_bits(model.llm, dtype, device)
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
