"""How much of a scene was understood."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

from benchmarks.hearing.scenes import Scene
from benchmarks.hearing.ways import Said
from salmonrun.runtime.audio import SAMPLE_RATE

NEAR = SAMPLE_RATE // 2  # a text that begins or ends so near to a sentence may be about it
TWICE = 3  # an inserted word that stands within so many words of itself is said twice


@dataclass(frozen=True)
class Score:
    """Counts of one scene, heard in one way."""

    words: int
    errors: int  # words substituted, deleted, inserted
    sentences: int
    lost: int  # sentences of whose words more than half have nothing in their place
    doubled: int  # words
    invented: int  # texts where nobody speaks
    first_text_s: tuple[float, ...]  # from a sentence's beginning to the first text about it, in audio
    final_text_s: tuple[float, ...]  # from its end to its text being final

    @property
    def word_error_rate(self) -> float:
        """Errors a word."""
        return self.errors / self.words if self.words else 0.0


def score(scene: Scene, said: Sequence[Said]) -> Score:
    """Compare with what was said."""
    reference = [(word, index) for index, one in enumerate(scene.spoken) for word in one.text.lower().split()]
    heard = " ".join(one.text.lower() for one in said).split()
    invented = sum(bool(one.text.strip()) and not _near(scene, one) for one in said)
    delays = _delays(scene, said)
    if not reference:
        return Score(0, len(heard), 0, 0, 0, invented, *delays)
    aligned = jiwer.process_words(" ".join(word for word, _ in reference), " ".join(heard))
    deleted = [0] * len(scene.spoken)
    doubled = 0
    for chunk in aligned.alignments[0]:
        if chunk.type == "delete":
            for _, index in reference[chunk.ref_start_idx : chunk.ref_end_idx]:
                deleted[index] += 1
        if chunk.type == "insert":
            doubled += sum(_stands_twice(heard, at) for at in range(chunk.hyp_start_idx, chunk.hyp_end_idx))
    lost = sum(count > len(one.text.split()) / 2 for count, one in zip(deleted, scene.spoken, strict=True))
    errors = aligned.substitutions + aligned.deletions + aligned.insertions
    return Score(len(reference), errors, len(scene.spoken), lost, doubled, invented, *delays)


def _near(scene: Scene, said: Said) -> bool:
    return any(said.start < one.end + NEAR and one.start - NEAR < said.end for one in scene.spoken)


def _stands_twice(words: list[str], at: int) -> bool:
    return words[at] in words[max(0, at - TWICE) : at] + words[at + 1 : at + 1 + TWICE]


def _delays(scene: Scene, said: Sequence[Said]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of audio; of texts from streams that are about sentences."""
    first, final = [], []
    for one in said:
        about = [spoken for spoken in scene.spoken if one.start < spoken.end and spoken.start < one.end]
        if about and one.text.strip() and one.shown_s is not None and one.over_s is not None:
            first.append(one.shown_s - about[0].start / SAMPLE_RATE)
            final.append(one.over_s - about[-1].end / SAMPLE_RATE)
    return tuple(first), tuple(final)
