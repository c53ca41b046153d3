"""Whisper folder to OpenVINO: its encoder in float32, of any length up to the position table, or with 8-bit weights.

python openvino_whisper.py TRANSFORMERS OUT fp32|int8
"""

import sys

import nncf
import openvino
import torch
from any_length import AnyLengthEncoder


@torch.inference_mode()
def main(source: str, out: str, precision: str) -> None:
    """Convert, compress, write."""
    module = AnyLengthEncoder(source, torch.float32)
    n_mels = module.encoder.conv1.in_channels
    model = openvino.convert_model(module, example_input=torch.zeros(1, n_mels, 3000), input=[(1, n_mels, -1)])
    if precision == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, f"{out}/model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
