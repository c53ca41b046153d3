"""Tokens on speech: what a bundle would say next, all along PyTorch's own answers to recordings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from salmonrun.export.options import MOST_RECORDINGS
from salmonrun.export.parity.encoders import audio_embeds, bundled, features, modules_of
from salmonrun.export.parity.greedy import MOST_TOKENS, GreedyAnswer, Question, greedy_answers
from salmonrun.export.parity.llm import opened
from salmonrun.export.progress import Progress
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import PromptConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.runtime.parity import SpeechTokens
from salmonrun.runtime.prompt import PromptIds, prompt_ids
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry, is_too_long, read_annotation
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.config import ModelConfig

F32 = npt.NDArray[np.float32]
PACKAGED = Path(__file__).with_name("recordings") / "annotation.json"  # those of the demo that have speech
PROMPT = "Write down what is said."  # where a checkpoint has no prompt of its own for this


def packaged_speech(config: ModelConfig) -> list[Entry]:
    """The recordings that come with the project, as far as the model hears so much at once."""
    entries, _ = read_annotation(PACKAGED)
    return [entry for entry in entries if not is_too_long(entry, config.audio)]


def compare_tokens(
    source: Checkpoint, bundle: Bundle, speech: Sequence[Entry], progress: Progress
) -> dict[str, SpeechTokens]:
    """How each decoder that the bundle has weights for continues PyTorch's answers; empty without recordings.

    It is given what the encoders of its own runtime heard; what others heard, too, that are of no decoder's.
    """
    manifest, entries = bundle.manifest, speech[:MOST_RECORDINGS]
    if not entries:
        return {}
    recordings = [features(source, manifest.audio, load_recording(entry, manifest.audio).pcm) for entry in entries]
    embeds = audio_embeds(modules_of(source), recordings)
    tokenizer = Tokenizer(source.tokenizer_file)
    questions = [_question(manifest.prompt, tokenizer, *pair) for pair in zip(entries, embeds, strict=True)]
    answers = greedy_answers(source, questions, frozenset(manifest.prompt.stop_token_ids), progress)
    heard = {}
    for runtime in manifest.encoder_runtimes:
        own = audio_embeds(bundled(bundle, runtime), recordings)
        heard[runtime] = [replace(question, audio_embeds=each) for question, each in zip(questions, own, strict=True)]
    expected = np.concatenate([answer.logits for answer in answers])
    compared = {}
    for decoder, encoders in pairs(manifest.llm.weights.decoders, manifest.encoder_runtimes).items():
        asked = [question for runtime in encoders.values() for question in heard[runtime]]
        logits = _continued(bundle, decoder, asked, answers * len(encoders), progress)
        for name, found in zip(encoders, np.split(logits, len(encoders)), strict=True):
            compared[name] = SpeechTokens.between(found, expected, len(recordings))
    return compared


def pairs(decoders: Sequence[str], encoders: Sequence[EncoderRuntime]) -> dict[str, dict[str, EncoderRuntime]]:
    """Decoder -> what the pair is called -> runtime of the encoders in it.

    Where all runtimes have both, each decoder has the encoders of its own, as on machines with our kernels and without;
    else all that there are.
    """
    found = {}
    for decoder in decoders:
        own = [runtime for runtime in encoders if runtime == decoder or set(decoders) != set(encoders)]
        found[decoder] = {f"{decoder}, {runtime} encoders" if len(own) > 1 else decoder: runtime for runtime in own}
    return found


def _question(config: PromptConfig, tokenizer: Tokenizer, entry: Entry, audio_embeds: F32) -> Question:
    """The recording's transcript is a good guess at the answer; what it is filled up with is none."""
    guess = tokenizer.encode(entry.text) + MOST_TOKENS * list(config.stop_token_ids[:1] or (0,))
    return Question(entry_prompt(config, tokenizer, entry), audio_embeds, guess[:MOST_TOKENS])


def entry_prompt(config: PromptConfig, tokenizer: Tokenizer, entry: Entry) -> PromptIds:
    """What a recording of an annotation is asked with."""
    text = config.tasks.get(entry.task, (PROMPT,))[0]
    return prompt_ids(config, tokenizer, text.replace("{}", entry.question))


def _continued(
    bundle: Bundle, name: str, questions: Sequence[Question], answers: Sequence[GreedyAnswer], progress: Progress
) -> F32:
    """A decoder's logits [n, V] before each token of all answers, one after the other."""
    found = []
    with opened(bundle, name, len(questions), progress) as (decoder, _):
        for question, answer in zip(questions, answers, strict=True):
            before, after = question.prompt.before, (*question.prompt.after, *answer.tokens[:-1])
            inputs = np.concatenate([decoder.embed(before), question.audio_embeds, decoder.embed(after)])
            with decoder.open(1, len(inputs)) as (slot,):
                found += decoder.forward([Chunk(slot, inputs, wanted=len(answer.tokens))])
    return np.concatenate(found)
