"""Time a bundle beside the PyTorch model it was made from, in one process, turn by turn.

    python benchmarks/against_pytorch.py CHECKPOINT BUNDLE RECORDING [--runs 3] [--tokens 32]

Both use all usable cores, decode greedily, and make the same number of tokens. The last line is JSON.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from runtime import Engine, GenerationConfig
from runtime.session import usable_cores
from training import SalmonnModel, load


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("bundle")
    parser.add_argument("recording")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    engine, model = Engine.load(arguments.bundle), load(arguments.checkpoint, verify=False)
    config = GenerationConfig(max_new_tokens=arguments.tokens, stop_token_ids=())
    rows = []
    for run in range(arguments.runs + 1):  # the first warms both up and is not counted
        row = {"bundle": _bundle(engine, arguments.recording, config), "pytorch": _pytorch(model, arguments, config)}
        rows += [row] if run else []
    summary = {
        side: {key: statistics.median(row[side][key] for row in rows) for key in rows[0][side]} for side in rows[0]
    }
    for key in summary["bundle"]:
        ours, theirs = summary["bundle"][key], summary["pytorch"][key]
        print(f"{key:<10} bundle {ours:8.3f} s   PyTorch {theirs:8.3f} s   {theirs / ours:6.2f}x")
    print(json.dumps({"median": summary, "rows": rows, "machine": platform.platform(), "torch": torch.__version__}))


def _bundle(engine: Engine, recording: str, config: GenerationConfig) -> dict[str, float]:
    timings = engine.generate(recording, task="asr", config=config).timings
    return {"ttft_s": timings.ttft_s, "tpot_s": timings.tpot_s, "total_s": timings.total_s}


@torch.inference_mode()
def _pytorch(model: SalmonnModel, arguments: argparse.Namespace, config: GenerationConfig) -> dict[str, float]:
    started = time.perf_counter()
    prompt = model.prompts.tasks["asr"][0]
    embeds = model.embed_prompt(model.encode(model.load_audio(arguments.recording)), prompt)
    one = GenerationConfig(max_new_tokens=1, stop_token_ids=())
    model.generate_from(embeds, one)
    ttft = time.perf_counter() - started
    started = time.perf_counter()
    model.generate_from(embeds, config)
    decoding = time.perf_counter() - started
    started = time.perf_counter()
    model.generate_from(embeds, one)
    prefill = time.perf_counter() - started
    steps = max(1, config.max_new_tokens - 1)
    return {"ttft_s": ttft, "tpot_s": (decoding - prefill) / steps, "total_s": ttft + decoding - prefill}


if __name__ == "__main__":
    main()
