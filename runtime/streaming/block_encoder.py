"""Recording to audio embeddings while it is still being recorded: each block is encoded once, when it is complete."""

from dataclasses import dataclass

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.config import Block, FbankConfig
from salmonrun.runtime.encoder import AUDIO_ENCODER, WHISPER, AudioEncoder
from salmonrun.runtime.encoders.part import Past
from salmonrun.runtime.features import FBANK_LENGTH, HOP, MELS_PER_FRAME, audio_tokens, fbank, log_mel, whisper_frames
from salmonrun.runtime.finite import check_finite

FRAME = HOP * MELS_PER_FRAME  # samples of one of Whisper's frames
# Samples behind a block that its features need: the filter bank's last frame starts a hop before the block's end.
# Whisper's convolutions hear one hop of the next block, of which they need 200 samples.
LOOK_AHEAD = FBANK_LENGTH - HOP


@dataclass(frozen=True)
class _Kept:
    """What is known of the blocks before. Arrays are never written to: a copy of this is a fork."""

    frames: int  # encoded so far
    whisper: Past
    audio: Past


class BlockEncoder:
    """One recording, heard in blocks.

    The embeddings are those of the PyTorch model with the same `Block`: convolutions go on from block to block, and
    attention sees the keys and values of the look-back.
    """

    def __init__(self, encoder: AudioEncoder, block: Block) -> None:
        self._encoder = encoder
        self._block = block
        parts = encoder.parts
        self._kept = _Kept(
            0,
            parts["whisper"].nothing_past(),
            parts["audio_encoder"].nothing_past() if "audio_encoder" in parts else {},
        )

    @property
    def frames(self) -> int:
        """Whisper frames encoded so far."""
        return self._kept.frames

    def fork(self) -> "BlockEncoder":
        """Another one that goes on from here."""
        other = BlockEncoder(self._encoder, self._block)
        other._kept = self._kept
        return other

    def complete(self, samples: int) -> bool:
        """Whether a recording of so many samples holds a block that is not encoded yet."""
        return samples >= (self._kept.frames + self._block.size) * FRAME + LOOK_AHEAD

    def encode(self, pcm: F32) -> list[F32]:
        """Embeddings [N, dim] of each block that has become complete, given all the recording so far."""
        embeds = []
        while self.complete(len(pcm)):
            end = self._kept.frames + self._block.size
            longest = round(self._encoder.audio.max_s * SAMPLE_RATE) // FRAME
            embeds.append(self._encode(pcm, end, end, max(longest, end + 1)))
        return embeds

    def finish(self, pcm: F32) -> list[F32]:
        """The same of all that is left, now that the recording is `pcm` and nothing follows."""
        total = whisper_frames(len(pcm), self._encoder.audio, self._encoder.window)
        tokens = audio_tokens(len(pcm), self._encoder.fbank) if self._encoder.fbank else 0
        embeds = []
        while self._kept.frames < total:
            end = min(self._kept.frames + self._block.size, total)
            if end - self._kept.frames < self._encoder.window.frames:
                break  # fills no window of the Q-Former
            embeds.append(self._encode(pcm, end, min(end, tokens), total))
        return embeds

    def _encode(self, pcm: F32, end: int, tokens_end: int, total: int) -> F32:
        """Embeddings of the frames up to `end` of `total`; the audio encoder has tokens up to `tokens_end`."""
        start = self._kept.frames
        speech, whisper = self._whisper(pcm, start, end, total)
        states, audio = self._audio_encoder(pcm, start, tokens_end, self._encoder.fbank)
        self._kept = _Kept(end, self._within_lookback(whisper), self._within_lookback(audio))
        return self._encoder.qformer(speech, states)

    def _whisper(self, pcm: F32, start: int, end: int, total: int) -> tuple[F32, Past]:
        first, last = MELS_PER_FRAME * start - 1, MELS_PER_FRAME * end + 1
        hops = MELS_PER_FRAME * total
        mel = log_mel(pcm, self._encoder.audio, hops, max(first, 0), min(last, hops))
        mel = np.pad(mel, ((0, 0), (max(0, -first), max(0, last - hops))))  # what the convolution pads at both ends
        part = self._encoder.parts["whisper"]
        states, kept = part.run_on(self._kept.whisper, log_mel=mel[None], start=np.array([start], np.int64))
        check_finite(states, WHISPER)
        return states[0], kept

    def _audio_encoder(self, pcm: F32, start: int, end: int, config: FbankConfig | None) -> tuple[F32 | None, Past]:
        if config is None:
            return None, {}
        part = self._encoder.parts["audio_encoder"]
        if end <= start:  # the recording ends before a patch is full
            return np.zeros((0, part.width), np.float32), self._kept.audio
        first, last = (token // config.patch_tokens * config.patch_frames * HOP for token in (start, end))
        bank = fbank(pcm[first : last + LOOK_AHEAD], config)
        states, kept = part.run_on(self._kept.audio, fbank=bank[None])
        check_finite(states, AUDIO_ENCODER)
        return states[0], kept

    def _within_lookback(self, kept: Past) -> Past:
        """Keys and values of the last frames (axis 1) alone; what convolutions keep is as long as it must be."""
        return {
            name: value if name == "past_conv" else value[:, max(0, value.shape[1] - self._block.lookback) :]
            for name, value in kept.items()
        }
