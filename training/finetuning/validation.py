"""How the model does on data it is not trained on, while it is trained."""

from collections.abc import Sequence

import torch
from whisper_normalizer.english import EnglishTextNormalizer

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.dataset import SpeechDataset, make_batch
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.evaluation.scores import spell_digits, word_error_rate
from salmonrun.training.finetuning.recipe import RunConfig
from salmonrun.training.model.labels import summed_loss
from salmonrun.training.model.salmonn import SalmonnModel

GREATER_IS_BETTER = {"loss": False, "accuracy": True, "wer": False, "exact": True}


class Validation:
    """Measures a model on a data set; names of the figures are those of `run.metric`, after `eval_`.

    Args:
        model: the one that is trained.
        dataset: without augmentation.
        run: batch size, metric, and how many recordings are answered for `wer` and `exact`.
    """

    def __init__(self, model: SalmonnModel, dataset: SpeechDataset, run: RunConfig) -> None:
        self._model = model
        self._dataset = dataset
        self._run = run
        entries = dataset.entries
        if run.metric == "wer":
            entries = [entry for entry in entries if entry.task == "asr"]
            if not entries:
                raise ConfigError("run.metric wer needs entries of task asr in data.valid")
        self._answered = _spread(entries, run.answered)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Loss and accuracy per target token and, if the metric is one of them, wer and exact of greedy answers."""
        training = self._model.training
        self._model.eval()
        try:
            metrics = self._per_token()
            if self._run.metric in ("wer", "exact"):
                metrics |= self._of_answers()
        finally:
            self._model.train(training)
        return {f"eval_{name}": value for name, value in metrics.items()}

    def _per_token(self) -> dict[str, float]:
        order = sorted(range(len(self._dataset)), key=lambda index: self._dataset.lengths[index])
        loss, right, tokens = 0.0, 0, 0
        for start in range(0, len(order), self._run.batch_size):
            batch = make_batch([self._dataset[index] for index in order[start : start + self._run.batch_size]])
            embeds = self._model.fuse(self._model.states(batch.features))
            logits, wanted = self._model.answer_logits(embeds, batch.prompts, batch.targets)
            loss += summed_loss(logits, wanted).item()
            right += int((logits.argmax(dim=-1) == wanted).sum())
            tokens += sum(map(len, batch.targets))
        return {"loss": loss / tokens, "accuracy": right / tokens}

    def _of_answers(self) -> dict[str, float]:
        """Word error rate, digits spelled out; share of answers that are right, normalized."""
        normalizer = EnglishTextNormalizer()
        pairs = [(entry.text, self._answer(entry)) for entry in self._answered]
        right = sum(normalizer(text) == normalizer(answer) for text, answer in pairs)
        wer = word_error_rate((spell_digits(text), spell_digits(answer)) for text, answer in pairs)
        return {"exact": right / len(pairs), "wer": wer}

    def _answer(self, entry: Entry) -> str:
        model = self._model
        audio = load_recording(entry, model.config.audio)
        return model.text(model.generate(audio, task=entry.task, question=entry.question or None))


def _spread(entries: Sequence[Entry], count: int) -> list[Entry]:
    """`count` of the entries, evenly spaced: annotations are often sorted by kind."""
    step = max(1.0, len(entries) / count)
    return [entries[int(i * step)] for i in range(min(count, len(entries)))]
