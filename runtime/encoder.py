"""Recording to audio embeddings: features, Whisper, the audio encoder, Q-Former."""

import numpy as np

from salmonrun.runtime.arrays import Array
from salmonrun.runtime.audio import F32, Audio
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.device import Device, is_gpu
from salmonrun.runtime.encoders import EncoderName, choose, load_encoders
from salmonrun.runtime.encoders.part import EncoderPart
from salmonrun.runtime.features import audio_tokens, fbank, log_mel, whisper_frames
from salmonrun.runtime.finite import check_finite
from salmonrun.runtime.session import Graph, load_graph
from salmonrun.runtime.stopwatch import Stopwatch

# What they are called where their output is refused.
WHISPER = "Whisper encoder"
AUDIO_ENCODER = "audio encoder"
QFORMER = "Q-Former"


class AudioEncoder:
    """The encoders of a bundle: Whisper, the audio encoder if there is one, the Q-Former."""

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        threads: int,
        encoder: EncoderName = "auto",
        release_weights: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.device = device
        self.audio = bundle.manifest.audio
        self.fbank = bundle.manifest.fbank
        self.window = bundle.manifest.window
        self.runtime = choose(bundle, encoder, device, release_weights)
        self.parts = load_encoders(bundle, self.runtime, device, threads, release_weights, limits)
        self.qformer_graph = load_graph(bundle, "qformer", device, threads, limits)

    def encode(self, audio: Audio, watch: Stopwatch | None = None) -> F32:
        """Embed one recording of at most the window's length: [N, dim of the LLM].

        Raises:
            NotFiniteError: of one of the encoders, or the Q-Former.
        """
        watch = watch or Stopwatch()
        mel, bank = self.features(audio.pcm)
        watch.lap("features")
        if is_gpu(self.device):
            return self._encode_there(mel, bank, watch)
        speech = self.whisper(mel)
        watch.lap("whisper")
        states = None if bank is None else self.audio_encoder(bank)
        if states is not None:
            watch.lap("audio_encoder")
        embeds = self.qformer(speech, states)
        watch.lap("qformer")
        return embeds

    def _encode_there(self, mel: F32, bank: F32 | None, watch: Stopwatch) -> F32:
        """The same on a GPU: states stay there, and the embeddings alone are brought here."""
        graphs = {name: part for name, part in self.parts.items() if isinstance(part, Graph)}
        states = {"speech": graphs["whisper"].run_there(**whisper_inputs(graphs["whisper"], mel))}
        watch.lap("whisper")
        if bank is not None:
            states["audio"] = graphs["audio_encoder"].run_there(fbank=bank[None])
            watch.lap("audio_encoder")
        embeds: F32 = self.qformer_graph.run_there(**states).numpy()[0]
        check_finite(embeds, QFORMER)
        watch.lap("qformer")
        return embeds

    def count(self, samples: int) -> int:
        """Audio embeddings that a recording of so many samples yields."""
        frames = whisper_frames(samples, self.audio, self.window)
        if self.fbank is not None:
            frames = max(frames, audio_tokens(samples, self.fbank))
        return self.window.count(frames) * self.window.num_queries

    def features(self, pcm: F32) -> tuple[F32, F32 | None]:
        """log-mel [n_mels, 2 T] and, for an audio encoder, the filter bank [F, bins]."""
        return self.log_mel(pcm), self.filter_bank(pcm)

    def log_mel(self, pcm: F32) -> F32:
        """Whisper's input [n_mels, 2 T]."""
        return log_mel(pcm, self.audio, 2 * whisper_frames(len(pcm), self.audio, self.window))

    def filter_bank(self, pcm: F32) -> F32 | None:
        """The audio encoder's input [F, bins]; None without one."""
        return None if self.fbank is None else fbank(pcm, self.fbank)

    def whisper(self, mel: F32) -> F32:
        """Whisper's states [T, d_model] of a log-mel spectrogram [n_mels, 2 T]."""
        states = run_whisper(self.parts["whisper"], mel)
        check_finite(states, WHISPER)
        return states

    def audio_encoder(self, bank: F32) -> F32:
        """The audio encoder's states [tokens, dim] of a filter bank [F, bins]."""
        states: F32 = self.parts["audio_encoder"].run(fbank=bank[None])[0]
        check_finite(states, AUDIO_ENCODER)
        return states

    def qformer(self, speech: F32, audio: F32 | None) -> F32:
        """Audio embeddings [N, dim of the LLM] of both encoders' states."""
        inputs = {"speech": speech[None]} if audio is None else {"speech": speech[None], "audio": audio[None]}
        embeds: F32 = self.qformer_graph.run(**inputs)[0]
        check_finite(embeds, QFORMER)
        return embeds


def run_whisper(whisper: EncoderPart, mel: F32) -> F32:
    """Whisper's states [T, d_model] of a whole log-mel spectrogram [n_mels, 2 T]."""
    states: F32 = whisper.run(**whisper_inputs(whisper, mel))[0]
    return states


def whisper_inputs(whisper: EncoderPart, mel: F32) -> dict[str, Array]:
    """What Whisper is given of a whole log-mel spectrogram [n_mels, 2 T]."""
    if whisper.hears_blocks:  # it takes the neighbouring hops as well, of which there are none
        return {"log_mel": np.pad(mel, ((0, 0), (1, 1)))[None], "start": np.zeros(1, np.int64)}
    return {"log_mel": mel[None]}
