"""What Prometheus is told, by the names that other servers of language models use."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from salmonrun.runtime.result import Timings
from salmonrun.runtime.schedule import Round

_SHORT_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_LONG_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FACTOR = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 5)


class Metrics:
    """Of one server: a registry of its own, so that several may live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "salmonrun_requests", "Requests that were answered.", ["endpoint", "status"], registry=registry
        )
        self.latency = Histogram(
            "salmonrun_e2e_request_latency_seconds",
            "From a request's first byte to the last one of its answer.",
            ["endpoint"],
            buckets=_LONG_S,
            registry=registry,
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "That a request waited before it was begun.", _LONG_S
        )
        self.first_token = self._histogram(
            "time_to_first_token_seconds",
            "From a request's turn to its first text.",
            _SHORT_S,
        )
        self.per_token = self._histogram(
            "time_per_output_token_seconds", "Between tokens behind the first: chat completions.", _SHORT_S
        )
        self.factor = self._histogram(
            "real_time_factor", "Seconds of work for a second of audio: transcriptions and streams.", _FACTOR
        )
        self.lag = self._histogram(
            "realtime_lag_seconds", "How far a live stream is behind real time when it was heard.", _SHORT_S
        )
        self.tokens = Counter("salmonrun_generation_tokens", "Tokens that were generated.", registry=registry)
        self.audio = Counter("salmonrun_audio_seconds", "Audio that was heard.", registry=registry)
        self.refused = Counter(
            "salmonrun_streams_refused", "Live streams that were refused, since others would suffer.", registry=registry
        )
        self.given_up = Counter(
            "salmonrun_streams_given_up", "Live streams that could not be kept, and were closed.", registry=registry
        )
        self.rounds = Counter("salmonrun_iterations", "Rounds of the decoder.", registry=registry)
        self.round_tokens = self._histogram("iteration_tokens", "Positions that a round appended.", _SIZES)
        self.round_searches = self._histogram(
            "iteration_batch_size", "Searches that took part in a round: answers, windows, updates.", _SIZES
        )
        self.prompt_tokens = Counter(
            "salmonrun_prompt_tokens",
            "Positions of prompts, audio and drafts in the LLM.",
            registry=registry,
        )
        self.decode_tokens = Counter(
            "salmonrun_decode_tokens",
            "Positions of answers in the LLM, of beams each.",
            registry=registry,
        )
        self.left_out = Counter(
            "salmonrun_stream_updates_left_out", "Updates of live streams that were late.", registry=registry
        )

    def round(self, done: Round) -> None:
        """Of the decoder; in the thread that ran it."""
        self.rounds.inc()
        self.round_searches.observe(done.searches)
        self.round_tokens.observe(done.positions)
        self.prompt_tokens.inc(done.prompts)
        self.decode_tokens.inc(done.steps)

    def answered(self, timings: Timings, queued_s: float) -> None:
        """An answer about one recording."""
        self.queue_time.observe(queued_s)
        self.audio.inc(timings.audio_s)
        self.tokens.inc(timings.tokens)
        if timings.token_s:
            self.first_token.observe(timings.ttft_s)
        if timings.tokens > 1:
            self.per_token.observe(timings.tpot_s)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(f"salmonrun_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"salmonrun_{name}", what, buckets=buckets, registry=self._registry)
