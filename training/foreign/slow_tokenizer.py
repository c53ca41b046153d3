"""SentencePiece models, the tokenizers of Llama 2, Vicuna and Mistral, as tokenizer.json; converted by transformers."""

from pathlib import Path

import tokenizers
import transformers

from salmonrun.runtime.errors import CheckpointError, MissingExtraError

# What a conversion must give SentencePiece's own ids for: a prompt's halves, bytes, digits, runs of spaces.
PROBES = (
    "USER: <Speech>",
    "</Speech> Recognize the speech and give me the transcription.\nASSISTANT:",
    "Gr\u00fc\u00dfe,  \u6f22\u5b57 \U0001f600\n\n12,345",
)


def convert_sentencepiece(llm: Path) -> tokenizers.Tokenizer:
    """The `tokenizer.model` of an LLM's folder.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        CheckpointError: it is no SentencePiece model, or one whose ids the conversion does not give.
    """
    path = llm / "tokenizer.model"
    try:
        import sentencepiece
    except ImportError:
        raise MissingExtraError(
            f"{path} is a SentencePiece model, and sentencepiece, which reads it, is not installed; "
            "pip install 'salmonrun[train]'"
        ) from None
    try:
        slow = sentencepiece.SentencePieceProcessor(model_file=str(path))
        # The class is named here: tokenizer_config.json may name any, and none of them is sure to be what the file is.
        fast = transformers.LlamaTokenizer.from_pretrained(llm, legacy=True).backend_tokenizer
    except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{path} cannot be converted by transformers: {error}") from error
    for text in PROBES:
        if fast.encode(text, add_special_tokens=False).ids != slow.encode(text):
            raise CheckpointError(
                f"{path}: transformers' conversion gives other tokens than SentencePiece for {text!r}; "
                "put a tokenizer.json beside it"
            )
    return fast
