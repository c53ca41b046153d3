"""The protocols of `salmonrun latency`: beside PyTorch and bitsandbytes on the same device, and many streams."""

import json
from typing import Any

from benchmarks.gpu.models import checkpoint, folder, precision
from benchmarks.gpu.plan import Plan
from salmonrun.__main__ import main as salmonrun

# A random model's tokenizer has a token for each byte: as many make a prompt as a real tokenizer makes of a real one.
SHORT = ("--prompt", "<SpeechHere>?", "--tokens", "12")
STREAMS = (1, 2, 4, 8, 16, 32, 64)
TRIED = (1, 2)  # on a CPU, where it is only tried


def beside_pytorch(plan: Plan, bundle: str) -> dict[str, Any]:
    """Protocols `reference` and `request`, the checkpoint in PyTorch and transformers beside them, in turn."""
    beside = ("--baseline", str(checkpoint(plan, bundle)), "--baseline-llm", precision(bundle).pytorch)
    cases = ("--protocol", "reference,request", "--lengths", "5,10", "--num-beams", "1")
    return _latency(plan, bundle, *cases, *beside, *SHORT)


def load(plan: Plan) -> dict[str, Any]:
    """1 to 64 streams of one engine, as people speak."""
    counts = ",".join(map(str, STREAMS if plan.on_gpu else TRIED))
    paced = ("--utterance-s", "10") if plan.on_gpu else ("--utterance-s", "2")
    return _latency(plan, "sized-nf4", "--protocol", "load", "--concurrency", counts, *paced, *SHORT)


def _latency(plan: Plan, bundle: str, *options: str) -> dict[str, Any]:
    """What the command finds."""
    file = plan.file("latency").with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    limits = ("--device", plan.device, "--time-limit", str(plan.seconds), "--json", str(file))
    status = salmonrun(["latency", str(folder(plan, bundle)), *options, *limits])
    assert status == 0, f"salmonrun latency ended with status {status}"
    found: dict[str, Any] = json.loads(file.read_text())
    file.unlink()
    return found
