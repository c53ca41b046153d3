"""What tests of search share: tiny LLMs, and the tokens that our search and transformers' find with them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.beam_search import beam_search
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import Chunk, Decoder, DecoderReport, Lease, answered, begin
from salmonrun.runtime.rounds import run_together
from salmonrun.runtime.search import FinishReason, StopRules, decode

PROMPT = 5  # positions of the prompts of torch models


class Head(nn.Linear):
    """An output layer that makes some tokens likelier, and can have whole numbers for logits: then many tokens tie."""

    scale = 1.0
    whole = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().forward(hidden) * self.scale
        return logits.round() if self.whole else logits


Sequences = list[F32]  # the embeddings of one


class TorchDecoder:
    """A transformers model behind the Decoder protocol; every round computes the whole sequences again."""

    max_length = 128

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._model = model

    def embed(self, token_ids: Sequence[int], /) -> F32:
        return self._model.get_input_embeddings()(torch.tensor(token_ids)).detach().numpy()

    def open(self, count: int, capacity: int) -> Lease[Sequences]:
        return Lease([[] for _ in range(count)], lambda slots: None)

    def forward(self, chunks: Sequence[Chunk[Sequences]]) -> list[F32]:
        begin(self, chunks)
        logits = []
        for chunk in chunks:
            chunk.slot.extend(chunk.inputs if isinstance(chunk.inputs, np.ndarray) else self.embed(chunk.inputs))
            with torch.no_grad():
                rows = self._model(inputs_embeds=torch.from_numpy(np.array(chunk.slot))[None]).logits[0].numpy()
            logits.append(rows[len(rows) - chunk.wanted :])
        return answered(chunks, logits)

    def length(self, slot: Sequences) -> int:
        return len(slot)

    def truncate(self, slot: Sequences, length: int) -> None:
        del slot[length:]

    def fork(self, source: Sequences, target: Sequences, length: int) -> None:
        target[:] = source[:length]

    def describe(self) -> DecoderReport:
        return DecoderReport("torch", "cpu", (), 1)


def tiny_llama(
    seed: int, vocab_size: int, likely: Sequence[int] = (), scale: float = 1.0, whole: bool = False
) -> transformers.PreTrainedModel:
    """Random. Logits have a spread of about 2.3 * `scale`, those of `likely` tokens are up to 6 larger."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    head = Head(32, vocab_size)
    head.weight, head.scale, head.whole = model.lm_head.weight, scale, whole
    with torch.no_grad():
        head.bias.zero_()
        for token in likely:
            head.bias[token] = 6 * torch.rand(())
    model.lm_head = head
    return model


def prompt_embeds(seed: int) -> F32:
    return np.random.default_rng(seed).normal(0, 0.4, (PROMPT, 32)).astype(np.float32)


def our_tokens(
    decoder: Decoder[Any], embeds: F32, config: GenerationConfig, stop: StopRules
) -> tuple[list[int], FinishReason]:
    with decoder.open(config.num_beams, len(embeds) + config.max_new_tokens) as slots:
        prompt = Chunk(slots[0], embeds)
        search = (
            beam_search(prompt, slots, len(embeds), config, stop)
            if config.num_beams > 1
            else decode(prompt, config, stop)
        )
        (answer,) = run_together(decoder, [search])
    return answer.tokens, answer.finish_reason


def their_tokens(
    model: transformers.PreTrainedModel, embeds: F32, config: GenerationConfig, stop: StopRules, tokenizer: Any = None
) -> list[int]:
    """What transformers generates, without the padding after the end."""
    stop_ids = sorted(stop.token_ids)
    inputs = torch.from_numpy(embeds)[None]
    generated = model.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        min_new_tokens=config.min_new_tokens or None,
        num_beams=config.num_beams,
        length_penalty=config.length_penalty,
        early_stopping=config.early_stopping,
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram_size,
        eos_token_id=stop_ids or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        **({"stop_strings": list(stop.strings), "tokenizer": tokenizer} if stop.strings else {}),
    )[0].tolist()
    for end in range(1, len(generated) + 1):
        if stop.reached(generated[:end]):
            return generated[:end]
    return generated
