"""What is minimised: the answers' cross-entropy and, if asked for, an auxiliary character loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from salmonrun.training.data.dataset import Batch
from salmonrun.training.finetuning.recipe import RunConfig
from salmonrun.training.model.blocks import draw_block
from salmonrun.training.model.features import FeatureBatch, StateBatch
from salmonrun.training.model.labels import IGNORE, summed_loss
from salmonrun.training.model.salmonn import SalmonnModel

CTC_BLANK = 0  # characters are their code points, 1 to 127; others are left out of the auxiliary loss
CTC_CLASSES = 128


@dataclass(frozen=True)
class Term:
    """A part of the loss, of one batch."""

    name: str  # in the log
    weight: float
    total: Tensor  # summed over what it is a loss of
    count: int  # how many these are: the log has the mean


@dataclass(frozen=True)
class Outputs:
    """What the model makes of a batch."""

    states: StateBatch
    embeds: list[Tensor]  # of the audio, each [1, n, llm_dim]; none if the LLM does not run
    logits: Tensor | None  # [N, vocab], see `SalmonnModel.answer_logits`
    wanted: Tensor | None  # [N]

    @property
    def token_logits(self) -> Tensor:
        """Those for the tokens of the answers alone, one answer after the other: [tokens, vocab]."""
        assert self.logits is not None, "the LLM has run"
        assert self.wanted is not None, "the LLM has run"
        return self.logits[self.wanted != IGNORE]


class TrainedModel(nn.Module):
    """The model with what only training needs: the auxiliary character loss on the Whisper states."""

    def __init__(self, model: SalmonnModel, run: RunConfig) -> None:
        super().__init__()
        self.model = model
        self.answers = bool(run.answer_weight)  # whether the LLM runs
        self.answer_weight = run.answer_weight
        self.ctc_weight = run.ctc_weight
        self.ctc_head = nn.Linear(model.config.whisper.d_model, CTC_CLASSES) if run.ctc_weight else None

    def train(self, mode: bool = True) -> "TrainedModel":
        """As every module's, but what is frozen stays as in inference: its adapters' dropout would be noise."""
        super().train(mode)
        for part in (self.model.whisper, self.model.audio_encoder, self.model.qformer, self.model.llm):
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def forward(self, batch: Batch, num_items_in_batch: Tensor | int | None = None, **_: Any) -> dict[str, Tensor]:
        """Loss per target token; over accumulated batches it is divided by the tokens of all of them.

        Beside it, for the log: the answers' loss per token and the auxiliary one per character, of this batch alone.
        """
        tokens = num_items_in_batch if num_items_in_batch is not None else sum(map(len, batch.targets))
        terms = self.terms(batch)
        loss = torch.zeros((), device=self.model.device)
        for term in terms:
            loss = loss + term.weight * term.total
        return {"loss": loss / tokens, **{term.name: term.total.detach() / max(1, term.count) for term in terms}}

    def terms(self, batch: Batch) -> list[Term]:
        """What is summed up. An objective that adds terms overrides this."""
        return self.own_terms(batch, self.outputs(batch))

    def outputs(self, batch: Batch) -> Outputs:
        """Run the model as far as there is a loss for it."""
        states = self._states(batch.features)
        if not self.answers:
            return Outputs(states, [], None, None)
        embeds = self.model.fuse(states)
        return Outputs(states, embeds, *self.model.answer_logits(embeds, batch.prompts, batch.targets))

    def own_terms(self, batch: Batch, outputs: Outputs) -> list[Term]:
        """The answers' cross-entropy and the auxiliary loss, where they have a weight."""
        terms = []
        if self.answer_weight and outputs.logits is not None and outputs.wanted is not None:
            answers = summed_loss(outputs.logits, outputs.wanted)
            terms.append(Term("answer_loss", self.answer_weight, answers, sum(map(len, batch.targets))))
        if self.ctc_head is not None:
            characters = self._ctc_loss(outputs.states, batch)
            terms.append(Term("ctc_loss", self.ctc_weight, characters, sum(map(len, batch.transcripts))))
        return terms

    def _states(self, features: FeatureBatch | StateBatch) -> StateBatch:
        streaming = self.model.config.streaming
        block = draw_block(streaming) if streaming and self.training else None
        if self.answers or isinstance(features, StateBatch):
            return self.model.states(features, block)
        return self.model.encode_speech(features.to(self.model.device), block)

    def _ctc_loss(self, states: StateBatch, batch: Batch) -> Tensor:
        """Sum over the rows that have a transcript."""
        assert self.ctc_head is not None
        texts = [[ord(char) for char in text if 0 < ord(char) < CTC_CLASSES] for text in batch.transcripts]
        log_probs = self.ctc_head(states.speech).float().log_softmax(dim=-1).transpose(0, 1)
        losses = nn.functional.ctc_loss(
            log_probs,
            torch.tensor([code for text in texts for code in text], device=states.speech.device),
            states.frames,
            torch.tensor([len(text) for text in texts], device=states.speech.device),
            blank=CTC_BLANK,
            reduction="none",
            zero_infinity=True,
        )
        has_text = torch.tensor([bool(text) for text in texts], device=states.speech.device)
        return (losses * has_text).sum()
