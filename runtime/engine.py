"""The engine: a bundle in memory that turns recordings into text. `Engine.generate` is the data path."""

import asyncio
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import NoReturn, SupportsIndex

from salmonrun.runtime.audio import SAMPLE_RATE, Audio, AudioSource
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.channel import Channel
from salmonrun.runtime.checks import checked
from salmonrun.runtime.config import GenerationConfig, KvCacheType, Limits
from salmonrun.runtime.decoders import DecoderName
from salmonrun.runtime.device import Device
from salmonrun.runtime.encoders import EncoderName
from salmonrun.runtime.errors import ClosedError, SharingError
from salmonrun.runtime.generation import generate
from salmonrun.runtime.heard import Heard, listen
from salmonrun.runtime.hub import locate_bundle
from salmonrun.runtime.loading import Loading
from salmonrun.runtime.log import LOGGER
from salmonrun.runtime.longform.batch import BatchAnswerer
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.longform.reader import PcmReader
from salmonrun.runtime.longform.transcribe import TranscriptInfo, transcribe_iter
from salmonrun.runtime.model import Model
from salmonrun.runtime.report import Report, describe
from salmonrun.runtime.result import Result, drain
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.signed import Verify
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.streaming.config import StreamConfig
from salmonrun.runtime.streaming.stream import Stream
from salmonrun.runtime.terms import NORMAL, Terms
from salmonrun.runtime.vad import load_vad


class Engine:
    """The ways to ask a loaded bundle. It does not change: one engine serves any number of threads.

    What they decode at the same time, they decode together. `close`, or the end of a `with` block, frees its memory.
    """

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model

    @classmethod
    @checked("device")
    def load(
        cls,
        path: str | os.PathLike[str],
        device: Device = "auto",
        decoder: DecoderName = "auto",
        threads: int | None = None,
        verify: Verify = True,
        limits: Limits | None = None,
        kv_cache: KvCacheType = "fp16",
        encoder: EncoderName = "auto",
        release_weights: bool = False,
        copy: bool = False,
    ) -> "Engine":
        """Open, check and load a bundle.

        Args:
            path: the bundle's folder.
            device: "cpu", "cuda" or, of several GPUs, "cuda:1"; "auto" takes what the bundle was exported for, if it is
                there, and logs why it is not.
            decoder: what runs the LLM; "auto" takes our own kernels on a CPU and PyTorch on a GPU, where the bundle has
                weights for them, else ONNX Runtime.
            threads: for each part, at most the cores this process may use; None for all of them.
            verify: hash every file first; a public key of minisign (text, or its file): and refuse a bundle that it has
                not signed (`salmonrun sign`).
            limits: what to refuse.
            kv_cache: what the native decoder keeps keys and values as; "int8" takes little more than half the memory,
                for an error that docs/performance.md has. The onnx decoder's are as its graph has them.
            encoder: what runs Whisper and the audio encoder; "auto" takes our own kernels where the bundle has weights
                for them, on a CPU.
            release_weights: give each part's memory back to the system when a request has done with it: no more than
                one part's weights are resident at once, for the time it takes to map them again. Native parts alone.
            copy: read all weights into memory of this process alone. Else they are mapped, which loads at once and is
                shared between processes, but a file that is cut while the engine runs ends the process.

        Raises:
            BundleError: the bundle is damaged, of a newer format, not signed by the key, or cannot be loaded.
            ConfigError: an argument of another type, no such decoder or encoder, threads that there are no cores for,
                or `kv_cache="int8"` or `release_weights` where our own kernels do not run.
            DeviceError: the device is not there, has too little memory, or is not used; it says what is missing.
        """
        asked = Loading(device, decoder, threads, limits, kv_cache, encoder, release_weights, copy)
        return cls._loaded(path, verify, asked)

    @classmethod
    @checked("device")
    def from_pretrained(
        cls,
        repo_id: str | os.PathLike[str],
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        signed_by: str | os.PathLike[str] | None = None,
        device: Device = "auto",
        decoder: DecoderName = "auto",
        threads: int | None = None,
        limits: Limits | None = None,
        kv_cache: KvCacheType = "fp16",
        encoder: EncoderName = "auto",
        release_weights: bool = False,
        copy: bool = False,
    ) -> "Engine":
        """Load a bundle of the Hugging Face Hub, by the extra `hub`: what the cache lacks of it is downloaded.

        Every file is hashed, as what comes from elsewhere has to be. Without a network the cache does, which is logged.
        The other arguments are as in `load`, and so is what else is raised.

        Args:
            repo_id: `org/name`; a folder of that name here wins.
            revision: a branch, a tag or a commit; None: the default branch.
            cache_dir: None: where HF_HUB_CACHE says.
            token: None: the one that was logged in with, if any.
            local_files_only: take what the cache has, and ask nobody, as with HF_HUB_OFFLINE.
            signed_by: a public key of minisign, as `verify` of `load` takes it: what it has not signed is refused.

        Raises:
            BundleError: the repository holds no bundle.
            HubError: no such repository or revision, no access, or neither network nor all of it in the cache.
            MissingExtraError: huggingface_hub is not installed.
        """
        asked = Loading(device, decoder, threads, limits, kv_cache, encoder, release_weights, copy)
        asked.check()  # before anything is downloaded
        located = locate_bundle(repo_id, revision, cache_dir, token, local_files_only, signed=signed_by is not None)
        if located.hub:
            LOGGER.info("%s", located)
        return cls._loaded(located.folder, True if signed_by is None else signed_by, asked)

    @classmethod
    def _loaded(cls, path: str | os.PathLike[str], verify: Verify, asked: Loading) -> "Engine":
        started = time.perf_counter()
        model = Model.load(path, verify, asked)
        LOGGER.info("loaded in %.2f s: %s", time.perf_counter() - started, describe(model).summary)
        return cls(model)

    def check_files(self) -> None:
        """Whether the bundle's files are still those that were loaded: their sizes, times and inodes.

        With `copy=True` it does not matter, and nothing is looked at.

        Raises:
            BundleIntegrityError: one was changed in place, replaced or removed.
        """
        self.model.check_files()

    def close(self) -> None:
        """Let go of the model. What is being answered, and streams and recordings that are open, keep it to their end.

        After this, every request raises ClosedError.
        """
        self._model = None

    def __reduce_ex__(self, _: SupportsIndex) -> NoReturn:
        raise SharingError(
            "an Engine can be neither pickled nor copied: any number of threads share one as it is; in another process "
            "call Engine.load with the same folder, whose mapped weights all processes share"
        )

    def __enter__(self) -> "Engine":
        _ = self.model  # refuses, if it is closed
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> Model:
        """What was loaded: encoder, decoder, tokenizer, limits.

        Raises:
            ClosedError: the engine was closed.
        """
        if self._model is None:
            raise ClosedError("this engine is closed: load it again, or ask inside the `with Engine.load(...)` block")
        return self._model

    @property
    def bundle(self) -> Bundle:
        """What was loaded."""
        return self.model.bundle

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks this bundle has prompts for."""
        return self.model.tasks

    @checked("audio")
    def generate(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> Result:
        """Answer a prompt about a recording.

        Args:
            audio: path, bytes of a file, an open binary file, or a 1-D float, int16 or int32 array with `sample_rate`.
            task: one of `tasks`; its prompt is the bundle's. "asr", if the bundle has it and `prompt` is not given.
            prompt: an instruction of your own, instead of `task`.
            question: fills the {} of a task's prompt.
            config: how tokens are chosen; greedy if left out.
            sample_rate: of an array, in Hz.
            channel: "first" (or the loudest if that is silent), "mix" or a number: see `load_audio`.
            strict: refuse a file that ends before its header says, instead of noting it.
            cancel: set it from another thread to stop: within one token while decoding, before that at the next stage.
            priority: 0 or more; who has less goes first, live streams before all. Nobody waits for ever.
            deadline_s: from the call, how long an answer is worth waiting for; None: as long as it takes.

        Raises:
            AudioError: unusable or too long audio.
            BusyError: memory is full of what does not end by itself: kept recordings and live streams.
            PromptError: no such task, or not exactly one of task and prompt.
            CapacityError: prompt and answer do not fit the KV cache.
            ConfigError: an argument of another type than it says, or settings that the limits do not allow.
            DeadlineError: the deadline passed; while decoding, this is known within one round.
            NotFiniteError: an encoder, the Q-Former or the LLM computes what is no number.
        """
        return drain(
            self.generate_iter(
                audio,
                task=task,
                prompt=prompt,
                question=question,
                config=config,
                sample_rate=sample_rate,
                channel=channel,
                strict=strict,
                cancel=cancel,
                priority=priority,
                deadline_s=deadline_s,
            )
        )

    @checked("audio")
    def generate_iter(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> Generator[str, None, Result]:
        """Like `generate`, but yields pieces of text as they are decoded, and returns the Result.

        Bad input is refused here, before the first piece is asked for. Closing the generator frees its memory. Beam
        search yields its text at the end.
        """
        watch, model, terms = Stopwatch(), self.model, Terms.of(priority, deadline_s, cancel)
        request = model.request(task, prompt, question, config)
        watch.lap("prompt")
        recording = model.load_audio(audio, sample_rate, channel, strict)
        watch.lap("audio")
        model.check_capacity(request, len(recording.pcm))
        return generate(model, recording, request, terms, watch)

    async def agenerate(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> Result:
        """`generate` for asyncio: it runs in a thread of the loop's executor, and the loop goes on.

        Tasks that wait at the same time decode together. A task that is cancelled stops its request, as `cancel` does.
        """
        cancel = threading.Event()
        try:
            return await asyncio.to_thread(
                self.generate,
                audio,
                task=task,
                prompt=prompt,
                question=question,
                config=config,
                sample_rate=sample_rate,
                channel=channel,
                strict=strict,
                cancel=cancel,
                priority=priority,
                deadline_s=deadline_s,
            )
        finally:
            cancel.set()

    @checked("audio")
    @contextmanager
    def listen(
        self,
        audio: AudioSource | Audio,
        *,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
    ) -> Iterator["Heard"]:
        """Encode a recording once, keep its KV, and answer many prompts about it: see `Heard.ask`."""
        watch, model = Stopwatch(), self.model
        recording = model.load_audio(audio, sample_rate, channel, strict)
        watch.lap("audio")
        with listen(model, recording, watch=watch) as heard:
            yield heard

    @checked("audio")
    def transcribe(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        generation: GenerationConfig | None = None,
        config: TranscribeConfig | None = None,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> tuple[Iterator[Segment], TranscriptInfo]:
        """Answer a prompt about a recording of any length, window by window: cut at pauses, decoded in batches.

        The file is read while segments are taken, never as a whole; samples that cannot be used are refused then, with
        an AudioError. Arguments are as in `generate`, and what else it refuses is refused here.

        Args:
            task: one of `tasks`; "asr" if neither it nor `prompt` is given.
            generation: how tokens are chosen.
            config: how the recording is cut.
            cancel: set it from another thread to stop; segments decoded until then are still handed out.

        Returns:
            Segments in order, as they are decoded; and what is known of the recording, complete when they are taken.
        """
        items, info = self.transcribe_iter(
            audio,
            task=task,
            prompt=prompt,
            question=question,
            generation=generation,
            config=config,
            sample_rate=sample_rate,
            channel=channel,
            strict=strict,
            cancel=cancel,
            priority=priority,
            deadline_s=deadline_s,
        )
        return (item for item in items if isinstance(item, Segment)), info

    @checked("audio")
    def transcribe_iter(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        generation: GenerationConfig | None = None,
        config: TranscribeConfig | None = None,
        sample_rate: int | None = None,
        channel: Channel = "first",
        strict: bool = False,
        cancel: threading.Event | None = None,
        priority: int = NORMAL,
        deadline_s: float | None = None,
    ) -> tuple[Iterator[str | Segment], TranscriptInfo]:
        """Like `transcribe`, but also yields pieces of text as they are decoded.

        They add up to the texts of all segments, a line for each. Text that a segment might have to leave to the next,
        or that might be rejected, comes right before its segment; so does that of a beam search.
        """
        model = self.model
        reader = PcmReader(audio, sample_rate, channel, strict, model.limits)
        terms = Terms.of(priority, deadline_s, cancel)
        answerer = BatchAnswerer(model, model.request(task, prompt, question, generation), terms)
        return transcribe_iter(reader, answerer, config or TranscribeConfig())

    @checked()
    def stream(
        self,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: StreamConfig | None = None,
        generation: GenerationConfig | None = None,
        sample_rate: int = SAMPLE_RATE,
    ) -> Stream:
        """Answer a prompt about audio that is still coming: `with engine.stream(...) as stream`, see `Stream.push`.

        Any number of streams may run on one engine, each in its own thread or in turn.

        Args:
            task: one of `tasks`; "asr" if neither it nor `prompt` is given.
            prompt: an instruction of your own, instead of `task`.
            question: fills the {} of a task's prompt.
            config: how it is heard: policy, updates, endpoints.
            generation: how tokens are chosen; a stream decodes greedily.
            sample_rate: of the PCM that will be pushed, in Hz.

        Raises:
            AudioError: no usable rate.
            BusyError: memory is full, and will not be given back by itself.
            CapacityError: prompt and answer about the longest utterance do not fit the KV cache.
            ConfigError: the bundle cannot be streamed so.
            MissingExtraError: the voice detection asked for is not installed.
            PromptError: no such task, or not exactly one of task and prompt.
        """
        config = config or StreamConfig()
        vad = load_vad(config.endpoint.vad) if config.endpoint else None
        return Stream(self.model, self.model.request(task, prompt, question, generation), config, sample_rate, vad)

    def report(self) -> Report:
        """What really runs: providers, decoder, precision, threads, memory."""
        return describe(self.model)
