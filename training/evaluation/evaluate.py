"""How well a checkpoint or a bundle answers: one code path over both, resumable, an answer a line."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from salmonrun.runtime.audio import Audio
from salmonrun.runtime.config import AudioConfig, GenerationConfig, PromptConfig
from salmonrun.runtime.device import Device, check_device, gpu_index, is_gpu
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import CheckpointError, ConfigError, DeviceError
from salmonrun.runtime.prompt import choose_prompt
from salmonrun.runtime.repetition import repeated
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.data.annotation import Entry, Problem, check_entry, is_too_long
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.evaluation.answers import Answered, Settings, append_answer, asked, resume_answers
from salmonrun.training.evaluation.scores import TaskScore, score


@dataclass(frozen=True)
class Reply:
    """A model's answer."""

    text: str
    token_ids: Sequence[int]
    score: float | None  # mean log probability of the tokens; None of none


class Subject(Protocol):
    """A model that is evaluated: a bundle or a checkpoint."""

    prompts: PromptConfig
    audio: AudioConfig
    device: str  # where it computes: another one may answer otherwise
    sha256: str  # the same for the same weights, prompts and settings
    threshold: float | None  # score below which answers are not credible; None: not known

    def answer(self, audio: Audio, prompt: str, config: GenerationConfig) -> Reply:
        """What the model says."""


class BundleSubject:
    """A bundle, answering through the engine."""

    def __init__(self, path: str | Path, device: Device = "auto", threads: int | None = None) -> None:
        self._engine = Engine.load(path, device=device, threads=threads)
        self.device = ",".join(self._engine.report().providers["llm"])
        manifest = self._engine.bundle.manifest
        self.prompts, self.audio, self.sha256 = manifest.prompt, manifest.audio, manifest.manifest_sha256
        self.threshold = manifest.confidence.score if manifest.confidence else None

    def answer(self, audio: Audio, prompt: str, config: GenerationConfig) -> Reply:
        """What the model says; that there is nothing to be transcribed in its own words, as annotations have it."""
        result = self._engine.generate(audio, prompt=prompt, config=config)
        said = self._engine.model.text(result.token_ids)
        text = self.prompts.nothing if self._engine.model.heard_nothing(said) else result.text
        return Reply(text, result.token_ids, result.score)


class CheckpointSubject:
    """A checkpoint, answering through PyTorch."""

    def __init__(self, path: str | Path, device: Device = "auto", threads: int | None = None) -> None:
        if threads is not None:
            if threads < 1:
                raise ConfigError(f"threads is {threads}; it must be at least 1")
            torch.set_num_threads(threads)  # of the whole process: PyTorch knows no others
        check_device(device)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if is_gpu(device) and gpu_index(device) >= gpus:
            raise DeviceError(f"device {device}: PyTorch sees {gpus} CUDA GPUs; use auto or cpu, or one that is there")
        self.device = device if device != "auto" else "cuda" if gpus else "cpu"
        self._model = load(path).to(self.device)
        self.prompts, self.audio = self._model.prompts, self._model.config.audio
        self.sha256 = open_checkpoint(path, verify=False).sha256()  # load has verified the files it refers to
        self.threshold: float | None = None  # which only a bundle has

    @torch.inference_mode()
    def answer(self, audio: Audio, prompt: str, config: GenerationConfig) -> Reply:
        """What the model says."""
        model = self._model
        embeds = model.embed_prompt(model.encode(model.load_audio(audio)), prompt)
        tokens = model.generate_from(embeds, config)
        logprobs = model.logprobs(embeds, tokens)
        score = sum(logprobs) / len(logprobs) if logprobs else None
        return Reply(model.text(tokens), tokens, score)


def open_subject(path: str | Path, device: Device = "auto", threads: int | None = None) -> Subject:
    """A bundle, if the folder has a bundle.json; otherwise a checkpoint. It computes with so many threads; None: all.

    Raises:
        ConfigError: threads that there cannot be.
        DeviceError: the device is not there.
    """
    kind = BundleSubject if (Path(path) / "bundle.json").is_file() else CheckpointSubject
    return kind(path, device, threads)


@dataclass(frozen=True)
class Evaluation:
    """Answers and their scores."""

    entries: list[Entry]  # that were answered
    answers: list[Answered]  # in their order
    scores: dict[str, TaskScore]  # of each task; empty for a submission
    skipped: list[Problem]  # entries whose recordings are longer than the model hears


def evaluate(
    subject: Subject,
    entries: Sequence[Entry],
    out: Path,
    config: GenerationConfig,
    *,
    submission: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Answer every entry, append each to `out` (JSON lines) as it comes, and score; entries in `out` are not repeated.

    A recording that several entries ask the same about, as those of one clip with several captions, is answered once.
    One that is longer than the model hears is skipped, but in a submission, which has to be complete.

    Args:
        subject: a model.
        entries: with the reference as their text; of a `submission`, which is not scored, the text may be empty.
        out: made if it is not there; the first line holds the model's hash, its prompts and `config`.
        config: how tokens are chosen.
        submission: the entries are a test set whose answers are not known here.
        progress: show a bar, on a terminal.

    Raises:
        CheckpointError: an entry cannot be used, all are skipped, or `out` is of another model, settings or data.
    """
    entries, skipped = _usable(subject, entries, submission)
    kept = resume_answers(out, _settings(subject, config))
    done = {(row.dataset, row.index): row for row in kept}
    known = {row.asked: row for row in kept}
    missing = []
    for entry in entries:
        row = done.get((entry.dataset, entry.index))
        if row is None:
            missing.append(entry)
        elif not row.belongs_to(entry):
            raise CheckpointError(f"{out} holds answers to other entries; choose another file or remove it")
    with out.open("a", encoding="utf-8") as file:
        for entry in tqdm(missing, disable=None if progress else True, unit="recording"):
            row = known.get(asked(entry)) or _answer(subject, entry, config)
            row = replace(row, dataset=entry.dataset, index=entry.index, reference=entry.text)
            append_answer(file, row)
            done[entry.dataset, entry.index] = known[row.asked] = row
    rows = [done[entry.dataset, entry.index] for entry in entries]
    nothing = subject.prompts.nothing
    tasks = [] if submission else sorted({row.task for row in rows})
    scores = {task: score([row for row in rows if row.task == task], nothing) for task in tasks}
    return Evaluation(entries, rows, scores, skipped)


def _usable(subject: Subject, entries: Sequence[Entry], submission: bool) -> tuple[list[Entry], list[Problem]]:
    """Entries to be answered, and those that are too long."""
    usable, skipped = [], []
    for entry in entries:
        reason = check_entry(entry, subject.prompts, subject.audio, needs_text=not submission)
        problem = Problem(entry.dataset, entry.index, reason)
        if not reason:
            usable.append(entry)
        elif submission or not is_too_long(entry, subject.audio):
            raise CheckpointError(str(problem))
        else:
            skipped.append(problem)
    if skipped and not usable:
        raise CheckpointError("\n".join(["no entry is left to be answered:", *map(str, skipped[:20])]))
    return usable, skipped


def _settings(subject: Subject, config: GenerationConfig) -> Settings:
    prompts = {f"prompt of {task}": prompts[0] for task, prompts in subject.prompts.tasks.items()}
    return {"model sha256": subject.sha256, "device": subject.device, **prompts, **asdict(config)}


def _answer(subject: Subject, entry: Entry, config: GenerationConfig) -> Answered:
    """The model's text for an entry, with the first prompt of its task."""
    prompt = choose_prompt(subject.prompts, entry.task, None, entry.question or None)
    started = time.perf_counter()
    audio = load_recording(entry, subject.audio)
    reply = subject.answer(audio, prompt, config)
    took_s = time.perf_counter() - started
    path, task, question = asked(entry)
    return Answered(
        dataset=entry.dataset,
        index=entry.index,
        audio=path,
        task=task,
        question=question,
        reference=entry.text,
        hypothesis=reply.text.strip(),
        audio_s=audio.source_s,
        took_s=took_s,
        score=reply.score,
        repeated=repeated(reply.token_ids) != "",
    )
