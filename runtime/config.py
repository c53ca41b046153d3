"""Settings that training, export and the engine share. Each default lives here and nowhere else."""

import sys
from dataclasses import dataclass, field, replace
from typing import Literal

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import OPTIONAL

MAX_LENGTH_PENALTY = 10  # an exponent on the length: beyond this float32 scores over- or underflow
SPEECH_PLACEHOLDER = "<SpeechHere>"
# Sizes that no model has: what is larger is damage or malice, and would be computed for ever.
LONGEST_WINDOW_S = 600  # Whisper hears 30 s, EAT's positions reach to 123 s
LARGEST_WINDOW = 2**16  # frames of a window or block, bins, patches
LARGEST_FEATURE = 1e6  # of a spectrogram, and of samples on Kaldi's scale
SILENCE_DBFS = -80.0  # a recording, or a channel of it, whose peak is below this is silent

KvCacheType = Literal["fp16", "int8"]  # what the native decoder keeps keys and values as


@dataclass(frozen=True)
class AudioConfig:
    """How audio becomes features."""

    n_mels: int = 80  # log-mel bins: 80 (Whisper up to large-v2) or 128 (large-v3, turbo)
    sample_rate: int = 16000
    min_s: float = 1.0  # shorter audio is padded with zeros to this, as the published code does
    max_s: float = 30.0  # Whisper's window
    # "padded": zeros up to max_s, as all published checkpoints expect. "trimmed": only as many Whisper frames as the
    # audio fills, rounded up to whole Q-Former windows: an approximation, unless the checkpoint was trained so.
    window: Literal["padded", "trimmed"] = "padded"
    # The log-mel is floored 8 below this. None: below the recording's own maximum, as Whisper does it; before a stream
    # ends, it is not known.
    log_mel_max: float | None = None

    def __post_init__(self) -> None:
        if self.n_mels not in (80, 128):
            raise ConfigError(f"n_mels is {self.n_mels}; Whisper encoders take 80 or 128")
        if self.sample_rate != 16000:
            raise ConfigError(f"sample_rate is {self.sample_rate}; the encoders take 16000")
        if not 0 < self.min_s <= self.max_s <= LONGEST_WINDOW_S:
            raise ConfigError(
                f"min_s {self.min_s} and max_s {self.max_s} must satisfy 0 < min_s <= max_s <= {LONGEST_WINDOW_S}"
            )
        if self.log_mel_max is not None and not abs(self.log_mel_max) <= LARGEST_FEATURE:
            raise ConfigError(f"log_mel_max is {self.log_mel_max}; expected -{LARGEST_FEATURE} to {LARGEST_FEATURE}")

    def up_to(self, max_s: float | None) -> "AudioConfig":
        """The same for recordings of at most so many seconds, even if that is less than `min_s`; None: as it is."""
        return self if max_s is None else replace(self, max_s=max_s, min_s=min(self.min_s, max_s))


@dataclass(frozen=True)
class FbankConfig:
    """The front end of an audio encoder: Kaldi's filter bank, 25 ms windows every 10 ms, cut into patches.

    Defaults are BEATs' (microsoft/unilm, beats/BEATs.py).
    """

    window: Literal["povey", "hanning"] = "povey"
    waveform_scale: float = 2.0**15  # of samples in -1 to 1: Kaldi works on integers
    subtract_mean: bool = False  # of the whole recording
    bins: int = 128
    mean: float = 15.41663  # features are (log energy - mean) / scale
    scale: float = 2 * 6.55582
    patch_frames: int = 16
    patch_tokens: int = 8  # states that the encoder yields for a patch's frames
    last_patch: Literal["dropped", "padded"] = "dropped"  # if frames do not fill it; "padded": with log energies of 0

    def __post_init__(self) -> None:
        for name in ("bins", "patch_frames", "patch_tokens"):
            if not 1 <= getattr(self, name) <= LARGEST_WINDOW:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 to {LARGEST_WINDOW}")
        if not abs(self.mean) <= LARGEST_FEATURE:
            raise ConfigError(f"mean is {self.mean}; expected -{LARGEST_FEATURE} to {LARGEST_FEATURE}")
        # A scale of less than this makes features that float32 cannot hold.
        for name in ("scale", "waveform_scale"):
            if not 1e-6 <= getattr(self, name) <= LARGEST_FEATURE:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1e-06 to {LARGEST_FEATURE}")


@dataclass(frozen=True)
class WindowConfig:
    """Which encoder frames one Q-Former window sees."""

    frames: int = 17  # 0.333333 s of Whisper's 50 frames a second, rounded as the published code rounds
    stride: int = 17
    num_queries: int = 1  # audio embeddings a window yields

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "num_queries"):
            if not 1 <= getattr(self, name) <= LARGEST_WINDOW:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 to {LARGEST_WINDOW}")

    def count(self, total_frames: int) -> int:
        """Number of windows in `total_frames` encoder frames (a tail that fills no window is dropped)."""
        return max(0, (total_frames - self.frames) // self.stride + 1)


PATCH_FRAMES = 8  # Whisper frames (20 ms) that a patch of an audio encoder that hears in blocks (160 ms) lasts


@dataclass(frozen=True)
class Block:
    """How a recording is cut for block-causal encoders: a frame sees its own block and some frames before that."""

    size: int  # Whisper frames, 20 ms each
    lookback: int  # frames in front of the block that its frames see


@dataclass(frozen=True)
class BlockConfig:
    """What block-causal encoders were trained for, beside hearing a recording at once."""

    sizes: tuple[int, ...]  # frames of a block, ascending
    lookbacks: tuple[int, ...]  # frames of a look-back, ascending

    def __post_init__(self) -> None:
        for name, values in (("sizes", self.sizes), ("lookbacks", self.lookbacks)):
            if not values or list(values) != sorted(set(values)) or values[0] < 1 or values[-1] > LARGEST_WINDOW:
                raise ConfigError(
                    f"streaming.{name} is {values}; expected numbers of frames, 1 to {LARGEST_WINDOW}, ascending"
                )
            wrong = [value for value in values if value % PATCH_FRAMES]
            if wrong:
                raise ConfigError(f"streaming.{name} has {wrong[0]}; expected multiples of {PATCH_FRAMES} frames")

    def check(self, audio: AudioConfig, window: WindowConfig) -> None:
        """Whether a model with these settings can hear in blocks.

        Raises:
            ConfigError: it cannot.
        """
        if window.frames != window.stride:
            raise ConfigError(f"streaming needs Q-Former windows side by side, but their stride is {window.stride}")
        wrong = [size for size in self.sizes if size % window.frames]
        if wrong:
            raise ConfigError(
                f"streaming.sizes has {wrong[0]}, which is no multiple of the {window.frames} window frames"
            )
        if audio.window != "trimmed" or audio.log_mel_max is None:
            raise ConfigError("streaming needs audio.window 'trimmed' and audio.log_mel_max, e.g. 1.5")


@dataclass(frozen=True)
class Pruning:
    """How a part of a model was made smaller than it was trained: a step of its lineage."""

    part: Literal["llm", "whisper", "audio_encoder"]
    method: Literal["dropped", "merged", "low-rank"]  # merged: a layer is the mean of itself and those left out behind
    tool: str  # and its version
    source: str  # sha256 of the model it was made of
    layers: int  # that the part had before any was left out
    kept: tuple[int, ...]  # the numbers there of the layers it has now
    criterion: str = ""  # by which the layers were chosen
    search: str = ""  # how they were
    share: float | None = None  # of low rank: the weights that its matrices keep

    def __post_init__(self) -> None:
        if not self.kept or list(self.kept) != sorted({number for number in self.kept if 0 <= number < self.layers}):
            raise ConfigError(f"kept is {self.kept}; expected ascending numbers of {self.layers} layers, at least one")

    @property
    def left_out(self) -> tuple[int, ...]:
        """The numbers of the layers it does not have any more."""
        return tuple(sorted(set(range(self.layers)) - set(self.kept)))

    def __str__(self) -> str:
        if self.method == "low-rank":
            return f"matrices of low rank, {self.share:.0%} of their weights, by {self.tool}"
        chosen = f"by {self.criterion}, {self.search}, " if self.criterion else ""
        gone = " ".join(map(str, self.left_out))
        return f"{len(self.kept)} of {self.layers} layers, {self.method}: {gone} ({chosen}{self.tool})"


Learned = Literal["logits", "hidden", "qformer"]


@dataclass(frozen=True)
class Distillation:
    """Whom a model learned from: a step of its lineage."""

    teacher: str  # its name
    sha256: str  # of its checkpoint
    learned: tuple[Learned, ...]  # what of it: `DistillConfig` in training/distillation/recipe.py
    steps: int
    tool: str  # and its version

    def __str__(self) -> str:
        what: dict[Learned, str] = {"logits": "logits", "hidden": "hidden states", "qformer": "audio embeddings"}
        learned = ", ".join(what[one] for one in self.learned)
        return f"from {self.teacher} ({self.sha256[:12]}): {learned}; {self.steps} steps, {self.tool}"


@dataclass(frozen=True)
class PromptConfig:
    """How text is put around the audio embeddings."""

    template: str = "USER: {}\nASSISTANT:"
    tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)  # task -> prompts; the first one serves inference
    bos_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    end_symbol: str = ""  # appended to training targets; mostly the text of a stop token
    # What the model was trained to answer where nothing is to be transcribed; empty: it was not.
    nothing: str = field(default="", metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1 or SPEECH_PLACEHOLDER in self.template:
            raise ConfigError(
                f"template {self.template[:200]!r} must contain {{}} exactly once, and no {SPEECH_PLACEHOLDER}, which "
                "a prompt brings"
            )
        for task, prompts in self.tasks.items():
            if not prompts:
                raise ConfigError(f"task {task!r} has no prompt")
            for prompt in prompts:
                if not prompt.strip() or prompt.count(SPEECH_PLACEHOLDER) > 1:
                    raise ConfigError(
                        f"task {task!r} has the prompt {prompt[:200]!r}; expected some text, with at most one "
                        f"{SPEECH_PLACEHOLDER}"
                    )
        if self.nothing != self.nothing.strip():
            raise ConfigError(f"nothing is {self.nothing!r}; expected it without spaces around it")

    def says_nothing(self, text: str) -> bool:
        """Whether this is the text of an answer that says that there is nothing to be transcribed."""
        return self.nothing != "" and text.strip() == self.nothing

    def may_say_nothing(self, text: str) -> bool:
        """Whether an answer that begins with this text may still turn out to say that."""
        return self.nothing != "" and (self.nothing.startswith(text.lstrip()) or self.says_nothing(text))


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen. Semantics are those of transformers' `generate` with `inputs_embeds`."""

    max_new_tokens: int = 200
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0  # beams: score = sum of log probabilities / length ** length_penalty
    early_stopping: bool | Literal["never"] = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # 0: off
    stop_token_ids: tuple[int, ...] | None = None  # None: those of the bundle
    stop_strings: tuple[str, ...] = ()  # the text is cut before the first of them
    # End an answer that repeats itself without end (see `runtime/repetition.py`), which `generate` of transformers
    # does not: it goes on to max_new_tokens. What was decoded until then is the same.
    stop_repetition: bool = True
    # Where a model was trained to answer that nothing is to be transcribed (`PromptConfig.nothing`): it is believed
    # from this probability of that answer's first token on, else the next best answer is given. 0: always believed.
    # Chosen by docs/performance.md, "Who is heard".
    nothing_threshold: float = 0.9

    def __post_init__(self) -> None:
        check_types(self)
        for name, value in {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(f"min_new_tokens is {self.min_new_tokens}; expected 0 to {self.max_new_tokens}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be above 0 (for greedy, do not sample)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected 0 < top_p <= 1")
        for name, value in {"top_k": self.top_k, "no_repeat_ngram_size": self.no_repeat_ngram_size}.items():
            if value < 0:
                raise ConfigError(f"{name} is {value}; it must not be negative (0 turns it off)")
        if not 0 <= self.nothing_threshold <= 1:
            raise ConfigError(f"nothing_threshold is {self.nothing_threshold}; expected a probability from 0 to 1")
        if not self.repetition_penalty > 0:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 turns it off)")
        if self.do_sample and self.num_beams > 1:
            raise ConfigError("do_sample with num_beams > 1 is not supported; choose one of them")
        if not self.do_sample and (self.temperature != 1.0 or self.top_k or self.top_p != 1.0):
            raise ConfigError("temperature, top_k and top_p have no effect without do_sample=True; set it or drop them")
        if not abs(self.length_penalty) <= MAX_LENGTH_PENALTY:
            limit = MAX_LENGTH_PENALTY
            raise ConfigError(f"length_penalty is {self.length_penalty}; expected -{limit} to {limit} (0: off)")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must not be negative")
        if any(token < 0 for token in self.stop_token_ids or ()):
            raise ConfigError(f"stop_token_ids is {self.stop_token_ids}; token ids are not negative")
        if any(not text for text in self.stop_strings):
            raise ConfigError("stop_strings has an empty text, which would stop before the first token")


@dataclass(frozen=True)
class Limits:
    """What the engine refuses. Nothing is cut in silence."""

    max_prompt_chars: int = 20_000
    max_beams: int = 16
    silence_dbfs: float | None = SILENCE_DBFS  # recordings with a lower peak are answered with empty text; None: off
    # Memory for keys and values of all requests and streams at once; None: any; the torch decoder reserves it.
    max_cache_mib: int | None = None
    max_gpu_mib: int | None = None  # memory of a GPU that weights, keys and values, and computing take; None: any
    # What the header of a file may claim. Below 1 kHz nothing of speech is left, and 16 samples are made of one; above
    # 768 kHz no converter records.
    min_sample_rate: int = 1000  # Hz
    max_sample_rate: int = 768_000  # Hz
    max_channels: int = 64  # the largest microphone arrays in use have as many
    # FLAC, the densest, packs 65,535 equal samples into a frame of 14 bytes.
    max_frames_per_byte: int = 8192
    max_pipe_mib: int = 1024  # of a file that cannot be read twice: it is held in memory
    max_samples_mib: int = 8192  # of a decoded recording that is held as a whole: 18 hours at 16 kHz
    # Decode in a process of its own for each recording, so that a crash or hang of libsndfile is an AudioError. It
    # costs milliseconds a recording. Nothing of a recording reaches libsndfile in the engine's own process then.
    isolate_decoding: bool = False
    max_decoding_s: float = 10.0  # with it: of computing until a header, or the next block of samples, is there

    def __post_init__(self) -> None:
        check_types(self)
        for name in _AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.max_sample_rate < self.min_sample_rate:
            raise ConfigError(
                f"max_sample_rate is {self.max_sample_rate}; expected at least min_sample_rate, {self.min_sample_rate}"
            )
        if self.isolate_decoding and sys.platform != "linux":
            raise ConfigError("isolate_decoding is True; it needs Linux: leave it out")
        if not self.max_decoding_s > 0:
            raise ConfigError(f"max_decoding_s is {self.max_decoding_s}; it must be above 0")


_AT_LEAST_1 = (
    *(
        "max_prompt_chars",
        "max_beams",
        "max_cache_mib",
        "max_gpu_mib",
        "min_sample_rate",
        "max_sample_rate",
        "max_channels",
    ),
    *("max_frames_per_byte", "max_pipe_mib", "max_samples_mib"),
)
