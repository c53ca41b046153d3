"""CIDEr-D of captions (Vedantam et al., CVPR 2015, https://arxiv.org/abs/1411.5726, section 5), without Java."""

import math
import re
from collections import Counter
from collections.abc import Sequence

NGRAM_LENGTHS = (1, 2, 3, 4)
SIGMA = 6.0  # words: how fast a caption of another length loses
SCALE = 10.0

NGram = tuple[str, ...]
Vector = dict[NGram, float]  # tf-idf weights


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One score from 0 to 10 for each recording; their mean is the corpus's CIDEr-D.

    As coco-caption computes it: term frequencies are plain counts (the paper divides them by the number of n-grams, and
    because of the clipping that would matter). Only the words differ, see `caption_words`. The document frequency of an
    n-gram is the number of recordings one of whose references has it, so the score of a recording depends on the
    others, and that of a single one is always 0.

    Args:
        hypotheses: one caption for each recording.
        references: all reference captions of each recording, at least one.

    Raises:
        ValueError: the lists differ in length, or a recording has no reference.
    """
    if len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"{len(hypotheses)} captions and {len(references)} lists of references; "
            "expected as many, and at least one reference in each"
        )
    documents = [[caption_words(reference) for reference in captions] for captions in references]
    frequency = Counter(gram for captions in documents for gram in set().union(*map(_all_ngrams, captions)))
    idf = {gram: math.log(len(documents) / count) for gram, count in frequency.items()}
    unseen = math.log(max(1, len(documents)))  # an n-gram that no reference has counts as if one had it
    return [
        SCALE * sum(_similarity(caption_words(hypothesis), words, idf, unseen) for words in captions) / len(captions)
        for hypothesis, captions in zip(hypotheses, documents, strict=True)
    ]


def caption_words(caption: str) -> list[str]:
    """Lower-case words, without punctuation; hyphens and apostrophes inside a word stay, "'s" becomes a word.

    coco-caption uses Stanford's PTB tokenizer, which is Java. The two agree on plain captions. They differ in
    contractions ("don't" stays one word here, "do n't" there), decimals ("1.5" is two words here), and symbols and
    parentheses ("%", "&" and "(" are words there, dropped here).
    """
    return re.findall(r"[^\W_]+(?:[-'](?!s\b)[^\W_]+)*|'s\b", caption.lower().replace("\u2019", "'"))


def _similarity(hypothesis: list[str], reference: list[str], idf: Vector, unseen: float) -> float:
    """Clipped cosine of the tf-idf vectors, averaged over the lengths of n-grams; less for another length."""
    cosines = 0.0
    for n in NGRAM_LENGTHS:
        ours, theirs = _tf_idf(hypothesis, n, idf, unseen), _tf_idf(reference, n, idf, unseen)
        clipped = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
        norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
        cosines += clipped / norms if norms else 0.0
    penalty = math.exp(-((len(hypothesis) - len(reference)) ** 2) / (2 * SIGMA**2))
    return penalty * cosines / len(NGRAM_LENGTHS)


def _tf_idf(words: list[str], n: int, idf: Vector, unseen: float) -> Vector:
    return {gram: count * idf.get(gram, unseen) for gram, count in Counter(_ngrams(words, n)).items()}


def _ngrams(words: list[str], n: int) -> list[NGram]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _all_ngrams(words: list[str]) -> set[NGram]:
    return {gram for n in NGRAM_LENGTHS for gram in _ngrams(words, n)}
