"""The engine on a tiny model: streaming, stopping, listening, threads, and refusals."""

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import soundfile

from salmonrun.runtime import Engine, GenerationConfig, Limits, Result, load_audio
from salmonrun.runtime.errors import (
    AudioError,
    AudioTooLongError,
    CapacityError,
    ConfigError,
    PromptError,
    UnknownTaskError,
)
from salmonrun.runtime.tokenizer import REPLACEMENT
from tests.helpers.answers import BEAMS, EACH_SEARCH, SAMPLED, VARIED, answer, collect, noise, requests

F32 = npt.NDArray[np.float32]

# Streaming


@EACH_SEARCH
def test_pieces_make_up_the_text(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    pieces, result = collect(tiny_engine.generate_iter(speech, task="asr", config=config))
    assert "".join(pieces) == result.text != ""
    assert len(pieces) > 1
    assert all(pieces)
    assert answer(result) == answer(tiny_engine.generate(speech, task="asr", config=config))


@EACH_SEARCH
def test_text_is_the_decoded_tokens(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    result = tiny_engine.generate(speech, task="asr", config=config)
    assert result.text == tiny_engine.model.tokenizer.decode(result.token_ids)


def test_bad_input_is_refused_before_the_first_piece(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(UnknownTaskError):
        tiny_engine.generate_iter(speech, task="translate")
    with pytest.raises(AudioError):
        tiny_engine.generate_iter(b"", task="asr")


def test_closing_early_leaves_the_engine_as_it_was(tiny_engine: Engine, speech: Path) -> None:
    whole = tiny_engine.generate(speech, task="asr", config=VARIED)
    pieces = tiny_engine.generate_iter(speech, task="asr", config=VARIED)
    first = next(pieces)
    pieces.close()
    with pytest.raises(StopIteration):
        next(pieces)
    assert whole.text.startswith(first)
    assert answer(tiny_engine.generate(speech, task="asr", config=VARIED)) == answer(whole)


# Stopping


@EACH_SEARCH
def test_length(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    result = tiny_engine.generate(speech, task="asr", config=replace(config, stop_token_ids=()))
    assert (len(result.token_ids), result.finish_reason) == (24, "length")


def test_one_token(tiny_engine: Engine, speech: Path) -> None:
    whole = tiny_engine.generate(speech, task="asr", config=VARIED)
    result = tiny_engine.generate(speech, task="asr", config=replace(VARIED, max_new_tokens=1))
    assert result.token_ids == whole.token_ids[:1]
    assert result.timings.tpot_s == 0


@pytest.mark.parametrize("position", [0, 1, 10, 23])
def test_stop_token(tiny_engine: Engine, speech: Path, position: int) -> None:
    free = tiny_engine.generate(speech, task="asr", config=VARIED).token_ids
    config = replace(VARIED, stop_token_ids=(free[position], 257))
    result = tiny_engine.generate(speech, task="asr", config=config)
    assert (result.token_ids, result.finish_reason) == (free[: position + 1], "stop")


def test_stop_token_of_beams(tiny_engine: Engine, speech: Path) -> None:
    free = tiny_engine.generate(speech, task="asr", config=BEAMS).token_ids
    config = replace(BEAMS, stop_token_ids=tuple(free[3:6]), early_stopping=True)
    result = tiny_engine.generate(speech, task="asr", config=config)
    assert result.finish_reason == "stop"
    assert result.token_ids[-1] in free[3:6]
    assert not set(result.token_ids[:-1]) & set(free[3:6])


def test_stop_tokens_default_to_the_bundles(tiny_engine: Engine, speech: Path) -> None:
    free = replace(VARIED, max_new_tokens=257, stop_token_ids=())
    tokens = tiny_engine.generate(speech, task="asr", config=free).token_ids
    assert 257 in tokens[:-1]  # no token twice: nearly all of the 258 occur
    result = tiny_engine.generate(speech, task="asr", config=replace(free, stop_token_ids=None))
    assert (result.token_ids, result.finish_reason) == (tokens[: tokens.index(257) + 1], "stop")


@pytest.mark.parametrize("minimum", [1, 5])
def test_min_new_tokens(tiny_engine: Engine, speech: Path, minimum: int) -> None:
    """Every token but one stops: that one is all there is until any may come."""
    only = 7
    # The penalty keeps the model from repeating that one of its own will.
    config = GenerationConfig(stop_token_ids=tuple(set(range(258)) - {only}), repetition_penalty=1e6)
    assert len(tiny_engine.generate(speech, task="asr", config=config).token_ids) == 1
    result = tiny_engine.generate(speech, task="asr", config=replace(config, min_new_tokens=minimum))
    assert result.token_ids[:-1] == [only] * minimum
    assert result.token_ids[-1] != only
    assert result.finish_reason == "stop"


def test_stop_token_outside_the_vocabulary(tiny_engine: Engine, speech: Path) -> None:
    config = replace(VARIED, stop_token_ids=(99_999,), min_new_tokens=1)
    with pytest.raises(ConfigError, match="99999"):
        tiny_engine.generate(speech, task="asr", config=config)


@pytest.mark.parametrize("length", [1, 2])
def test_stop_strings_cut_the_text(tiny_engine: Engine, speech: Path, length: int) -> None:
    config = replace(VARIED, max_new_tokens=60)
    whole = tiny_engine.generate(speech, task="asr", config=config)
    strings = {whole.text[i : i + length] for i in range(len(whole.text) - length)}
    certain = sorted(string for string in strings if REPLACEMENT not in string)
    assert len(certain) >= 3
    for string in certain[::5]:
        pieces, result = collect(
            tiny_engine.generate_iter(speech, task="asr", config=replace(config, stop_strings=(string[-1], string)))
        )
        assert result.text == whole.text[: min(whole.text.index(string[-1]), whole.text.index(string))]
        assert "".join(pieces) == result.text
        assert result.finish_reason == "stop"
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]
        assert string[-1] in tiny_engine.model.tokenizer.decode(result.token_ids)


def test_stop_strings_cut_the_text_of_beams(tiny_engine: Engine, speech: Path) -> None:
    whole = tiny_engine.generate(speech, task="asr", config=BEAMS)
    string = next(char for char in whole.text if char != REPLACEMENT)
    result = tiny_engine.generate(speech, task="asr", config=replace(BEAMS, stop_strings=(string,)))
    assert string not in result.text


# Cancelling


@EACH_SEARCH
def test_cancelled_before_the_first_token(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    cancel = threading.Event()
    cancel.set()
    result = tiny_engine.generate(speech, task="asr", config=config, cancel=cancel)
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "cancelled")


def test_cancelled_after_a_piece(tiny_engine: Engine, speech: Path) -> None:
    whole = tiny_engine.generate(speech, task="asr", config=VARIED)
    cancel = threading.Event()

    def cancelling() -> Generator[str, None, Result]:
        pieces = tiny_engine.generate_iter(speech, task="asr", config=VARIED, cancel=cancel)
        yield next(pieces)
        cancel.set()
        return (yield from pieces)

    _, result = collect(cancelling())
    assert result.finish_reason == "cancelled"
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert 0 < len(result.token_ids) < 24


# Silence


@pytest.mark.parametrize("level", [0.0, 0.5e-4])
def test_silence_is_answered_with_nothing(tiny_engine: Engine, level: float) -> None:
    silence = np.full(32_000, level, np.float32)
    result = tiny_engine.generate(silence, task="asr", sample_rate=16000)
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "stop")
    assert len(result.notes) == 1
    assert result.notes[0].startswith("silence: the peak is -")
    assert "below -80 dBFS" in result.notes[0]
    with tiny_engine.listen(silence, sample_rate=16000) as heard:
        assert answer(heard.ask("Describe.")) == answer(result)


def test_silence_can_be_decoded(tiny_bundle: Path) -> None:
    engine = Engine.load(tiny_bundle, limits=Limits(silence_dbfs=None))
    result = engine.generate(np.zeros(16_000, np.float32), task="asr", sample_rate=16000, config=VARIED)
    assert result.token_ids
    assert result.notes == ()


# Refusals


def test_prompt_beyond_the_kv_cache(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(CapacityError, match=r"positions, the KV cache has 2048: shorten.*max_new_tokens.*--max-length"):
        tiny_engine.generate(speech, prompt="x" * 2000)


def test_answer_beyond_the_kv_cache(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(CapacityError, match="the KV cache has 2048"):
        tiny_engine.generate(speech, task="asr", config=GenerationConfig(max_new_tokens=2048))
    with (
        tiny_engine.listen(speech) as heard,
        pytest.raises(CapacityError, match="the KV cache has 2048"),
    ):
        heard.ask(task="asr", config=GenerationConfig(max_new_tokens=2048))


def test_answer_beyond_the_memory_for_keys_and_values(tiny_bundle: Path, speech: Path) -> None:
    """What a request may need at most is refused before it begins."""
    engine = Engine.load(tiny_bundle, limits=Limits(max_cache_mib=1))
    large = GenerationConfig(num_beams=16, max_new_tokens=1500)
    small = GenerationConfig(max_new_tokens=4)
    refusal = r"may need \d+\.\d MiB of keys and values, the limit is 1\.0 MiB: .*Limits\(max_cache_mib"
    for _ in range(2):
        with pytest.raises(CapacityError, match=refusal):
            engine.generate(speech, task="asr", config=large)
        assert engine.generate(speech, task="asr", config=small).token_ids


def test_too_many_beams(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_beams is 17, the limit is 16: .*Limits\(max_beams"):
        tiny_engine.generate(speech, task="asr", config=GenerationConfig(num_beams=17))


def test_too_long_prompt(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(PromptError, match=r"20001 characters, the limit is 20000: .*Limits\(max_prompt_chars"):
        tiny_engine.generate(speech, prompt="x" * 20_001)


def test_unknown_task(tiny_engine: Engine, speech: Path) -> None:
    assert tiny_engine.tasks == ("asr", "caption", "qa")
    with pytest.raises(UnknownTaskError, match=r"unknown task 'translate'.*asr, caption, qa"):
        tiny_engine.generate(speech, task="translate")


def test_neither_task_nor_prompt_is_the_task_asr(tiny_engine: Engine, speech: Path) -> None:
    config = GenerationConfig(max_new_tokens=8)
    expected = tiny_engine.generate(speech, task="asr", config=config).token_ids
    assert tiny_engine.generate(speech, config=config).token_ids == expected
    with tiny_engine.listen(speech) as heard:
        assert heard.ask(config=config).token_ids == expected


def test_both_task_and_prompt(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(PromptError, match="exactly one of task= and prompt="):
        tiny_engine.generate(speech, task="asr", prompt="Hm?")
    with tiny_engine.listen(speech) as heard, pytest.raises(PromptError, match="exactly one of task= and prompt="):
        heard.ask("Hm?", task="asr")


def test_neither_task_nor_prompt_of_a_bundle_without_asr(
    tiny_engine: Engine, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {task: prompts for task, prompts in tiny_engine.bundle.manifest.prompt.tasks.items() if task != "asr"}
    prompt = replace(tiny_engine.bundle.manifest.prompt, tasks=tasks)
    manifest = replace(tiny_engine.bundle.manifest, prompt=prompt)
    monkeypatch.setattr(tiny_engine.model, "bundle", replace(tiny_engine.bundle, manifest=manifest))
    for ask in (tiny_engine.generate, tiny_engine.transcribe):
        with pytest.raises(PromptError, match=r"exactly one of task= and prompt=.*tasks of this model: caption, qa"):
            ask(speech)


def test_audio_beyond_the_window(tiny_engine: Engine) -> None:
    with pytest.raises(AudioTooLongError, match=r"30\.50 s long; this model hears 30 s"):
        tiny_engine.generate(noise(30.5), task="asr", sample_rate=16000)


def test_array_without_a_rate(tiny_engine: Engine) -> None:
    with pytest.raises(AudioError, match="sample_rate=16000"):
        tiny_engine.generate(noise(1.0), task="asr")


# Audio


def test_sources_of_the_same_sound_are_answered_alike(tiny_engine: Engine, speech: Path) -> None:
    pcm, rate = soundfile.read(speech, dtype="float32")
    expected = answer(tiny_engine.generate(speech, task="asr", config=VARIED))
    assert answer(tiny_engine.generate(speech.read_bytes(), task="asr", config=VARIED)) == expected
    assert answer(tiny_engine.generate(pcm, task="asr", config=VARIED, sample_rate=rate)) == expected
    assert answer(tiny_engine.generate(load_audio(speech), task="asr", config=VARIED)) == expected


def test_what_was_done_to_the_audio_is_noted(tiny_engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([noise(0.5), noise(0.5, 1)], axis=1)[::2], 8000)
    result = tiny_engine.generate(path, task="asr", config=VARIED)
    assert result.notes == (
        "channel 0 of 2 is used",
        "0.500 s padded with zeros to 1 s",
        "8000 Hz resampled to 16000 Hz",
    )
    assert result.timings.audio_s == 0.5


def test_the_beginning_of_long_audio(tiny_engine: Engine) -> None:
    long = noise(40.0)
    result = tiny_engine.generate(load_audio(long, 16000).first(30), task="asr", config=VARIED)
    expected = tiny_engine.generate(long[:480_000], task="asr", config=VARIED, sample_rate=16000)
    assert result.token_ids == expected.token_ids
    assert result.notes == ("cut from 40.00 s to 30.00 s on request",)


def test_the_first_moment_of_audio_is_padded_like_a_recording_of_it(tiny_engine: Engine) -> None:
    sound = noise(2.0)
    result = tiny_engine.generate(load_audio(sound, 16000).first(0.01), task="asr", config=VARIED)
    expected = tiny_engine.generate(sound[:160], task="asr", config=VARIED, sample_rate=16000)
    assert result.token_ids == expected.token_ids


def test_a_hundredth_of_a_second(tiny_engine: Engine) -> None:
    result = tiny_engine.generate(noise(0.01), task="asr", config=VARIED, sample_rate=16000)
    assert len(result.token_ids) == 24


# Sampling


def test_a_seed_makes_sampling_repeatable(tiny_engine: Engine, speech: Path) -> None:
    by_seed = [
        tiny_engine.generate(speech, task="asr", config=replace(SAMPLED, seed=seed)).token_ids for seed in (1, 2, 1)
    ]
    assert by_seed[0] == by_seed[2] != by_seed[1]


def test_without_a_seed_sampling_varies(tiny_engine: Engine, speech: Path) -> None:
    config = replace(SAMPLED, seed=None)
    answers = {tuple(tiny_engine.generate(speech, task="asr", config=config).token_ids) for _ in range(3)}
    assert len(answers) == 3


# Threads


def test_eight_threads_at_once(tiny_engine: Engine) -> None:
    start = threading.Barrier(8)

    def generate(request: tuple[F32, str, GenerationConfig]) -> Result:
        sound, prompt, config = request
        start.wait(30)
        return tiny_engine.generate(sound, prompt=prompt, config=config, sample_rate=16000)

    expected = [
        tiny_engine.generate(sound, prompt=prompt, config=config, sample_rate=16000)
        for sound, prompt, config in requests()
    ]
    assert len({tuple(result.token_ids) for result in expected}) == 8
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = pool.map(generate, requests())
            assert [answer(result) for result in found] == [answer(result) for result in expected]


# Timings and report


@EACH_SEARCH
def test_timings_add_up(tiny_engine: Engine, speech: Path, config: GenerationConfig) -> None:
    timings = tiny_engine.generate(speech, task="asr", config=config).timings
    assert min(value for name, value in vars(timings).items() if name.endswith("_s") and name != "token_s") > 0
    assert list(timings.stages) == [
        "prompt",
        "audio",
        "features",
        "whisper",
        "audio_encoder",
        "qformer",
        "prefill",
        "decode",
    ]
    assert sum(timings.stages.values()) == pytest.approx(timings.total_s, rel=1e-9)
    assert len(timings.token_s) == (24 if config.num_beams == 1 else 2)
    assert list(timings.token_s) == sorted(timings.token_s)
    assert timings.features_s + timings.encode_s + timings.prefill_s <= timings.ttft_s <= timings.total_s
    assert timings.ttft_s + 23 * timings.tpot_s <= timings.total_s * 1.001
    assert timings.audio_s == soundfile.info(speech).duration


@pytest.mark.onnx
def test_report_is_what_runs(tiny_bundle: Path) -> None:
    report = Engine.load(tiny_bundle, threads=1).report()
    assert report.bundle == str(tiny_bundle)
    assert (report.model, report.decoder, report.window) == ("tiny", "onnx", "padded")
    assert (report.encoder, report.encoder_instruction_set) == ("onnx", None)
    assert report.threads == 1
    assert report.providers == dict.fromkeys(("whisper", "audio_encoder", "qformer", "llm"), ("CPUExecutionProvider",))
    assert set(report.precision) == {"whisper", "audio_encoder", "qformer", "llm", "lm_head"}
    assert set(report.precision.values()) == {"fp32"}
    assert report.onnxruntime == onnxruntime.__version__
    files = [
        path for path in tiny_bundle.rglob("*") if path.is_file() and path.name not in ("bundle.json", "README.md")
    ]
    assert report.huge_page_bytes is None
    assert report.cache_bytes == 0
    assert report.bundle_bytes == sum(path.stat().st_size for path in files)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_reported_memory_is_the_processes(tiny_engine: Engine) -> None:
    report = tiny_engine.report()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    assert report.resident_bytes == pytest.approx(resident, rel=0.05)
    assert report.peak_resident_bytes == pytest.approx(peak, rel=0.05)


# Closing and cancelling early


def test_a_request_cancelled_before_it_began_encodes_nothing(tiny_engine: Engine, speech: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    result = tiny_engine.generate(speech, task="asr", cancel=cancel)
    assert (result.text, result.token_ids, result.finish_reason) == ("", [], "cancelled")
    assert result.timings.encode_s == 0


def test_an_answer_that_cannot_fit_is_refused_before_encoding(tiny_engine: Engine, speech: Path) -> None:
    with pytest.raises(CapacityError, match="KV cache has 2048"):
        tiny_engine.generate_iter(speech, task="asr", config=GenerationConfig(max_new_tokens=2000))


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.2, 29.99])
def test_the_number_of_audio_embeddings_is_known_beforehand(tiny_engine: Engine, seconds: float) -> None:
    audio = load_audio(np.full(round(seconds * 16000), 0.1, np.float32), 16000)
    assert tiny_engine.model.encoder.count(len(audio.pcm)) == len(tiny_engine.model.encoder.encode(audio))
