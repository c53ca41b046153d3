"""SalmonnModel: the whole model in PyTorch, and the reference that every bundle is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from salmonrun.runtime.audio import Audio, AudioSource, load_audio
from salmonrun.runtime.config import Block, GenerationConfig, PromptConfig
from salmonrun.runtime.cut_text import cut_text
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.prompt import PromptIds, choose_prompt, end_texts, prompt_ids
from salmonrun.runtime.repetition import ends_in_repetition
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.model.blocks import valid_positions
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.features import FeatureBatch, Features, StateBatch, collate, count_tokens
from salmonrun.training.model.labels import IGNORE, pad_labels, summed_loss
from salmonrun.training.model.llm import training_attention
from salmonrun.training.model.qformer import QFormer
from salmonrun.training.model.whisper import WhisperEncoder


class SalmonnModel(nn.Module):
    """Whisper and an audio encoder, fused, read by a window-level Q-Former into the embeddings of an LLM."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        whisper: WhisperEncoder,
        audio_encoder: nn.Module | None,
        qformer: QFormer,
        llm: nn.Module,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.whisper = whisper
        self.audio_encoder = audio_encoder
        self.qformer = qformer
        self.llm = llm
        self.eval()

    @property
    def prompts(self) -> PromptConfig:
        """Template, task prompts and special ids."""
        return self.config.prompt

    def load_audio(self, source: AudioSource | Audio, sample_rate: int | None = None) -> Audio:
        """Read audio by this model's policy."""
        return load_audio(source, sample_rate, min_s=self.config.audio.min_s, max_s=self.config.audio.max_s)

    def encode(self, audio: Audio, block: Block | None = None) -> Tensor:
        """Audio embeddings of one recording, encoded at once or in blocks: [1, N, llm_dim]."""
        return self.encode_batch([audio], block)[0]

    def encode_batch(self, audios: Sequence[Audio], block: Block | None = None) -> list[Tensor]:
        """Audio embeddings of several recordings, each [1, N, llm_dim], each as if it were alone."""
        return self.fuse(self.states(collate([self.features(audio) for audio in audios]), block))

    def features(self, audio: Audio) -> Features:
        """Spectrograms of one recording."""
        return self.config.front_end.features(audio)

    def states(self, features: FeatureBatch | StateBatch, block: Block | None = None) -> StateBatch:
        """Encoder states on the model's device, computed if they are not there already."""
        on_device = features.to(self.device)
        return on_device if isinstance(on_device, StateBatch) else self.encode_states(on_device, block)

    def encode_speech(self, batch: FeatureBatch, block: Block | None = None) -> StateBatch:
        """States of Whisper alone."""
        return StateBatch(self.whisper(batch.log_mel, batch.frames, block), batch.frames, None, batch.fbank_frames)

    def encode_states(self, batch: FeatureBatch, block: Block | None = None) -> StateBatch:
        """States of both encoders."""
        states = self.encode_speech(batch, block)
        config = self.config.audio_encoder
        if self.audio_encoder is None or config is None or batch.fbank is None:
            return states
        audio = self.audio_encoder(batch.fbank, batch.fbank_frames, block)
        return replace(states, audio=audio, audio_tokens=count_tokens(batch.fbank_frames, config.fbank))

    def fuse(self, states: StateBatch) -> list[Tensor]:
        """Audio embeddings of each row, [1, N, llm_dim]."""
        if states.audio is None:
            embeds = self.qformer(states.speech)
        else:
            audio_valid = valid_positions(states.audio_tokens, states.audio.shape[1])
            speech_valid = valid_positions(states.frames, states.speech.shape[1])
            embeds = self.qformer(states.speech, states.audio, audio_valid, speech_valid)
        window = self.config.qformer.window
        longer = states.frames if states.audio is None else torch.maximum(states.frames, states.audio_tokens)
        counts = [window.count(frames) * window.num_queries for frames in longer.tolist()]
        return [row[None, :count] for row, count in zip(embeds, counts, strict=True)]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.qformer.query_tokens.device

    def embed_tokens(self, ids: Sequence[int]) -> Tensor:
        """The LLM's input embeddings of tokens: [1, len(ids), llm_dim]."""
        return self._embeddings(torch.tensor([list(ids)], dtype=torch.long, device=self.device))

    @property
    def _embeddings(self) -> nn.Module:
        return cast(PreTrainedModel, self.llm).get_input_embeddings()

    def embed_prompt(self, audio_embeds: Tensor, prompt: str) -> Tensor:
        """Prompt text around the audio embeddings [1, N, llm_dim]: [1, P, llm_dim]."""
        return self.wrap(audio_embeds, prompt_ids(self.prompts, self.tokenizer, prompt), ())[None]

    def wrap(self, audio_embeds: Tensor, prompt: PromptIds, target: Sequence[int]) -> Tensor:
        """Embeddings of the prompt around the audio's [1, N, llm_dim], and of an answer behind it: [P, llm_dim]."""
        before, after = self.embed_tokens(prompt.before)[0], self.embed_tokens((*prompt.after, *target))[0]
        return torch.cat([before, audio_embeds[0].to(before.dtype), after])

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, cut where the end symbol is text."""
        return cut_text(self.tokenizer.decode(token_ids), end_texts(self.prompts, self.tokenizer))

    @torch.inference_mode()
    def generate(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        block: Block | None = None,
    ) -> list[int]:
        """Token ids of the answer, by transformers' own greedy or beam search. The reference; slow."""
        text = choose_prompt(self.prompts, task, prompt, question)
        embeds = self.embed_prompt(self.encode(self.load_audio(audio, sample_rate), block), text)
        return self.generate_from(embeds, config or GenerationConfig())

    @torch.inference_mode()
    def generate_from(self, inputs_embeds: Tensor, config: GenerationConfig) -> list[int]:
        """Search from embeddings [1, P, llm_dim]."""
        if config.stop_strings or config.do_sample:
            raise ConfigError("the PyTorch reference decodes greedily or with beams, without stop_strings")
        stops = self.prompts.stop_token_ids if config.stop_token_ids is None else config.stop_token_ids
        ids = (
            cast(PreTrainedModel, self.llm)
            .generate(
                inputs_embeds=inputs_embeds,
                attention_mask=torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device),
                max_new_tokens=config.max_new_tokens,
                min_new_tokens=config.min_new_tokens or None,
                num_beams=config.num_beams,
                length_penalty=config.length_penalty,
                early_stopping=config.early_stopping,
                repetition_penalty=config.repetition_penalty,
                no_repeat_ngram_size=config.no_repeat_ngram_size,
                do_sample=False,
                eos_token_id=list(stops) or None,
                pad_token_id=stops[0] if stops else 0,
                logits_processor=LogitsProcessorList(self._unsure_of_nothing(config.nothing_threshold)),
                stopping_criteria=StoppingCriteriaList([_repetition(config.min_new_tokens)] * config.stop_repetition),
            )[0]
            .tolist()
        )
        # Beams that ended earlier are padded; what follows the end is padding.
        for end in range(1, len(ids)):
            repeats = config.stop_repetition and end >= config.min_new_tokens and ends_in_repetition(ids[:end])
            if ids[end - 1] in stops or repeats:
                return ids[:end]
        return ids

    def _unsure_of_nothing(self, threshold: float) -> list[LogitsProcessor]:
        """The rule of `runtime.logits.process`, for transformers."""
        nothing = self.tokenizer.encode(self.prompts.nothing)
        return [_BanWhatIsUnsure(nothing[0], threshold)] if nothing else []

    @torch.inference_mode()
    def logprobs(self, inputs_embeds: Tensor, token_ids: Sequence[int]) -> list[float]:
        """Log probability of each token of an answer behind embeddings [1, P, llm_dim], by a pass over all of it."""
        if not token_ids:
            return []
        embeds = torch.cat([inputs_embeds, self.embed_tokens(token_ids[:-1]).to(inputs_embeds.dtype)], dim=1)
        output = cast(Any, self.llm)(inputs_embeds=embeds, logits_to_keep=len(token_ids))
        chosen = torch.tensor(token_ids, device=self.device)[:, None]
        logprobs: list[float] = output.logits[0].float().log_softmax(dim=-1).gather(1, chosen)[:, 0].tolist()
        return logprobs

    def answer_loss(
        self, audio_embeds: Sequence[Tensor], prompts: Sequence[PromptIds], targets: Sequence[Sequence[int]]
    ) -> Tensor:
        """Sum of the cross-entropies of all target tokens, each row as if alone; audio_embeds each [1, N, llm_dim]."""
        return summed_loss(*self.answer_logits(audio_embeds, prompts, targets))

    def answer_logits(
        self, audio_embeds: Sequence[Tensor], prompts: Sequence[PromptIds], targets: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, vocab] and the tokens wanted [N], which include the targets' and are else IGNORE."""
        rows, labels = [], []
        for embeds, prompt, target in zip(audio_embeds, prompts, targets, strict=True):
            row = self.wrap(embeds, prompt, target)
            rows.append(row)
            labels.append(torch.tensor([IGNORE] * (len(row) - len(target)) + list(target), device=self.device))
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row), device=self.device) for row in rows], batch_first=True)
        first = min(len(row) - len(target) for row, target in zip(rows, targets, strict=True)) - 1
        with training_attention(mask.shape[1], self.device):
            logits = self.llm(
                inputs_embeds=nn.utils.rnn.pad_sequence(rows, batch_first=True),
                attention_mask=mask.long(),
                # None in front of the first answer. By index: of a slice, the product would copy the weights per row.
                logits_to_keep=torch.arange(first, mask.shape[1], device=self.device),
            ).logits
        wanted = pad_labels(labels)[:, -logits.shape[1] :]
        return logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten()


def _repetition(min_new_tokens: int) -> Callable[..., Tensor]:
    """A criterion for transformers that ends an answer where the engine does: `GenerationConfig.stop_repetition`."""

    def ended(input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        """Whether each row of generated tokens [B, n] is complete."""
        long_enough = input_ids.shape[1] >= min_new_tokens
        rows = [long_enough and ends_in_repetition(row) for row in input_ids.tolist()]
        return torch.tensor(rows, dtype=torch.bool, device=input_ids.device)

    return ended


class _BanWhatIsUnsure(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed
    """`runtime.logits.ban_what_is_unsure`, of the first token of an answer."""

    def __init__(self, token_id: int, threshold: float) -> None:
        self._token_id = token_id
        self._threshold = threshold

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] behind the tokens [B, n] of each answer so far."""
        if input_ids.shape[1] > 0:
            return scores
        scores = scores.clone()
        unsure = scores.softmax(dim=-1)[:, self._token_id] < self._threshold
        scores[unsure, self._token_id] = -torch.inf
        return scores
