"""The LLM's stage of the gate: what the bundle says, and what PyTorch says after the same, both in bounded memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.parity.pieces import PIECE_BYTES, PiecewiseGraph, cut
from salmonrun.export.progress import Progress
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.decoder import Decoder, prefill, step, verify
from salmonrun.runtime.decoders.native_decoder import NativeDecoder
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.decoders.torch_decoder.decoder import TorchDecoder
from salmonrun.runtime.golden import GOLDEN_TOKENS
from salmonrun.runtime.prompt import PromptIds, prompt_ids
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]
GOLDEN_PROMPT = "Describe the recording."
RUNS = GOLDEN_TOKENS  # of the graph: a prefill and a step for every further token
FURTHER_RUNS = 2  # for other embeddings: a prefill and a verify


@dataclass(frozen=True)
class LlmRun:
    """What the bundle's LLM did."""

    tokens: list[int]  # greedy, after the audio embeddings of the bundle's first encoders
    logits: F32  # [n, V] they were chosen from
    others: list[F32]  # [n, V] of the same tokens after other audio embeddings each
    prompt: PromptIds
    pieces: int  # sessions the graph was run in


def run_llm(bundle: Bundle, audio_embeds: F32, others: Sequence[F32], progress: Progress) -> LlmRun:
    """Decode greedily with the first decoder that the bundle has weights for; its sessions are freed on return.

    Afterwards the same tokens follow on each of the other embeddings.

    PyTorch then scores these tokens in one pass: if its best token after every prefix is the bundle's, its own greedy
    search gives the same tokens.
    """
    ids = prompt_ids(bundle.manifest.prompt, Tokenizer(bundle.path("tokenizer.json")), GOLDEN_PROMPT)
    runs = RUNS + FURTHER_RUNS * len(others)
    with opened(bundle, bundle.manifest.llm.weights.decoders[0], runs, progress) as (decoder, pieces):
        return _run(decoder, ids, audio_embeds, others, pieces)


@contextmanager
def opened(bundle: Bundle, decoder: str, runs: int, progress: Progress) -> Iterator[tuple[Decoder[Any], int]]:
    """A decoder that the bundle has weights for, in bounded memory, and in how many pieces the LLM is.

    Args:
        bundle: the bundle.
        decoder: the name of the decoder.
        runs: of the whole LLM that there will be, for the progress.
        progress: shows them, where there are several pieces.
    """
    if decoder != "onnx":
        yield _whole(bundle, decoder), 1
        return
    pieces = cut(bundle.path(bundle.manifest.graphs["llm"].file), bundle.manifest.llm.layers, PIECE_BYTES)
    with progress.weights("the bundle's tokens", runs * sum(piece.size for piece in pieces)) as counted:
        if len(pieces) == 1:
            yield OnnxDecoder.load(bundle, "cpu", usable_cores()), 1
        else:
            yield OnnxDecoder(bundle, PiecewiseGraph(bundle, pieces, counted)), len(pieces)


def further_logits(bundle: Bundle, name: str, ran: LlmRun, contexts: Sequence[F32]) -> list[F32]:
    """The logits [n, V] of another decoder before each token of a run, after each of some embeddings [N, dim]."""
    decoder = _whole(bundle, name)
    return [_logits(decoder, ran.prompt, audio_embeds, ran.tokens) for audio_embeds in contexts]


def _whole(bundle: Bundle, name: str) -> Decoder[Any]:
    """A decoder but the one on ONNX Runtime, on this machine's CPU."""
    if name == "native":
        return NativeDecoder.load(bundle, usable_cores())
    return TorchDecoder.load(bundle, "cpu", usable_cores())


def _run(decoder: Decoder[Any], ids: PromptIds, audio_embeds: F32, others: Sequence[F32], pieces: int) -> LlmRun:
    before, after = decoder.embed(ids.before), decoder.embed(ids.after)
    tokens, logits = greedy_path(decoder, np.concatenate([before, audio_embeds, after]))
    return LlmRun(tokens, logits, [_logits(decoder, ids, embeds, tokens) for embeds in others], ids, pieces)


def _logits(decoder: Decoder[Any], ids: PromptIds, audio_embeds: F32, tokens: list[int]) -> F32:
    """[n, V] before each of these tokens."""
    prompt = np.concatenate([decoder.embed(ids.before), audio_embeds, decoder.embed(ids.after)])
    with decoder.open(1, len(prompt) + len(tokens)) as (slot,):
        return np.concatenate([prefill(decoder, slot, prompt)[None], verify(decoder, slot, tokens[:-1])])


def greedy_path(decoder: Decoder[Any], inputs_embeds: F32) -> tuple[list[int], F32]:
    """GOLDEN_TOKENS greedy tokens, stop tokens ignored, and the logits [n, V] each was chosen from."""
    with decoder.open(1, len(inputs_embeds) + GOLDEN_TOKENS) as (slot,):
        logits = [prefill(decoder, slot, inputs_embeds)]
        while len(logits) < GOLDEN_TOKENS:
            logits.append(step(decoder, [slot], [int(np.argmax(logits[-1]))])[0])
    return np.argmax(logits, axis=1).tolist(), np.stack(logits)


def reference_logits(source: Checkpoint, ran: LlmRun, audio_embeds: list[F32], progress: Progress) -> list[F32]:
    """PyTorch's logits [n, V] before each token of a run, for each of several audio embeddings [N, dim]."""
    llm = LayeredLlm(source)
    found = []
    with progress.weights("PyTorch's logits", len(audio_embeds) * llm.size) as llm.progress:
        before, after = llm.embed(ran.prompt.before), llm.embed((*ran.prompt.after, *ran.tokens[:-1]))
        for embeds in audio_embeds:
            context = torch.cat([before, torch.from_numpy(embeds), after])
            found.append(llm.logits([context], last=len(ran.tokens))[0].numpy())
    return found
