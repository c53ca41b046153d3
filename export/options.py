"""What kind of bundle to make. Read by the command line, too: importing it imports no PyTorch."""

import math
from dataclasses import dataclass
from typing import Literal

from salmonrun.runtime.checks import check_types
from salmonrun.runtime.errors import ConfigError

EncoderPrecision = Literal["fp32", "fp16", "bf16", "int8"]
LlmPrecision = Literal["fp32", "int8", "int4", "nf4"]
Target = Literal["cpu", "cuda"]
AudioWindow = Literal["padded", "trimmed"]
ExportDecoder = Literal["onnx", "native", "both", "torch"]
ExportEncoder = Literal["onnx", "native", "both"]

DEFAULT_MAX_LENGTH = 4096
MOST_RECORDINGS = 16  # that tokens are compared on: PyTorch answers all at once
_NATIVE = (("cpu", "int8"), ("cpu", "int4"), ("cpu", "nf4"))  # targets and precisions of the native decoder
MIN_MAX_LENGTH = 256  # 30 s of audio, a prompt and a short answer


@dataclass(frozen=True)
class Budget:
    """How far the LLM may be from PyTorch's, along the answers to calibration recordings."""

    measure: Literal["agreement", "kl"]  # share of equal tokens; mean Kullback-Leibler divergence, nats a token
    limit: float  # at least so much agreement, at most so much divergence

    def __post_init__(self) -> None:
        check_types(self)
        if self.measure == "agreement" and not 0 < self.limit <= 1:
            raise ConfigError(f"budget is agreement={self.limit:g}; expected a share of tokens, above 0, at most 1")
        if not 0 < self.limit < math.inf:
            raise ConfigError(f"budget is kl={self.limit:g}; expected nats a token, above 0")

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """What `agreement=0.99` or `kl=0.01` says.

        Raises:
            ConfigError: it says something else.
        """
        measure, _, limit = text.partition("=")
        try:
            number = float(limit)
        except ValueError:
            number = math.nan
        if measure not in ("agreement", "kl") or math.isnan(number):
            raise ConfigError(f"budget is {text!r}; expected agreement=SHARE or kl=NATS, as agreement=0.99 or kl=0.01")
        return cls("agreement" if measure == "agreement" else "kl", number)

    def holds(self, kl: float, agreement: float) -> bool:
        """Whether what was measured is within it."""
        return agreement >= self.limit if self.measure == "agreement" else kl <= self.limit

    def __str__(self) -> str:
        """As `parse` takes it."""
        return f"{self.measure}={self.limit:g}"


@dataclass(frozen=True)
class ExportOptions:
    """What kind of bundle to make."""

    encoder_precision: EncoderPrecision = "fp32"
    llm_precision: LlmPrecision = "fp32"
    target: Target = "cpu"
    decoder: ExportDecoder | None = None  # what the bundle has weights of the LLM for; None: all that can run them
    encoder: ExportEncoder | None = None  # the same of Whisper and the audio encoder
    window: AudioWindow | None = None  # None: as the checkpoint was trained
    max_length: int = DEFAULT_MAX_LENGTH  # positions of the KV cache; never more than the LLM has
    parity_budget: float = 0.35  # quantized bundles: largest relative error (rms) of any stage
    token_agreement: float = 0.9  # quantized bundles: least share of the tokens PyTorch is sure of, on speech; 0: any
    lora_scale: float | None = None  # factor on the LLM's adapters; None: alpha / r, as they were trained
    budget: Budget | None = None  # of int4: as many matrices get 8 bits as it takes; None: none
    encoder_budget: float | None = None  # of int8: as many products stay in fp32 as it takes; None: none

    def __post_init__(self) -> None:
        check_types(self)
        if self.target == "cuda" and self.encoder_precision not in ("fp32", "fp16"):
            raise ConfigError(
                f"{self.encoder_precision} encoders run on the CPU only; "
                "use --encoder-precision fp16 with --target cuda"
            )
        if self.target == "cpu" and self.encoder_precision == "fp16":
            raise ConfigError(
                "fp16 encoders are for GPUs; use --target cuda with it, or --encoder-precision bf16 or int8 on a CPU"
            )
        if self.encoder_precision == "bf16" and self.encoder in ("onnx", "both"):
            raise ConfigError(
                "bf16 encoders run on our own kernels alone; leave out --encoder, or use --encoder-precision int8"
            )
        if self.target == "cuda" and "native" in self.encoders:
            raise ConfigError(
                f"encoder is {self.encoder!r} with target 'cuda'; our own kernels run on a CPU: use --encoder onnx"
            )
        if self.llm_precision == "nf4" and self.decoder in ("onnx", "both"):
            raise ConfigError(
                "nf4 runs in the native and the torch decoder; leave out --decoder, or use --llm-precision int4"
            )
        if "native" in self.decoders and not self._native_runs:
            raise ConfigError(
                f"decoder is {self.decoder!r} with target {self.target!r} and llm_precision {self.llm_precision!r}; "
                "the native decoder takes int8, int4 or nf4 on a CPU: use --llm-precision int4, or --decoder onnx"
            )
        if self.budget and self.llm_precision != "int4":
            raise ConfigError(
                f"llm_precision is {self.llm_precision!r} with budget {self.budget}, which begins with int4 and "
                "chooses itself: leave out --llm-precision"
            )
        if self.encoder_budget is not None and self.encoder_precision != "int8":
            raise ConfigError(
                f"encoder_budget is {self.encoder_budget:g} with {self.encoder_precision} encoders, which have no "
                "products in int8: use --encoder-precision int8"
            )
        if self.encoder_budget is not None and not 0 < self.encoder_budget < math.inf:
            raise ConfigError(f"encoder_budget is {self.encoder_budget:g}; expected a relative error above 0, as 0.02")
        if self.max_length < MIN_MAX_LENGTH:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least {MIN_MAX_LENGTH}")
        if self.parity_budget <= 0:
            raise ConfigError(f"parity_budget is {self.parity_budget}; it must be above 0")
        if not 0 <= self.token_agreement <= 1:
            raise ConfigError(f"token_agreement is {self.token_agreement}; expected a share from 0 to 1")

    @property
    def decoders(self) -> tuple[Literal["onnx", "native", "torch"], ...]:
        """Those the bundle has weights for."""
        if self.decoder is None and self.llm_precision == "nf4":
            return ("native",) if self.target == "cpu" else ("torch",)
        if self.decoder is None:
            return ("onnx", "native") if self._native_runs else ("onnx",)
        return ("onnx", "native") if self.decoder == "both" else (self.decoder,)

    @property
    def encoders(self) -> tuple[Literal["onnx", "native"], ...]:
        """What the bundle has weights of Whisper and the audio encoder for."""
        if self.encoder is None and self.encoder_precision == "bf16":
            return ("native",)
        if self.encoder is None:
            return ("onnx", "native") if self.target == "cpu" else ("onnx",)
        return ("onnx", "native") if self.encoder == "both" else (self.encoder,)

    @property
    def _native_runs(self) -> bool:
        return (self.target, self.llm_precision) in _NATIVE

    @property
    def exact(self) -> bool:
        """Whether the bundle must compute what PyTorch computes, but for rounding."""
        return (self.encoder_precision, self.llm_precision, self.target) == ("fp32", "fp32", "cpu")
