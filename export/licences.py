"""The licences of a checkpoint's parts, as far as the files beside their weights name them."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.yaml_file import parse_yaml

if TYPE_CHECKING:
    from salmonrun.training.checkpoint import Checkpoint

NOT_NAMED = "not named"
PARTS = ("whisper", "audio_encoder", "qformer", "llm")
# Of the names that the Hub knows, those that models have; it refuses a card with another one.
KNOWN = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "openrail"),
)


def licences(source: "Checkpoint") -> dict[str, str]:
    """Part -> its licence: of the folder that the checkpoint refers to, else of the checkpoint's own."""
    referred = {part: Path(found.path) for part, found in source.config.sources.items()}
    return {part: named_licence(referred.get(part, source.folder)) for part in PARTS}


def licence_of_all(named: Collection[str]) -> dict[str, str]:
    """How a card on the Hub names the licence of what has so many; empty where one is not known."""
    if not named or NOT_NAMED in named:
        return {}
    if len(set(named)) > 1:
        return {"license": "other", "license_name": "several-see-below"}
    (one,) = set(named)
    return {"license": one} if one in KNOWN else {"license": "other", "license_name": one}


def named_licence(folder: Path) -> str:
    """What the model card in the folder says, as the Hub's cards do: `license` between two lines of `---`.

    Without a card, the name of a file of its own for the licence. A part that is a single file has no folder: what lies
    beside it may belong to something else.
    """
    if not folder.is_dir():
        return NOT_NAMED
    header = _header(folder / "README.md")
    named = header.get("license_name") or header.get("license")
    if named:
        return ", ".join(map(str, named)) if isinstance(named, list) else str(named)
    files = sorted(path.name for path in folder.iterdir() if path.name.upper().startswith(("LICENSE", "LICENCE")))
    return f"see {files[0]} of {folder.name}" if files else NOT_NAMED


def _header(card: Path) -> dict[str, object]:
    """The card's YAML header; empty where it has none that can be read."""
    text = card.read_text(errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        header = parse_yaml(text[4:].partition("\n---")[0], str(card))
    except ConfigError:
        return {}
    return header if isinstance(header, dict) else {}
