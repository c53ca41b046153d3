"""How the model does on data it is not trained on, while it is trained."""

from collections.abc import Sequence

import torch
from whisper_normalizer.english import EnglishTextNormalizer

from runtime.config import GenerationConfig
from training.data.annotation import Entry
from training.data.dataset import SpeechDataset, make_batch
from training.data.recordings import load_recording
from training.evaluation.scores import spell_digits, word_error_rate
from training.finetuning.recipe import RunConfig
from training.model import IGNORE, SalmonnModel

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
            loss += torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORE, reduction="sum").item()
            right += int((logits.argmax(dim=-1) == wanted).sum())
            tokens += sum(map(len, batch.targets))
        return {"loss": loss / tokens, "accuracy": right / tokens}

    def _of_answers(self) -> dict[str, float]:
        """Word error rate of transcripts, digits spelled out; share of all answers that are right, normalized."""
        entries = _spread(self._dataset.entries, self._run.answered)
        normalizer = EnglishTextNormalizer()
        pairs = [(entry, entry.text, self._answer(entry)) for entry in entries]
        spoken = [(spell_digits(text), spell_digits(answer)) for entry, text, answer in pairs if entry.task == "asr"]
        metrics = {"exact": sum(normalizer(text) == normalizer(answer) for _, text, answer in pairs) / len(pairs)}
        return metrics | ({"wer": word_error_rate(spoken)} if spoken else {})

    def _answer(self, entry: Entry) -> str:
        model = self._model
        prompt = model.prompts.tasks[entry.task][0].replace("{}", entry.question)
        ids = model.generate(load_recording(entry, model.config.audio), prompt=prompt, config=GenerationConfig())
        return model.tokenizer.decode(ids)


def _spread(entries: Sequence[Entry], count: int) -> list[Entry]:
    """`count` of the entries, evenly spaced: annotations are often sorted by kind."""
    step = max(1.0, len(entries) / count)
    return [entries[int(i * step)] for i in range(min(count, len(entries)))]
