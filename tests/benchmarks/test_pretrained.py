"""What other projects' packages hand on gets the names that transformers gives the same weights."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from benchmarks.pretrained import renamed

# A CTranslate2 encoder's names of one layer: specs/whisper_spec.py and transformer_spec.py of its source.
LAYER = {
    "self_attention/layer_norm/": ("gamma", "beta"),
    "self_attention/linear_0/": ("weight", "bias"),
    "self_attention/linear_1/": ("weight", "bias"),
    "ffn/layer_norm/": ("gamma", "beta"),
    "ffn/linear_0/": ("weight", "bias"),
    "ffn/linear_1/": ("weight", "bias"),
}
SIZES: dict[str, Any] = {"d_model": 8, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 4}


def test_every_weight_of_an_encoder_is_named() -> None:
    theirs: dict[str, Any] = {"num_heads": np.int8(2), "conv1/weight": np.zeros(()), "conv1/bias": np.zeros(())}
    theirs |= {"conv2/weight": np.zeros(()), "conv2/bias": np.zeros(())}
    theirs |= {"layer_norm/gamma": np.zeros(()), "layer_norm/beta": np.zeros(())}
    theirs |= {"position_encodings/encodings": np.zeros(())}
    for layer in range(2):
        for part, kinds in LAYER.items():
            theirs |= {f"layer_{layer}/{part}{kind}": np.arange(6.0) for kind in kinds}
    named = dict(renamed(theirs))
    assert set(named) == set(WhisperEncoder(WhisperConfig(encoder_layers=2, **SIZES)).state_dict())
    queries, keys, values = (named[f"layers.1.self_attn.{which}_proj.weight"].tolist() for which in "qkv")
    assert (queries, keys, values) == ([0, 1], [2, 3], [4, 5])
