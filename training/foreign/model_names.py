"""The telling parts of a published model's name: whether a checkpoint is given another than it was made with."""

import re
from dataclasses import dataclass

FAMILIES = ("whisper", "vicuna", "deepseek", "mixtral", "mistral", "smollm", "qwen", "gemma", "phi", "llama")
VARIANTS = ("instruct", "chat", "turbo", "distil", "tiny", "small", "medium", "large", "en")
SIZE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?[bm])(?![a-z])")
VERSION = re.compile(r"(?<![\d.])v?(\d+(?:\.\d+)?)(?![\d.a-z])")


@dataclass(frozen=True)
class ModelName:
    """The telling parts of a name such as `lmsys/vicuna-13b-v1.1`; empty where it has none."""

    family: str
    version: str
    size: str
    variants: frozenset[str]


def read_name(name: str) -> ModelName | None:
    """Read a path or id; None if it names no known family, or nothing but the family."""
    base = name.rstrip("/").replace("\\", "/").rpartition("/")[2].lower()
    family = next((family for family in FAMILIES if family in base), None)
    if family is None:
        return None
    size, version = SIZE.search(base), VERSION.search(SIZE.sub("", base))
    words = frozenset(re.split(r"[^a-z]+", base)) & frozenset(VARIANTS)
    if not (size or version or words):
        return None
    return ModelName(family, version[1] if version else "", size[1] if size else "", words)


def differ(named: str, given: str) -> bool:
    """Whether two names are surely not of the same model; what one of them lacks is no difference."""
    one, other = read_name(named), read_name(given)
    if one is None or other is None:
        return False
    if one.family != other.family or one.variants != other.variants:
        return True
    return any(a and b and a != b for a, b in ((one.version, other.version), (one.size, other.size)))
