"""The token that SALMONN's training adds to an LLM's tokenizer, in folders whose tokenizer was saved behind it."""

import json
from pathlib import Path
from typing import Any

PAD = "[PAD]"  # tokenizer.add_special_tokens({"pad_token": "[PAD]"}): SALMONN's models/salmonn.py


def without_pad(tokenizer: Path, rows: int) -> str | None:
    """A tokenizer.json without the `[PAD]` behind the LLM's own tokens, or None: there is none.

    SALMONN gives the LLM a row for it, which it saves only where the output layer is tied, and which no prompt asks for
    and no answer says. One that the LLM itself has a row for is a token like others.

    Args:
        tokenizer: its file.
        rows: of the LLM's embedding table.
    """
    content: dict[str, Any] = json.loads(tokenizer.read_bytes())
    added = content.get("added_tokens") or []
    kept = [token for token in added if (token.get("content"), token.get("id")) != (PAD, rows)]
    if len(kept) == len(added):
        return None
    padding = None if (content.get("padding") or {}).get("pad_id") == rows else content.get("padding")
    return json.dumps(content | {"added_tokens": kept, "padding": padding}, ensure_ascii=False)
