"""Peak memory of exporting a checkpoint around an LLM of random bfloat16 weights, 7B unless a config says otherwise.

    python benchmarks/export_memory.py FOLDER [--llm-config config.json] [--llm-precision int4] [--keep]

Writes an LLM folder shard by shard, a tiny Whisper and a checkpoint that refers to both into FOLDER, then runs
`salmonrun export` as a process of its own and looks at its memory 20 times a second. FOLDER needs about 19 GB for 7B
and is removed again. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from salmonrun.runtime.commands.main import guarded
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.model.llm import build_llm, published_parameters
from salmonrun.training.starting.assemble import PromptOptions, assemble
from salmonrun.training.starting.new_tokenizer import write_tokenizer
from salmonrun.training.starting.presets import VICUNA_7B

SHARD_BYTES = 2**30


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llm-config", type=Path, help="a transformers config.json (default: Vicuna 7B's)")
    parser.add_argument("--llm-precision", default="int4")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint and the bundle there")
    arguments = parser.parse_args()
    config = json.loads(arguments.llm_config.read_text()) if arguments.llm_config else VICUNA_7B
    config = config | {"bos_token_id": 256, "eos_token_id": 257}  # of the tokenizer that is written beside it
    arguments.folder.mkdir(parents=True)
    try:
        _write_llm(config, arguments.folder / "llm")
        _write_whisper(arguments.folder / "whisper")
        _assemble(arguments.folder)
        result = _export(arguments.folder, arguments.llm_precision)
        result |= {f"{part}_bytes": _size(arguments.folder / part) for part in ("llm", "bundle")}
        print(json.dumps(result))
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder)


def _write_llm(config: dict[str, Any], folder: Path) -> None:
    """Matrices that keep the size of what goes through them; shards of about SHARD_BYTES."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in published_parameters(build_llm(config, None)).items()}
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        scale = shape[-1] ** -0.5
        fresh = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, dtype=torch.bfloat16) * scale
        shard[name] = fresh.to(torch.bfloat16)
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD_BYTES:
            weight_map |= _write_shard(shard, folder, len(set(weight_map.values())))
            shard = {}
    weight_map |= _write_shard(shard, folder, len(set(weight_map.values())))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _write_shard(shard: dict[str, torch.Tensor], folder: Path, number: int) -> dict[str, str]:
    file = f"model-{number:05}.safetensors"
    save_file(shard, folder / file)
    return dict.fromkeys(shard, file)


def _write_whisper(folder: Path) -> None:
    sizes = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    ids = {"vocab_size": 51, "pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50, "decoder_start_token_id": 50}
    transformers.WhisperModel(transformers.WhisperConfig(**sizes, **decoder, **ids)).save_pretrained(folder)


def _assemble(folder: Path) -> None:
    assemble(
        folder / "checkpoint",
        whisper=folder / "whisper",
        audio_encoder=None,
        llm=folder / "llm",
        lora=LoraConfig(r=8, alpha=32.0),
        prompt=PromptOptions(template="USER: {}\nASSISTANT:", end_symbol="</s>"),
    )


def _export(folder: Path, precision: str) -> dict[str, Any]:
    """Run the export; its peak resident memory, and the largest sum of anonymous pages that was seen, in bytes."""
    paths = [str(folder / "checkpoint"), str(folder / "bundle")]
    command = [
        sys.executable,
        "-m",
        "salmonrun",
        "export",
        *paths,
        "--llm-precision",
        precision,
        "--parity-budget",
        "2",
    ]
    print(" ".join(command), flush=True)
    started, anonymous = time.monotonic(), 0
    child = subprocess.Popen(command)
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, _anonymous(child.pid))
        time.sleep(0.05)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "peak_anonymous_bytes": anonymous,
    }


def _anonymous(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(guarded(main))
