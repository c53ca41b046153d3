"""How well a checkpoint or a bundle answers: one code path over both, resumable, an answer a line."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
from tqdm import tqdm
from whisper_normalizer.english import EnglishTextNormalizer

from runtime.config import GenerationConfig, PromptConfig
from runtime.engine import Engine
from runtime.errors import CheckpointError
from training.annotation import Entry, check_entry
from training.checkpoint import load


@dataclass(frozen=True)
class Answered:
    """One entry and what the model said."""

    dataset: str
    index: int
    task: str
    reference: str
    hypothesis: str
    audio_s: float
    took_s: float


@dataclass(frozen=True)
class TaskScore:
    """Quality on one task."""

    entries: int
    wer: float  # word error rate, micro-averaged, after Whisper's English normaliser
    wer_spelled: float  # of the plain lower-case words: the normaliser makes one word of a string of digits
    exact: float  # share of answers equal to the reference after normalising
    rtf: float  # seconds computed per second of audio


class Subject:
    """What is evaluated: a bundle (has bundle.json) through the engine, or a checkpoint through PyTorch."""

    def __init__(self, path: str | Path) -> None:
        self._answer: Callable[[Entry, str, GenerationConfig], tuple[str, float]]
        if (Path(path) / "bundle.json").is_file():
            engine = Engine.load(path)
            self.prompts: PromptConfig = engine.bundle.manifest.prompt
            self.audio = engine.bundle.manifest.audio

            def from_bundle(entry: Entry, prompt: str, config: GenerationConfig) -> tuple[str, float]:
                result = engine.generate(entry.path, prompt=prompt, config=config)
                return result.text, result.timings.audio_s

            self._answer = from_bundle
        else:
            model = load(path)
            self.prompts, self.audio = model.prompts, model.config.audio

            def from_checkpoint(entry: Entry, prompt: str, config: GenerationConfig) -> tuple[str, float]:
                audio = model.load_audio(entry.path)
                return model.tokenizer.decode(model.generate(audio, prompt=prompt, config=config)), audio.source_s

            self._answer = from_checkpoint

    def answer(self, entry: Entry, config: GenerationConfig) -> Answered:
        """The model's text for an entry, with the first prompt of its task."""
        prompt = self.prompts.tasks[entry.task][0].replace("{}", entry.question)
        started = time.perf_counter()
        text, audio_s = self._answer(entry, prompt, config)
        took_s = time.perf_counter() - started
        return Answered(entry.dataset, entry.index, entry.task, entry.text, text.strip(), audio_s, took_s)


def evaluate(
    subject: Subject, entries: Sequence[Entry], out: Path, config: GenerationConfig, progress: bool = False
) -> dict[str, TaskScore]:
    """Answer every entry, append each to `out` (JSON lines) as it comes, and score; entries in `out` are not repeated.

    Raises:
        CheckpointError: an entry cannot be used, or `out` is from other data.
    """
    for entry in entries:
        if reason := check_entry(entry, subject.prompts, subject.audio):
            raise CheckpointError(f"{entry.dataset}: entry {entry.index}: {reason}")
        if entry.appended:
            raise CheckpointError(f"{entry.dataset}: entry {entry.index}: expand_wav cannot be evaluated yet")
    done = {(row.dataset, row.index): row for row in read_answers(out)}
    missing = [entry for entry in entries if (entry.dataset, entry.index) not in done]
    with out.open("a") as file:
        for entry in tqdm(missing, disable=not progress, unit="recording"):
            row = subject.answer(entry, config)
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            file.flush()
            done[entry.dataset, entry.index] = row
    rows = [done[entry.dataset, entry.index] for entry in entries]
    if any(row.reference != entry.text for row, entry in zip(rows, entries, strict=True)):
        raise CheckpointError(f"{out} holds answers to other entries; choose another file or remove it")
    return {task: score([row for row in rows if row.task == task]) for task in sorted({row.task for row in rows})}


def read_answers(path: Path) -> list[Answered]:
    """The answers in a file; a last line cut by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(Answered(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return rows


def score(rows: Sequence[Answered]) -> TaskScore:
    """Score the answers to one task."""
    normalise = EnglishTextNormalizer()
    normal = [(normalise(row.reference), normalise(row.hypothesis)) for row in rows]
    spelled = [(_words(row.reference), _words(row.hypothesis)) for row in rows]
    return TaskScore(
        entries=len(rows),
        wer=word_error_rate(normal),
        wer_spelled=word_error_rate(spelled),
        exact=sum(reference == hypothesis for reference, hypothesis in normal) / len(rows),
        rtf=sum(row.took_s for row in rows) / max(1e-9, sum(row.audio_s for row in rows)),
    )


def word_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Errors of all pairs (reference, hypothesis) over the words of all references."""
    references, hypotheses = zip(*pairs, strict=True)
    measured = jiwer.process_words(list(references), list(hypotheses))
    errors = measured.substitutions + measured.deletions + measured.insertions
    return errors / max(1, measured.hits + measured.substitutions + measured.deletions)


def _words(text: str) -> str:
    kept = "".join(char if char.isalnum() or char == "'" else " " for char in text.lower())
    return " ".join(kept.split())
