"""The synthetic data set: repeatable, labelled as it sounds, held-out apart from training."""

import json
import multiprocessing
import multiprocessing.dummy
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.runtime.schema import to_dict
from salmonrun.training.data.acoustics import mix
from salmonrun.training.data.annotation import check_entry, read_annotation
from salmonrun.training.starting.presets import preset
from salmonrun.training.synthesis.others import ENGLISH_SHARE, HELD_OUT_LANGUAGES, WORDS, draw_other
from salmonrun.training.synthesis.plan import Plan
from salmonrun.training.synthesis.programs import DEFAULT_SYNTHESIZERS
from salmonrun.training.synthesis.sounds import CAPTIONS, make_sound
from salmonrun.training.synthesis.synthesize import QUESTION_SOUND, QUESTION_SPEAKING, synthesize
from salmonrun.training.synthesis.texts import SLOTS, TEMPLATES, draw_fragment, draw_sentence, is_held_out
from salmonrun.training.synthesis.tunes import make_tune
from salmonrun.training.synthesis.voices import voices

MISSING = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
needs_engines = pytest.mark.skipif(bool(MISSING), reason=f"not installed: apt-get install {' '.join(MISSING)}")
PLAN = Plan(speech=12, sounds=6, mixtures=6, seed=3)  # more than one chunk of work


def synthesize_here(out: Path, plan: Plan, held_out: bool = False) -> Path:
    """In a thread of this process: the processes of `synthesize` take seconds to start."""
    get_context = multiprocessing.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing, "get_context", lambda method=None: multiprocessing.dummy if method else get_context()
        )
        return synthesize(out, plan, held_out)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_here(tmp_path_factory.mktemp("synthesis") / "train", PLAN)


@pytest.fixture(scope="module")
def held_out_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize_here(tmp_path_factory.mktemp("synthesis") / "test", PLAN, held_out=True)


def annotations(file: Path) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = json.loads(file.read_text())["annotation"]
    return entries


def contents(annotation: Path) -> dict[str, bytes]:
    folder = annotation.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def speaker(label: str) -> str:
    return label.split(":")[1].split("+")[-1]


@needs_engines
@pytest.mark.parametrize("workers", [1, 2])
def test_same_plan_gives_the_same_bytes(training_set: Path, tmp_path: Path, workers: int) -> None:
    again = contents(synthesize(tmp_path / "again", PLAN, workers=workers))
    assert len(again) == 24 + 1
    assert again == contents(training_set)


@needs_engines
def test_a_larger_plan_begins_with_the_smaller(training_set: Path, tmp_path: Path) -> None:
    smaller = contents(synthesize_here(tmp_path / "smaller", Plan(speech=2, sounds=1, mixtures=1, seed=3)))
    del smaller["annotation.json"]
    assert len(smaller) == 4
    assert smaller.items() <= contents(training_set).items()


@needs_engines
def test_another_seed_differs(training_set: Path, tmp_path: Path) -> None:
    first, other = (
        contents(file) for file in (training_set, synthesize_here(tmp_path / "other", Plan(12, 6, 6, seed=4)))
    )
    assert first.keys() == other.keys()
    assert [name for name in first if first[name] == other[name]] == []


@needs_engines
def test_held_out_shares_nothing(training_set: Path, held_out_set: Path) -> None:
    for what in (lambda entry: speaker(entry["voice"]), lambda entry: entry["text"]):
        train, test = (
            {what(entry) for entry in annotations(file) if entry["task"] == "asr"}
            for file in (training_set, held_out_set)
        )
        assert train
        assert test
        assert not train & test
    recordings = [set(contents(file).values()) for file in (training_set, held_out_set)]
    assert not recordings[0] & recordings[1]


@needs_engines
@pytest.mark.parametrize("name", ["training_set", "held_out_set"])
def test_recordings(request: pytest.FixtureRequest, name: str) -> None:
    annotation: Path = request.getfixturevalue(name)
    paths = {entry["path"] for entry in annotations(annotation)}
    assert paths == contents(annotation).keys() - {"annotation.json"}  # nothing left behind
    assert len(paths) == 24
    for path in paths:
        pcm, rate = soundfile.read(annotation.parent / path, always_2d=True)
        assert (rate, pcm.shape[1]) == (16000, 1)
        assert 0.3 <= len(pcm) / rate <= 30
        assert 0.01 < np.abs(pcm).max() <= 1


@needs_engines
@pytest.mark.parametrize("name", ["training_set", "held_out_set"])
def test_every_entry_is_usable(request: pytest.FixtureRequest, name: str) -> None:
    entries, problems = read_annotation(request.getfixturevalue(name))
    assert problems == []
    assert len(entries) == 12 + 2 * 6 + 3 * 6
    assert {check_entry(entry, preset("demo").prompt, AudioConfig()) for entry in entries} == {""}


@needs_engines
def test_tasks_and_questions(training_set: Path) -> None:
    asked: dict[str, list[tuple[str, str]]] = {}
    answers: dict[str, list[str]] = {}
    for entry in annotations(training_set):
        asked.setdefault(entry["path"], []).append((entry["task"], entry["Q"]))
        answers.setdefault(entry["path"], []).append(entry["text"])
        assert ("voice" in entry) == (entry["task"] == "asr")
    expected = {
        "speech": [("asr", "")],
        "sound": [("caption", ""), ("qa", QUESTION_SPEAKING)],
        "mixture": [("asr", ""), ("qa", QUESTION_SOUND), ("qa", QUESTION_SPEAKING)],
    }
    assert all(asked[path] == expected[Path(path).stem.split("_")[0]] for path in asked)
    for path, texts in answers.items():
        if "sound" in path:
            assert texts[0] in CAPTIONS.values()
            assert texts[1] == "no"
        if "mixture" in path:
            assert texts[1] in CAPTIONS.values()
            assert texts[2] == "yes"


@needs_engines
def test_annotation_names_a_voice_of_its_set_and_the_plan(training_set: Path, held_out_set: Path) -> None:
    for file, held_out in ((training_set, False), (held_out_set, True)):
        labels = {entry["voice"] for entry in annotations(file) if entry["task"] == "asr"}
        assert labels <= {voice.label for voice in voices(DEFAULT_SYNTHESIZERS, held_out)}
        assert json.loads(file.read_text())["plan"] == to_dict(PLAN)


@pytest.mark.parametrize("program", ["espeak-ng", "flite"])
@pytest.mark.parametrize("plan", [Plan(1, 0, 0), Plan(0, 1, 1)], ids=["speech", "mixtures"])
def test_missing_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, plan: Plan) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else f"/usr/bin/{name}")
    with pytest.raises(MissingExtraError, match=rf"^{program} is not installed.*apt-get install {program}$"):
        synthesize(tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


def test_sounds_need_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    annotation = synthesize_here(tmp_path / "out", Plan(0, 20, 0))
    assert {entry["task"] for entry in annotations(annotation)} == {"caption", "qa"}
    assert len(contents(annotation)) == 20 + 1
    for path in (tmp_path / "out" / "audio").iterdir():
        pcm, rate = soundfile.read(path)
        assert 1.4 <= len(pcm) / rate <= 4.1
        assert 0.01 < np.abs(pcm).max() <= 1


@pytest.mark.parametrize(
    "numbers",
    [{"speech": 0, "sounds": 0, "mixtures": 0}, {"speech": -1}, {"sounds": -1}, {"speech": 1, "mixtures": -1}],
    ids=str,
)
def test_plan_is_validated(numbers: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be 0 or more, and not all 0"):
        Plan(**numbers)


@pytest.mark.parametrize("snr_db", [(10.0, 5.0), (float("nan"), 5.0), (0.0, float("inf"))], ids=str)
def test_snr_is_validated(snr_db: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"snr_db is .* expected two numbers of dB"):
        Plan(snr_db=snr_db)


@needs_engines
def test_snr_of_speech(training_set: Path, tmp_path: Path) -> None:
    """Of the same recordings as in the training set, those with noise differ, and are nearer to noise."""
    noisy_set = synthesize_here(tmp_path / "noisy", replace(PLAN, snr_db=(-10.0, -10.0)))
    assert json.loads(noisy_set.read_text())["plan"]["snr_db"] == [-10.0, -10.0]
    clean, noisy = contents(training_set), contents(noisy_set)
    different = {name for name in clean if clean[name] != noisy[name]} - {"annotation.json"}
    assert 0 < len(different) < 12
    for name in different:
        assert "speech" in name
        before, after = (soundfile.read(file.parent / name)[0] for file in (training_set, noisy_set))
        assert len(before) == len(after)
        assert flatness(after) > 3 * flatness(before)


@pytest.mark.parametrize("only", ["speech", "sounds", "mixtures"])
def test_plan_of_one_part(only: str) -> None:
    numbers: dict[str, Any] = {"speech": 0, "sounds": 0, "mixtures": 0} | {only: 1}
    assert getattr(Plan(**numbers), only) == 1


@pytest.mark.parametrize("held_out", [False, True])
def test_draw_sentence(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    sentences = {draw_sentence(rng, held_out) for _ in range(1000)}
    assert len(sentences) > 150
    for sentence in sentences:
        assert is_held_out(sentence) == held_out
        assert not set(sentence) - set("abcdefghijklmnopqrstuvwxyz ")
        assert sentence == " ".join(sentence.split())


def test_a_tenth_is_held_out() -> None:
    sentences = [f"sentence {i}" for i in range(5000)]
    assert 0.08 < np.mean([is_held_out(sentence) for sentence in sentences]) < 0.12
    assert [is_held_out(s) for s in sentences[:50]] == [is_held_out(s) for s in sentences[:50]]


def test_templates_use_every_slot() -> None:
    assert {part.split("}")[0] for template in TEMPLATES for part in template.split("{")[1:]} == set(SLOTS)


@pytest.mark.parametrize("kind", CAPTIONS)
@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_every_kind_sounds(kind: str, seconds: float) -> None:
    for seed in range(5):
        sound = make_sound(kind, np.random.default_rng(seed), seconds)
        assert sound.dtype == np.float32
        assert len(sound) == round(seconds * SAMPLE_RATE)
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(sound, make_sound(kind, np.random.default_rng(seed), seconds))
    assert not np.array_equal(sound, make_sound(kind, np.random.default_rng(seed + 1), seconds))


def centroid(sound: F32) -> float:
    """Mean frequency in Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float(np.average(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE), weights=power))


def flatness(sound: F32) -> float:
    """Near 0 for tones, 0.56 for white noise."""
    power = np.abs(np.fft.rfft(sound)) ** 2 + 1e-12
    return float(np.exp(np.log(power).mean()) / power.mean())


def crest(sound: F32) -> float:
    """Peak over root mean square: 1.4 for a sine, large for short events far apart."""
    return float(np.abs(sound).max() / np.sqrt(np.mean(np.square(sound))))


def loud_share(sound: F32) -> float:
    """Share of 10 ms frames within 30 dB of the loudest."""
    frames = np.square(sound[: len(sound) // 160 * 160]).reshape(-1, 160).mean(axis=1)
    return float(np.mean(frames > frames.max() / 1000))


def statistics(sound: F32) -> list[float]:
    return [np.log(centroid(sound)), np.log(flatness(sound)) / 3, 2 * np.log(crest(sound)), 3 * loud_share(sound)]


def test_kinds_have_their_character() -> None:
    for seed in range(5):
        sounds = {kind: make_sound(kind, np.random.default_rng(seed), 2.5) for kind in CAPTIONS}
        assert crest(sounds["tone"]) == pytest.approx(np.sqrt(2), abs=0.02)
        assert min(flatness(sounds["static"]), flatness(sounds["clicks"])) > 0.2
        assert max(flatness(sounds[kind]) for kind in sounds.keys() - {"static", "clicks", "rain"}) < 0.1
        assert crest(sounds["clicks"]) > 20 > crest(sounds["rain"]) > crest(sounds["static"])
        assert max(centroid(sounds[kind]) for kind in ("wind", "engine")) < 600 < centroid(sounds["siren"])
        assert centroid(sounds["birds"]) > 2500
        assert loud_share(sounds["beeps"]) < 0.7 < loud_share(sounds["tone"])


def test_kinds_can_be_told_apart() -> None:
    """A caption can be learnt: the nearest mean of four statistics names most sounds."""
    made = {
        kind: np.array([statistics(make_sound(kind, np.random.default_rng(seed), 2.5)) for seed in range(20)])
        for kind in CAPTIONS
    }
    means = np.array([values[:10].mean(axis=0) for values in made.values()])
    guesses = {
        kind: [list(CAPTIONS)[int(np.argmin(np.square(means - value).sum(axis=1)))] for value in values[10:]]
        for kind, values in made.items()
    }
    shares = {kind: guessed.count(kind) / len(guessed) for kind, guessed in guesses.items()}
    assert min(shares.values()) >= 0.5, guesses
    assert np.mean(list(shares.values())) > 0.85


def test_captions_are_unique() -> None:
    assert len(set(CAPTIONS.values())) == len(CAPTIONS)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 3.0, 15.0, 40.0])
def test_mix_has_the_ratio_asked_for(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    pcm = (0.1 * rng.standard_normal(16000)).astype(np.float32)
    mixed = mix(pcm, make_sound("rain", rng, 1.0), snr_db)
    assert mixed.dtype == np.float32
    assert mixed.shape == pcm.shape
    added = mixed.astype(np.float64) - pcm
    assert 10 * np.log10(np.mean(np.square(pcm, dtype=np.float64)) / np.mean(np.square(added))) == pytest.approx(
        snr_db, abs=0.1
    )


@needs_engines
def test_speed_moves_the_length_of_speech_and_nothing_else(tmp_path: Path) -> None:
    lengths = {}
    for speed in (0.0, 0.3):
        file = synthesize_here(tmp_path / str(speed), Plan(speech=4, sounds=2, mixtures=0, speed=speed))
        entries = json.loads(file.read_text())["annotation"]
        lengths[speed] = {e["path"]: soundfile.info(file.parent / e["path"]).duration for e in entries}
    for path, seconds in lengths[0.0].items():
        assert (lengths[0.3][path] != seconds) == ("speech" in path)


def test_a_speed_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"speed is 2; expected a share from 0 to 0\.5"):
        Plan(speed=2)


# What is not to be written down, and speech in pieces


@pytest.mark.parametrize("held_out", [False, True])
def test_other_speech_has_no_word_of_the_vocabulary_but_small_ones(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    commands = {word for _ in range(2000) for word in draw_sentence(rng, held_out).split()}
    drawn = [draw_other(rng, held_out) for _ in range(400)]
    english = [set(text.split()) for language, text in drawn if language == "en"]
    assert len(english) / 400 == pytest.approx(ENGLISH_SHARE, abs=0.08)
    assert set.union(*english) & commands <= {
        "the",
        "a",
        "in",
        "is",
        "to",
        "at",
        "on",
        "for",
        "and",
        "some",
        "my",
        "what",
    }
    foreign = {language for language, _ in drawn} - {"en"}
    assert foreign == (set(HELD_OUT_LANGUAGES) if held_out else set(WORDS) - {"en", *HELD_OUT_LANGUAGES})


def test_fragments_are_parts_of_sentences() -> None:
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        drawn = [draw_fragment(rng, held_out) for _ in range(200)]
        assert {len(fragment.split()) for fragment in drawn} == {1, 2, 3}
        assert all(is_held_out(fragment) == held_out for fragment in drawn)


@needs_engines
def test_what_is_not_to_be_written_down_is_asked_about(tmp_path: Path) -> None:
    plan = Plan(speech=0, sounds=3, mixtures=0, others=12, nothing="(nothing)", seed=1)
    file = synthesize_here(tmp_path, plan)
    by_kind: dict[str, list[dict[str, str]]] = {"sound": [], "other": []}
    for entry in annotations(file):
        by_kind[entry["path"].split("/")[1].split("_")[0]].append(entry)
    assert [(e["task"], e["text"]) for e in by_kind["other"]] == [("asr", "(nothing)")] * 12
    assert sum(e["task"] == "asr" and e["text"] == "(nothing)" for e in by_kind["sound"]) == 3
    voices_heard = {entry.get("voice", "").partition(":")[2].partition("+")[0] for entry in by_kind["other"]}
    assert "" in voices_heard  # music
    assert any(voice in WORDS for voice in voices_heard)  # another language
    for entry in by_kind["other"]:
        pcm, _ = soundfile.read(tmp_path / entry["path"])
        assert 0.5 < len(pcm) / SAMPLE_RATE < 12
        assert np.abs(pcm).max() > 0.05


@needs_engines
def test_speech_in_pieces_has_the_words_and_pauses_between_them(tmp_path: Path) -> None:
    plan = Plan(speech=8, sounds=0, mixtures=0, seed=5, snr_db=(60.0, 60.0))
    whole = synthesize_here(tmp_path / "whole", plan)
    apart = synthesize_here(tmp_path / "apart", replace(plan, pauses=1.0))
    assert len(annotations(whole)) == len(annotations(apart)) == 8
    for entry in annotations(apart):
        pcm, _ = soundfile.read(tmp_path / "apart" / entry["path"])
        frames = np.abs(pcm[: len(pcm) // 160 * 160].reshape(-1, 160)).max(axis=1)
        spoken = np.flatnonzero(frames > 0.05 * frames.max())
        longest = np.diff(spoken).max() / 100
        assert len(entry["text"].split()) == 1 or longest >= 0.09


@pytest.mark.parametrize(
    "settings", [{"others": 1}, {"pauses": 1.5}, {"fragments": -0.1}, {"others": -1, "nothing": "(nothing)"}]
)
def test_impossible_plans_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"others|pauses|fragments"):
        Plan(**settings)


def test_tunes_are_loud_and_never_the_same() -> None:
    one, other = (make_tune(np.random.default_rng(seed), 2.0) for seed in (0, 1))
    assert one.shape == other.shape == (32_000,)
    assert one.dtype == np.float32
    for tune in (one, other):
        assert np.abs(tune).max() == pytest.approx(1.0)
        assert np.square(tune).mean() > 1e-3
    assert abs(float(np.corrcoef(one, other)[0, 1])) < 0.3
    assert np.array_equal(one, make_tune(np.random.default_rng(0), 2.0))


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    """The system's own limit of a file's size stands for it: what was written before is no `annotation.json`."""
    program = (
        "import resource, signal, sys\nfrom salmonrun.__main__ import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.exit(main(['synthesize', sys.argv[1], '--speech', '0', '--sounds', '3', '--mixtures', '0']))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "data")], capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert re.match("error: .*File too large", last)
    assert "format" not in last
    assert not (tmp_path / "data" / "annotation.json").exists()
