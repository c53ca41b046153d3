"""What is minimised: the losses of fine-tuning, and how far the student is from its teacher."""

import logging

import torch
from torch import Tensor, nn

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.dataset import Batch
from salmonrun.training.distillation.divergence import SoftTargets, divergence, soften
from salmonrun.training.distillation.hidden import Hidden, HiddenLoss, relative_error, watched
from salmonrun.training.distillation.recipe import DistillRecipe
from salmonrun.training.distillation.target_cache import TargetCache
from salmonrun.training.distillation.teacher import Lesson, Teacher
from salmonrun.training.finetuning.objective import Outputs, Term, TrainedModel
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.features import StateBatch
from salmonrun.training.model.salmonn import SalmonnModel

_log = logging.getLogger(__name__)


class DistilledModel(TrainedModel):
    """The student, with the projections that its training needs. The teacher is no part of it.

    Args:
        model: the student.
        recipe: of the run.
        teacher_config: of the teacher.
        source: the teacher, or what is kept of its logits.
    """

    def __init__(
        self, model: SalmonnModel, recipe: DistillRecipe, teacher_config: ModelConfig, source: Teacher | TargetCache
    ) -> None:
        super().__init__(model, recipe.run)
        config = recipe.distill
        self.answers = recipe.trains_answers
        self._distill = config
        self._vocab = common_vocab(model.config, teacher_config)
        self._source = source
        self._parts = config.hidden_parts if config.hidden else ()
        self.hidden_loss = HiddenLoss(model.config, teacher_config, self._parts) if self._parts else None
        for part, numbers in self.hidden_loss.maps.items() if self.hidden_loss else ():
            _log.info("%s: the student's layers learn from the teacher's %s", part, " ".join(map(str, numbers)))
        widths = (model.config.llm_dim, teacher_config.llm_dim)
        self.qformer_projection = nn.Linear(*widths) if config.qformer and widths[0] != widths[1] else None

    def terms(self, batch: Batch) -> list[Term]:
        """Those of fine-tuning, then those of what is learned from the teacher."""
        if isinstance(batch.features, StateBatch) and set(self._parts) - {"llm"}:
            raise ConfigError(
                "data.cache keeps the states of encoders, which are frozen: none of their layers can learn; take them "
                "out of distill.hidden_parts"
            )
        with watched(self.model, self._parts) as hidden:
            outputs = self.outputs(batch)
        terms, device, config = self.own_terms(batch, outputs), self.model.device, self._distill
        tokens = sum(map(len, batch.targets))
        if isinstance(self._source, TargetCache):
            kept = self._source.read(batch.entries, batch.targets).to(device)
            return [*terms, self._logits(outputs, kept, tokens)]
        lesson = self._source.teach(batch.entries, batch.targets, device, self._parts)
        if config.logits:
            logits = lesson.outputs.token_logits[:, : self._vocab]
            terms.append(self._logits(outputs, soften(logits, config.temperature, config.top_k), tokens))
        return [*terms, *self._inner(outputs, hidden, lesson, tokens)]

    def _logits(self, outputs: Outputs, targets: SoftTargets, tokens: int) -> Term:
        logits, config = outputs.token_logits[:, : self._vocab], self._distill
        total = divergence(logits, targets, config.temperature, config.forward, config.skew)
        return Term("logits_loss", config.logits, total, tokens)

    def _inner(self, outputs: Outputs, hidden: Hidden, lesson: Lesson, tokens: int) -> list[Term]:
        """Means over positions, each as often as there are tokens: they have the weight of a loss per token."""
        terms = []
        if self.hidden_loss is not None:
            error: Tensor = self.hidden_loss((hidden, outputs), (lesson.hidden, lesson.outputs))
            terms.append(Term("hidden_loss", self._distill.hidden, tokens * error, tokens))
        if self._distill.qformer:
            students, teachers = (
                torch.cat([row[0] for row in rows]) for rows in (outputs.embeds, lesson.outputs.embeds)
            )
            if self.qformer_projection is not None:
                students = self.qformer_projection(students.float())
            error = relative_error(students, teachers)
            terms.append(Term("qformer_loss", self._distill.qformer, tokens * error, tokens))
        return terms


def common_vocab(student: ModelConfig, teacher: ModelConfig) -> int:
    """Tokens that both LLMs have a logit for; of one tokenizer, some have spare ones behind its own."""
    return min(int(config.llm["vocab_size"]) for config in (student, teacher))
