"""A bundle's card on the Hugging Face Hub: the bundle's own, with how to have it from there, and how good it is."""

import re
from collections.abc import Sequence
from typing import Any

from salmonrun.export.card import CARD, make_card
from salmonrun.export.quality import Quality
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.manifest import Manifest
from salmonrun.runtime.parity import read_parity

FROM_HUB = "From the Hub"
QUALITY = "How good it is"
_TASK_TYPES = {"asr": "automatic-speech-recognition"}  # as the Hub names them


def hub_card(bundle: Bundle, repo_id: str, revision: str | None, quality: Sequence[Quality]) -> str:
    """The text of README.md in a repository.

    The bundle's own is taken as it was edited, and made anew if it is gone; the two sections that are added replace
    those of an earlier push.

    Raises:
        ConfigError: the header of the bundle's own is not YAML.
    """
    from huggingface_hub import EvalResult, ModelCard
    from yaml import YAMLError

    own, manifest = bundle.folder / CARD, bundle.manifest
    text = own.read_text("utf-8") if own.is_file() else make_card(manifest, read_parity(bundle))
    text = _with_section(text, FROM_HUB, _from_hub(manifest, repo_id, revision), before="Run it")
    if quality:
        text = _with_section(text, QUALITY, _quality(quality), before="What it was checked for")
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"the header of {own} is not what the Hub reads ({error}); mend it, or remove it") from error
    data: Any = card.data  # ModelCardData, which the class does not say
    data.library_name = data.library_name or "salmonrun"
    results = [
        EvalResult(
            task_type=_TASK_TYPES.get(one.task, "audio-text-to-text"),
            dataset_type="audio",
            dataset_name=one.dataset,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for one in quality
        for kind, value, name in _metrics(one)
    ]
    if results:
        data.model_name, data.eval_results = manifest.provenance.model, results
    return f"---\n{data.to_yaml()}\n---\n{card.text}"


def _with_section(text: str, title: str, body: str, before: str) -> str:
    """A card with a section in front of another, or at the end; one of that title is replaced."""
    without = re.sub(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    section = f"## {title}\n\n{body}\n"
    head, found, rest = without.partition(f"\n## {before}\n")
    return f"{head}\n{section}{found}{rest}" if found else f"{without.rstrip()}\n\n{section}"


def _from_hub(manifest: Manifest, repo_id: str, revision: str | None) -> str:
    name = f"{repo_id}@{revision}" if revision else repo_id
    pinned = f', revision="{revision}"' if revision else ""
    asr = "asr" in manifest.prompt.tasks
    option, argument = ("", 'task="asr"') if asr else (' --prompt "..."', 'prompt="Describe the recording."')
    return (
        "With salmonrun and its extras `cpu` and `hub`; every file is hashed before it is used.\n\n"
        f"```sh\nsalmonrun transcribe {name} talk.wav{option}\nsalmonrun serve {name}\n```\n\n"
        f'```python\nfrom salmonrun import Engine\n\nengine = Engine.from_pretrained("{repo_id}"{pinned})\n'
        f'print(engine.generate("talk.wav", {argument}).text)\n```\n'
    )


def _quality(quality: Sequence[Quality]) -> str:
    rows = [f"| {one.dataset} | {one.task} | {one.score.entries} | {_in_words(one)} |" for one in quality]
    head = "By `salmonrun evaluate`, of this bundle; word error rates after Whisper's English normalizer.\n"
    return "\n".join((head, "| recordings | task | answers | score |", "|---|---|---|---|", *rows, ""))


def _in_words(one: Quality) -> str:
    return ", ".join(f"{name} {value:g}" + ("%" if kind == "wer" else "") for kind, value, name in _metrics(one))


def _metrics(one: Quality) -> list[tuple[str, float, str]]:
    """Kind, value and name, as EvalResult takes them."""
    score = one.score
    if score.captions:
        return [("cider", round(score.captions.cider_d, 3), "CIDEr-D (0 to 10)")]
    exact = ("exact_match", round(score.exact, 4), "exact matches")
    return [("wer", round(100 * score.wer, 2), "WER"), exact] if one.task == "asr" else [exact]
