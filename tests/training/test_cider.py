"""CIDEr-D against coco-caption's own values, a second implementation from the formula, and by hand."""

import math
import random

import numpy as np
import pytest

from salmonrun.training.evaluation.cider import caption_words, cider_d

HYPOTHESES = [
    "A dog barks while a car drives past.",
    "Rain falls on a roof",
    "birds birds birds birds sing",
    "a man speaks",
    "",
]
REFERENCES = [
    ["A dog is barking and a car passes by.", "A dog barks, then a car drives past!", "Loud barking near a road"],
    ["Rain falls heavily on a tin roof", "It rains."],
    ["Birds sing in the trees", "Two birds sing while the wind blows through the trees"],
    ["A man speaks", "A man's voice is heard in a noisy, well-known hall", "People talk"],
    ["A clock ticks"],
]
# Computed with pycocoevalcap 1.2 from PyPI: PTBTokenizer (Java 17) and Cider().compute_score, which is CIDEr-D.
PUBLISHED = [2.3709546899703957, 1.448969279283815, 0.7060253261901078, 2.66668399488696, 0.0]
PTB = {  # by the same PTBTokenizer
    "a man's t-shirt": ["a", "man", "'s", "t-shirt"],
    "the dogs' bowl": ["the", "dogs", "bowl"],
    "A noisy, well-known hall!": ["a", "noisy", "well-known", "hall"],
    "It\u2019s 3 birds; singing -- and 'chirping'...": ["it", "'s", "3", "birds", "singing", "and", "chirping"],
}


def by_formula(hypotheses: list[str], references: list[list[str]]) -> list[float]:
    """Dense vectors over the vocabulary of each n: equations 1, 2 and 5 to 7 of the paper, with counts as TF."""
    total = np.zeros(len(hypotheses))
    for n in (1, 2, 3, 4):

        def grams(text: str, n: int = n) -> list[str]:
            words = text.split()
            return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

        texts = [*hypotheses, *(text for one in references for text in one)]
        vocabulary = sorted({gram for text in texts for gram in grams(text)})
        column = {gram: i for i, gram in enumerate(vocabulary)}

        def h(text: str, column: dict[str, int] = column) -> np.ndarray:
            counts = np.zeros(len(column))
            np.add.at(counts, [column[gram] for gram in grams(text)], 1)
            return counts

        present = np.array([np.minimum(1, sum(h(text) for text in one)) for one in references])
        idf = np.log(len(references) / np.maximum(1, present.sum(axis=0)))
        for i, (hypothesis, one) in enumerate(zip(hypotheses, references, strict=True)):
            c = h(hypothesis) * idf
            for text in one:
                s = h(text) * idf
                norm = np.linalg.norm(c) * np.linalg.norm(s)
                lengths = len(hypothesis.split()) - len(text.split())
                cosine = np.minimum(c, s) @ s / norm if norm > 0 else 0
                total[i] += 10 / len(one) * np.exp(-(lengths**2) / (2 * 6**2)) * cosine / 4
    return list(total)


def test_the_published_implementation_gives_the_same() -> None:
    assert cider_d(HYPOTHESES, REFERENCES) == pytest.approx(PUBLISHED, rel=1e-12)


def test_a_second_implementation_gives_the_same() -> None:
    rng = random.Random(0)
    vocabulary = ["a", "the", "dog", "cat", "man", "rain", "car", "bird", "sings", "barks", "falls", "and", "in", "on"]

    def caption() -> str:
        return " ".join(rng.choice(vocabulary) for _ in range(rng.randint(1, 12)))

    references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(40)]
    hypotheses = [caption() if i % 3 else rng.choice(one) for i, one in enumerate(references)]
    scores = cider_d(hypotheses, references)
    assert scores == pytest.approx(by_formula(hypotheses, references), abs=1e-12)
    assert max(scores) > 5 > min(scores)


OTHER = "w x y z"  # a recording that shares no word, so that every idf is log 2


@pytest.mark.parametrize(
    ("hypothesis", "references", "expected"),
    [
        ("a b c d e", ["a b c d e"], 10.0),
        ("a b", ["a b"], 10 * 2 / 4),  # no 3-gram and no 4-gram
        ("a b", ["a b", "c d"], 10 * 2 / 4 / 2),  # the mean over references
        ("a b c d", ["a b"], 10 / 4 * (2 / math.sqrt(8) + 1 / math.sqrt(3)) * math.exp(-4 / 72)),
        ("a a a", ["a"], 10 / 4 * (1 / 3) * math.exp(-4 / 72)),  # clipped: one of three counts
        ("w x y z", ["a b c d"], 0.0),
        ("", ["a b"], 0.0),
        ("...", ["!"], 0.0),
    ],
)
def test_scores_by_hand(hypothesis: str, references: list[str], expected: float) -> None:
    assert cider_d([hypothesis, OTHER], [references, [OTHER]]) == pytest.approx([expected, 10.0])


def test_words_that_every_recording_has_do_not_count() -> None:
    assert cider_d(["the", "the"], [["the"], ["the"]]) == [0.0, 0.0]
    assert cider_d(["a b c d"], [["a b c d"]]) == [0.0]


@pytest.mark.parametrize("caption", PTB)
def test_words_are_those_of_the_ptb_tokenizer(caption: str) -> None:
    assert caption_words(caption) == PTB[caption]


@pytest.mark.parametrize(("hypotheses", "references"), [(["a"], []), (["a", "b"], [["a"], []])])
def test_recordings_without_references_are_refused(hypotheses: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="at least one reference in each"):
        cider_d(hypotheses, references)
