"""A byte-level tokenizer for models without a published one."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<s>", "</s>")
FIRST_MERGE = 256 + len(SPECIAL_TOKENS)


def write_tokenizer(path: str | Path, texts: Iterable[str] = (), vocab_size: int = FIRST_MERGE) -> int:
    """Write a tokenizer.json of 256 bytes (ids 0-255), <s> (256), </s> (257) and merges: no text is unknown to it.

    Args:
        path: the file.
        texts: what merges are learnt from, by byte pair encoding.
        vocab_size: at most so many tokens; few texts hold fewer merges.

    Returns:
        The number of tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt = _byte_level(models.BPE())
    learnt.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
        ),
    )
    vocab = learnt.get_vocab()
    merged = sorted(set(vocab) - set(alphabet), key=lambda token: vocab[token])
    merges = [tuple(pair) for pair in json.loads(learnt.to_str())["model"]["merges"]]
    tokens = [*sorted(alphabet), *SPECIAL_TOKENS, *merged]
    tokenizer = _byte_level(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(path))
    return len(tokens)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
