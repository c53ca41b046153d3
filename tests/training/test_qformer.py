"""The Q-Former, in PyTorch and as a graph, against the golden cases and against transformers' BLIP-2 Q-Former."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

from salmonrun.export.graphs.builder import WeightFile
from salmonrun.export.graphs.qformer import build_qformer
from salmonrun.runtime.config import PromptConfig, WindowConfig
from salmonrun.training.foreign.names import rename_salmonn
from salmonrun.training.foreign.published import open_salmonn, qformer_config
from salmonrun.training.model.config import ModelConfig, QFormerConfig, WhisperConfig
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.model.qformer import QFormer, slice_windows
from salmonrun.training.tensors import lazy, load_strict, with_prefix

TOLERANCE = 1e-4
GOLDEN_TOLERANCE = 2e-4
F32 = npt.NDArray[np.float32]


def model_config(qformer: QFormerConfig, speech: int, audio: int, llm: int) -> ModelConfig:
    """A config whose neighbours have the widths a Q-Former test needs; nothing else of it matters."""
    return ModelConfig(
        whisper=WhisperConfig(d_model=speech, layers=1, heads=1, ffn=8),
        audio_encoder=BeatsConfig(dim=audio, heads=1, conv_pos_groups=1) if audio else None,
        qformer=qformer,
        llm={"model_type": "llama", "hidden_size": llm, "vocab_size": 10},
        prompt=PromptConfig(),
    )


def filled(config: ModelConfig, tensors: dict[str, Any]) -> QFormer:
    qformer = QFormer(config).eval()
    load_strict(dict(qformer.named_parameters()), tensors, "qformer")
    return qformer


def run_graph(folder: Path, config: ModelConfig, qformer: QFormer, speech: Tensor, audio: Tensor | None) -> F32:
    """[B, N, llm_dim] from the exported graph, row by row: it has batch 1."""
    with WeightFile(folder / "qformer.onnx.data") as weights:
        build_qformer(config.qformer, qformer, weights, config.llm_dim).save(folder / "qformer.onnx")
    session = onnxruntime.InferenceSession(folder / "qformer.onnx", providers=["CPUExecutionProvider"])
    inputs = {"speech": speech.numpy()} | ({} if audio is None else {"audio": audio.numpy()})
    rows = [{name: states[i : i + 1] for name, states in inputs.items()} for i in range(len(speech))]
    return np.concatenate([session.run(None, row)[0] for row in rows])


@torch.inference_mode()
@pytest.mark.parametrize("name", ["q1", "q1_no_beats"])
def test_golden_cases(golden: Path, tmp_path: Path, name: str) -> None:
    folder = golden / "qformer"
    case = json.loads((folder / "cases.json").read_text())[name]
    inputs, expected = np.load(folder / "inputs.npz"), np.load(folder / "expected.npz")[name]
    file = open_salmonn(folder / case["file"])
    assert set(file.leftovers) == {"speech_Qformer.bert.embeddings.position_ids", "optimizer", "scaler", "epoch"}
    found = qformer_config(file)
    assert found == QFormerConfig(
        dim=case["hidden"], layers=case["layers"], heads=case["heads"], ffn=case["ffn"], window=WindowConfig(17, 17, 1)
    )
    config = model_config(found, case["whisper"], case["beats"], case["llm"])
    qformer = filled(config, with_prefix(file.tensors, "qformer."))
    speech = torch.from_numpy(inputs["whisper"].astype(np.float32))
    audio = torch.from_numpy(inputs["beats"][:, : case["beats_tokens"]].astype(np.float32)) if case["beats"] else None
    got = qformer(speech, audio).numpy()
    assert got.shape == tuple(case["shape"])
    assert np.abs(got - expected).max() <= GOLDEN_TOLERANCE
    assert np.abs(run_graph(tmp_path, config, qformer, speech, audio) - expected).max() <= GOLDEN_TOLERANCE


class Reference(nn.Module):
    """The published data path around transformers' Q-Former."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        own, speech, audio = (
            config.qformer,
            config.whisper.d_model,
            config.audio_encoder.dim if config.audio_encoder else 0,
        )
        self.window = own.window
        self.ln_speech = nn.LayerNorm(speech)
        self.ln_audio = nn.LayerNorm(audio) if audio else None
        self.speech_query_tokens = nn.Parameter(torch.empty(1, own.window.num_queries, own.dim))
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=own.dim,
                num_hidden_layers=own.layers,
                num_attention_heads=own.heads,
                intermediate_size=own.ffn,
                encoder_hidden_size=speech + audio,
                cross_attention_frequency=1,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        self.speech_llama_proj = nn.Linear(own.dim, config.llm_dim)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                norm = parameter.ndim == 1 and name.endswith("weight")
                fan = 1 if parameter.ndim == 1 else parameter.shape[-1]
                parameter.copy_(float(norm) + torch.randn_like(parameter) * (0.3 if norm else fan**-0.5))
        self.eval()

    def forward(self, speech: Tensor, audio: Tensor | None) -> Tensor:
        fused = self.ln_speech(speech)
        if self.ln_audio is not None and audio is not None:
            audio = self.ln_audio(audio)
            if audio.shape[1] < fused.shape[1]:
                audio = F.pad(audio, (0, 0, 0, fused.shape[1] - audio.shape[1]))
            elif audio.shape[1] > fused.shape[1]:
                fused = F.pad(fused, (0, 0, 0, audio.shape[1] - fused.shape[1]))
            fused = torch.cat((fused, audio), dim=-1)
        batch = fused.shape[0]
        windows = unfolded(fused, self.window).flatten(0, 1)
        queries = self.speech_query_tokens.expand(len(windows), -1, -1)
        states = self.qformer(query_embeds=queries, encoder_hidden_states=windows).last_hidden_state
        embeds: Tensor = self.speech_llama_proj(states)
        return embeds.reshape(batch, -1, embeds.shape[-1])

    def published_state(self) -> dict[str, Tensor]:
        """Its tensors under the names of a SALMONN .pth."""
        bert = "speech_Qformer.bert."
        renamed = {}
        for name, value in self.state_dict().items():
            name = name.replace("qformer.layernorm.", f"{bert}embeddings.LayerNorm.")
            name = name.replace("qformer.encoder.", f"{bert}encoder.").replace("ttention.attention.", "ttention.self.")
            renamed[name] = value
        return renamed


def unfolded(states: Tensor, window: WindowConfig) -> Tensor:
    """The published window slicing: F.unfold over [B, D, 1, T], to [B, L, frames, D]."""
    batch, _, width = states.shape
    kernel, stride = (1, window.frames), (1, window.stride)
    columns = F.unfold(states.transpose(1, 2).unsqueeze(2), kernel_size=kernel, stride=stride, dilation=1, padding=0)
    return columns.view(batch, width, window.frames, -1).permute(0, 3, 2, 1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("window", "speech_frames", "audio_tokens"),
    [
        (WindowConfig(17, 17, 1), 100, 96),  # adjoining, BEATs a little shorter; a tail is dropped
        (WindowConfig(17, 17, 2), 68, 40),
        (WindowConfig(12, 5, 1), 61, 8),  # overlapping, most windows see zeros for BEATs
        (WindowConfig(12, 5, 2), 61, 96),  # BEATs longer than Whisper: zeros for Whisper
        (WindowConfig(8, 13, 1), 60, 72),  # gaps
        (WindowConfig(8, 13, 3), 60, 56),
        (WindowConfig(25, 25, 1), 25, 24),  # a single window
        (WindowConfig(1, 1, 1), 9, 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_beats", [True, False], ids=["beats", "no beats"])
def test_equals_the_published_path_around_transformers(
    tmp_path: Path, window: WindowConfig, speech_frames: int, audio_tokens: int, with_beats: bool
) -> None:
    layers = 1 + window.num_queries  # 2, 3 and 4
    config = model_config(QFormerConfig(dim=48, layers=layers, heads=3, ffn=40, window=window), 32, 24 * with_beats, 56)
    reference = Reference(config, seed=window.frames)
    published = reference.published_state()
    tensors, _ = rename_salmonn(lazy(published), tmp_path)
    assert len(tensors) == len(published)
    # The published query has a leading batch axis of 1, which a file's conversion takes off.
    qformer = filled(config, with_prefix(tensors, "qformer."))
    speech = torch.randn(2, speech_frames, 32) * 2 + 0.3
    audio = torch.randn(2, audio_tokens, 24) * 0.5 - 0.2 if with_beats else None
    expected = reference(speech, audio)
    total = max(speech_frames, audio_tokens) if with_beats else speech_frames
    assert expected.shape == (2, window.count(total) * window.num_queries, 56)
    got = qformer(speech, audio)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= TOLERANCE
    graph = run_graph(tmp_path, config, qformer, speech, audio)
    assert graph.shape == expected.shape
    assert np.abs(graph - expected.numpy()).max() <= TOLERANCE


@torch.inference_mode()
def test_a_padded_row_equals_the_row_alone() -> None:
    config = model_config(QFormerConfig(dim=48, layers=2, heads=3, ffn=40), 32, 24, 56)
    qformer = filled(
        config, with_prefix(rename_salmonn(lazy(Reference(config, 0).published_state()), Path())[0], "qformer.")
    )
    speech, audio = torch.randn(2, 100, 32), torch.randn(2, 96, 24)
    valid = torch.ones(2, 96, dtype=torch.bool)
    valid[0, 24:] = False
    both = qformer(speech, audio, valid)
    assert (both[0] - qformer(speech[:1], audio[:1, :24])[0]).abs().max() <= 1e-5
    assert (both[1] - qformer(speech[1:], audio[1:])[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("window", [WindowConfig(17, 17), WindowConfig(5, 3), WindowConfig(4, 7), WindowConfig(1, 1)])
@pytest.mark.parametrize("frames", [17, 40, 100])
def test_windows_equal_the_published_unfold(window: WindowConfig, frames: int) -> None:
    states = torch.randn(2, frames, 6)
    got = slice_windows(states, window)
    assert torch.equal(got, unfolded(states, window))
    assert got.shape == (2, window.count(frames), window.frames, 6)
