"""Recording to audio embeddings: features, Whisper, BEATs, Q-Former."""

import numpy as np

from runtime.audio import F32, Audio
from runtime.bundle import Bundle
from runtime.features import beats_tokens, fbank, log_mel, whisper_frames
from runtime.session import Device, Graph, load_graph
from runtime.stopwatch import Stopwatch


class AudioEncoder:
    """The three encoder graphs of a bundle."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self.audio = bundle.manifest.audio
        self.window = bundle.manifest.window
        self.graphs: dict[str, Graph] = {
            name: load_graph(bundle, name, device, threads)
            for name in ("whisper", "beats", "qformer")
            if name in bundle.manifest.graphs
        }

    def encode(self, audio: Audio, watch: Stopwatch | None = None) -> F32:
        """Embed one recording of at most the window's length: [N, dim of the LLM]."""
        watch = watch or Stopwatch()
        mel, bank = self.features(audio.pcm)
        watch.lap("features")
        speech = self.speech(mel)
        watch.lap("whisper")
        sounds = None if bank is None else self.sounds(bank)
        if sounds is not None:
            watch.lap("beats")
        embeds = self.join(speech, sounds)
        watch.lap("qformer")
        return embeds

    def count(self, samples: int) -> int:
        """Audio embeddings that a recording of so many samples yields."""
        frames = whisper_frames(samples, self.audio, self.window)
        if "beats" in self.graphs:
            frames = max(frames, beats_tokens(samples))
        return self.window.count(frames) * self.window.num_queries

    def features(self, pcm: F32) -> tuple[F32, F32 | None]:
        """log-mel [n_mels, 2 T] and, for BEATs, the filter bank [F, 128]."""
        return self.log_mel(pcm), self.filter_bank(pcm)

    def log_mel(self, pcm: F32) -> F32:
        """Whisper's input [n_mels, 2 T]."""
        return log_mel(pcm, self.audio, 2 * whisper_frames(len(pcm), self.audio, self.window))

    def filter_bank(self, pcm: F32) -> F32 | None:
        """BEATs' input [F, 128]; None without BEATs."""
        return fbank(pcm, self.audio) if "beats" in self.graphs else None

    def speech(self, mel: F32) -> F32:
        """Whisper states [T, d_model]."""
        return hear_speech(self.graphs["whisper"], mel)

    def sounds(self, bank: F32) -> F32:
        """BEATs states [tokens, dim]."""
        states: F32 = self.graphs["beats"].run(fbank=bank[None])[0]
        return states

    def join(self, speech: F32, audio: F32 | None) -> F32:
        """Q-Former output [N, dim of the LLM]."""
        inputs = {"speech": speech[None]} if audio is None else {"speech": speech[None], "audio": audio[None]}
        embeds: F32 = self.graphs["qformer"].run(**inputs)[0]
        return embeds


def hear_speech(graph: Graph, mel: F32) -> F32:
    """Whisper states [T, d_model] of a whole log-mel spectrogram [n_mels, 2 T]."""
    states: F32
    if graph.spec.past:  # it takes the neighbouring hops as well, of which there are none
        states = graph.run(log_mel=np.pad(mel, ((0, 0), (1, 1)))[None], start=np.zeros(1, np.int64))[0]
    else:
        states = graph.run(log_mel=mel[None])[0]
    return states
