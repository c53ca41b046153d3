"""README.md of a bundle: what it is, what it was checked for, and how to run it, for whoever is handed the folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from salmonrun.export.licences import licence_of_all, licences
from salmonrun.runtime.manifest import Manifest
from salmonrun.runtime.parity import Parity

if TYPE_CHECKING:
    from salmonrun.training.checkpoint import Checkpoint

CARD = "README.md"
TAGS = ("salmonrun", "salmonn", "audio", "speech", "onnx")

_SMALL = 2**17  # bytes

RUNNING = """## Run it

In this folder, with salmonrun and its extra `cpu` installed:

```sh
salmonrun check .                    # does this machine compute what the exporter did?
salmonrun transcribe . talk.wav{option}
```

```python
from salmonrun import Engine

print(Engine.load(".").generate("talk.wav", {argument}).text)
```
"""


def write_card(source: "Checkpoint", manifest: Manifest, parity: Parity, folder: Path) -> None:
    """Write it. The manifest does not list it: people may edit it."""
    (folder / CARD).write_text(make_card(manifest, parity, source))


def make_card(manifest: Manifest, parity: Parity, source: "Checkpoint | None" = None) -> str:
    """It, with its header for the Hub; without its checkpoint, nothing is known of the parts' licences."""
    parts = [_parts(source, manifest)] if source else []
    header = yaml.safe_dump(_metadata(manifest, source), sort_keys=False)
    sections = (f"---\n{header}---\n", _head(manifest), _running(manifest), _files(manifest), *parts, _checked(parity))
    return "\n".join((*sections, _origin(manifest)))


def _metadata(manifest: Manifest, source: "Checkpoint | None") -> dict[str, object]:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    metadata: dict[str, object] = {"library_name": "salmonrun", "pipeline_tag": "audio-text-to-text"}
    if source:
        stored = manifest.precisions(manifest.llm.weights.decoders[0])
        metadata |= licence_of_all([licence for part, licence in licences(source).items() if part in stored])
        hubs = [part.hub.partition("@")[0].split("/") for _, part in source.config.sources.items() if part.hub]
        if hubs:
            metadata["base_model"] = list(dict.fromkeys("/".join(names[:2]) for names in hubs))
    tasks = {"asr": "automatic-speech-recognition", "caption": "audio-captioning"}
    return {**metadata, "tags": [*TAGS, *(tag for task, tag in tasks.items() if task in manifest.prompt.tasks)]}


def _head(manifest: Manifest) -> str:
    audio = manifest.audio
    streams = (
        "hears streams in blocks, each encoded once" if manifest.streaming else "hears streams in a growing window"
    )
    tasks = "\n".join(f"| `{task}` | {_cell(prompts[0])} |" for task, prompts in manifest.prompt.tasks.items())
    return (
        f"# {manifest.provenance.model}\n\n"
        f"An audio language model as a bundle of salmonrun (format {manifest.format_version}, target "
        f"{manifest.target}): ONNX graphs and weights, no pickles and no code. It answers prompts about recordings of "
        f"{audio.min_s:g} to {audio.max_s:g} s, longer ones in windows, and {streams}.\n"
        + (f"\n| task | prompt |\n|---|---|\n{tasks}\n" if tasks else "")
    )


def _running(manifest: Manifest) -> str:
    if "asr" in manifest.prompt.tasks:
        return RUNNING.format(option="", argument='task="asr"')
    return RUNNING.format(option=' --prompt "Describe the recording."', argument='prompt="Describe the recording."')


def _files(manifest: Manifest) -> str:
    """Sizes, the largest first; what is small stands together."""
    runs = {graph.weights: "ONNX Runtime" for graph in manifest.graphs.values()}
    runs |= {graph.file: "ONNX Runtime" for graph in manifest.graphs.values()}
    runs |= dict.fromkeys(manifest.native_files, "our own kernels for CPUs")
    runs |= {manifest.llm.weights.torch.file: "PyTorch"} if manifest.llm.weights.torch else {}
    sizes = {name: spec.size for name, spec in manifest.files.items()}
    large = sorted((name for name in sizes if sizes[name] >= _SMALL), key=lambda name: -sizes[name])
    rows = [f"| `{name}` | {sizes[name] / 2**20:.1f} | {runs.get(name, '')} |" for name in large]
    rest = [size for name, size in sizes.items() if name not in large]
    rows.append(f"| {len(rest)} more | {sum(rest) / 2**20:.1f} | |")
    head = (
        f"## What is in it\n\n{sum(sizes.values()) / 2**20:.1f} MiB in {len(sizes)} files. What is there for both runs "
        "on our own kernels where these were built, and else on ONNX Runtime.\n"
    )
    return "\n".join((head, "| file | MiB | run by |", "|---|---|---|", *rows, ""))


def _parts(source: "Checkpoint", manifest: Manifest) -> str:
    config, llm, named = source.config, manifest.llm, licences(source)
    decoder = manifest.llm.weights.decoders[0]
    stored = manifest.precisions(decoder)
    encoder = config.audio_encoder
    rows = {
        "whisper": f"Whisper encoder, {config.whisper.layers} layers of {config.whisper.d_model}",
        "audio_encoder": f"{encoder.kind} encoder" if encoder else "",
        "qformer": f"window-level Q-Former, {config.qformer.layers} layers of {config.qformer.dim}",
        "llm": f"{config.llm['model_type']}, {llm.layers} layers of {llm.dim}, {llm.vocab_size} tokens",
    }
    lines = [
        f"| {part} | {what} | {stored[part]} | {named[part]} |"
        for part, what in rows.items()
        if part in stored and what
    ]
    head = ("## Parts and their licences\n", "| part | what | weights | licence |", "|---|---|---|---|")
    note = (
        f"The output layer is {stored['lm_head']}. Licences are what the files beside a part's weights name; one that "
        "is not named is not known: ask where the part came from."
    )
    return "\n".join((*head, *lines, "", note, ""))


def _checked(parity: Parity) -> str:
    rows = "\n".join(f"| {name} | {e.max_abs:.1e} | {e.relative:.1e} |" for name, e in parity.measured.items())
    window = (
        "The checkpoint hears padded windows, this bundle trimmed ones; on PyTorch's side, that alone moves the "
        f"logits by {parity.window.relative:.1e}.\n"
        if parity.window
        else ""
    )
    return (
        f"## What it was checked for\n\nAgainst PyTorch, on {parity.audio_s:.1f} s of audio, before it was written. "
        f"Demanded: {parity.demanded}.\n\n| stage | largest difference | relative error |\n|---|---|---|\n{rows}\n\n"
        f"{parity.tokens_agreeing} of {parity.tokens_compared} greedy tokens are PyTorch's choice.\n{_speech(parity)}"
        f"{window}{_choice(parity)}{_encoders(parity)}\n"
        "This says how near the bundle is to its checkpoint, and not how good either is: `salmonrun evaluate` measures "
        "that on annotated recordings.\n"
    )


def _speech(parity: Parity) -> str:
    recordings = next((tokens.recordings for tokens in parity.speech.values()), 0)
    lines = "".join(f"- {line}.\n" for line in parity.on_speech)
    return f"\nAlong PyTorch's own answers to {recordings} recordings of speech:\n\n{lines}" if lines else ""


def _choice(parity: Parity) -> str:
    choice = parity.choice
    if choice is None:
        return ""
    rows = "".join(
        f"| {one.setting}{', chosen' if one.setting == choice.chosen else ''} | {one.bytes / 2**20:.1f} | "
        f"{one.kl:.2g} | {one.agreement:.2%} |\n"
        for one in choice.tried
    )
    return (
        f"\nThe LLM's matrices are stored in the smallest way within `{choice.budget}`, beside PyTorch along "
        f"{choice.tokens} tokens of the answers to {choice.recordings} recordings:\n\n"
        f"| matrices | MiB | KL divergence, nats a token | same token |\n|---|---|---|---|\n{rows}"
    )


def _encoders(parity: Parity) -> str:
    """Which products of theirs stay in float32."""
    rows = "".join(f"- {one}: {', '.join(f'`{name}`' for name in one.fp32) or 'none'}.\n" for one in parity.encoders)
    return f"\nBeside int8, products of the encoders that cost most in it:\n\n{rows}" if rows else ""


def _origin(manifest: Manifest) -> str:
    made = manifest.provenance
    rows = "\n".join(f"| `{name}` | `{digest}` |" for name, digest in made.sources.items())
    scale = f" Adapters were merged into the LLM with the factor {made.lora_scale:g}." if made.lora_scale else ""
    pruned = "".join(f"- {step.part}: {step}.\n" for step in made.pruning)
    smaller = f"\nParts were made smaller than they were trained:\n\n{pruned}" if pruned else ""
    taught = "".join(f"- {step}.\n" for step in made.distillation)
    learned = f"\nIt learned from a teacher:\n\n{taught}" if taught else ""
    files = f"| file | sha256 |\n|---|---|\n{rows}\n"
    return f"## Where it comes from\n\nWritten by {made.exporter}.{scale}\n{smaller}{learned}\n{files}"


def _cell(text: str) -> str:
    """Text in a table."""
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"
