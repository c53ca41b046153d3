"""What tests of search share: tiny LLMs, and the tokens that our search and transformers' find with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.decoder import F32, Decoder
from salmonrun.runtime.search import FinishReason, StopRules, beam_search, decode_one_by_one

PROMPT = 5  # positions of the prompts of torch models


class Head(nn.Linear):
    """An output layer that makes some tokens likelier, and can have whole numbers for logits: then many tokens tie."""

    scale = 1.0
    whole = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().forward(hidden) * self.scale
        return logits.round() if self.whole else logits


class TorchDecoder:
    """A transformers model behind the Decoder protocol; every step computes the whole sequences again."""

    max_length = 128

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def embed(self, token_ids: Sequence[int]) -> F32:
        return self._model.get_input_embeddings()(torch.tensor(token_ids)).detach().numpy()

    @contextmanager
    def open(self, count: int, capacity: int) -> Iterator[list[list[F32]]]:
        yield [[] for _ in range(count)]

    def length(self, slot: list[F32]) -> int:
        return len(slot)

    def prefill(self, slot: list[F32], inputs_embeds: F32) -> F32:
        slot.extend(inputs_embeds)
        return self._logits([slot])[0, -1]

    def step(self, slots: Sequence[list[F32]], token_ids: Sequence[int]) -> F32:
        for slot, embedding in zip(slots, self.embed(token_ids), strict=True):
            slot.append(embedding)
        return self._logits(slots)[:, -1]

    def verify(self, slot: list[F32], token_ids: Sequence[int], last: int | None = None) -> F32:
        slot.extend(self.embed(token_ids))
        return self._logits([slot])[0, -(last or len(token_ids)) :]

    def truncate(self, slot: list[F32], length: int) -> None:
        del slot[length:]

    def fork(self, source: list[F32], target: list[F32], length: int) -> None:
        target[:] = source[:length]

    def _logits(self, slots: Sequence[list[F32]]) -> F32:
        with torch.no_grad():
            return self._model(inputs_embeds=torch.from_numpy(np.array(slots))).logits.numpy()


def tiny_llama(
    seed: int, vocab_size: int, likely: Sequence[int] = (), scale: float = 1.0, whole: bool = False
) -> nn.Module:
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
        logits = decoder.prefill(slots[0], embeds)
        if config.num_beams > 1:
            return beam_search(decoder, slots, logits, config, stop, lambda: False)
        tokens = []
        search = decode_one_by_one(decoder, slots[0], logits, config, stop, lambda: False)
        while True:
            try:
                tokens.append(next(search))
            except StopIteration as end:
                return tokens, end.value


def their_tokens(
    model: nn.Module, embeds: F32, config: GenerationConfig, stop: StopRules, tokenizer: Any = None
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
