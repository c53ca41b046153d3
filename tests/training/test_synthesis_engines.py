"""Text-to-speech engines: each says what it is told to, repeatably, and held-out voices are apart."""

import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.training.__main__ import main
from salmonrun.training.synthesis.kokoro import Kokoro
from salmonrun.training.synthesis.piper import Piper
from salmonrun.training.synthesis.programs import (
    DEFAULT_SYNTHESIZERS,
    ESPEAK_ACCENTS,
    ESPEAK_SPEAKERS,
    HELD_OUT_SPEAKERS,
    Command,
    Espeak,
    Flite,
)
from salmonrun.training.synthesis.synthesizer import SpeechSynthesizer, split_voices
from salmonrun.training.synthesis.voices import parse_synthesizers, voices

MISSING = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
needs_engines = pytest.mark.skipif(bool(MISSING), reason=f"not installed: apt-get install {' '.join(MISSING)}")
needs_piper = pytest.mark.skipif(
    importlib.util.find_spec("piper") is None or "PIPER_VOICES" not in os.environ,
    reason="needs pip install piper-tts, and PIPER_VOICES=FOLDER",
)
needs_kokoro = pytest.mark.skipif(
    bool(MISSING) or "KOKORO" not in os.environ, reason="needs espeak-ng, and KOKORO=FOLDER"
)
STRESS = "\u02c8"  # of IPA
FLITE = "flite -voice {voice:kal16,slt,rms} -t {text} -o {out}"


def speaker(label: str) -> str:
    return label.split(":")[1].split("+")[-1]


def says(engine: SpeechSynthesizer, voice: str, folder: Path, rate_varies: bool = True) -> None:
    """The engine can do what `SpeechSynthesizer` promises."""
    engine.require()
    same_engine: SpeechSynthesizer = pickle.loads(pickle.dumps(engine))
    first, same, other = (
        who.synthesize("turn on the fan", voice, np.random.default_rng(seed), folder / "scratch.wav")
        for who, seed in ((engine, 0), (same_engine, 0), (engine, 1))
    )
    assert first.dtype == np.float32
    assert 0.3 < len(first) / SAMPLE_RATE < 5
    assert 0.1 < np.abs(first).max() <= 1.2
    assert np.array_equal(first, same)
    assert np.array_equal(first, other) != rate_varies


def test_voices_are_disjoint() -> None:
    train, test = (
        {speaker(voice.label) for voice in voices(DEFAULT_SYNTHESIZERS, held_out)} for held_out in (False, True)
    )
    assert not train & test
    for held_out in (False, True):
        assert {voice.synthesizer.name for voice in voices(DEFAULT_SYNTHESIZERS, held_out)} == {"espeak-ng", "flite"}


@needs_engines
def test_every_speaker_and_accent_exists() -> None:
    """A speaker that espeak-ng does not know is spoken, without a word, by the default voice."""
    names = [f"en-us+{speaker}" for speaker in ("", *ESPEAK_SPEAKERS, *HELD_OUT_SPEAKERS)]
    names += [f"{accent}+f1" for accent in ESPEAK_ACCENTS if accent != "en-us"]
    names[0] = "en-us"
    say = ["espeak-ng", "--stdout", "turn off the garden heater", "-v"]
    heard = {name: subprocess.run([*say, name], capture_output=True, check=True).stdout for name in names}
    digests = {name: hashlib.sha256(wav).digest() for name, wav in heard.items()}
    assert len(set(digests.values())) == len(names)


@needs_engines
def test_every_flite_voice_exists() -> None:
    """A voice that flite does not know is spoken by its default voice."""
    listed = subprocess.run(["flite", "-lv"], capture_output=True, check=True, text=True).stdout.split()
    assert {name for held_out in (False, True) for name in Flite().voices(held_out)} <= set(listed)


@needs_engines
@pytest.mark.parametrize(
    ("engine", "voice"), [(Espeak(), "en-gb+f2"), (Flite(), "slt")], ids=lambda value: getattr(value, "name", value)
)
def test_programs_speak(tmp_path: Path, engine: SpeechSynthesizer, voice: str) -> None:
    says(engine, voice, tmp_path)


@needs_engines
def test_a_command_speaks_as_its_program_does(tmp_path: Path) -> None:
    says(Command(FLITE), "slt", tmp_path, rate_varies=False)
    command = ["flite", "-voice", "slt", "-t", "it's $HOME; {out}", "-o", str(tmp_path / "direct.wav")]
    subprocess.run(command, check=True)
    Command(FLITE).synthesize("it's $HOME; {out}", "slt", np.random.default_rng(0), tmp_path / "scratch.wav")
    assert (tmp_path / "scratch.wav").read_bytes() == (tmp_path / "direct.wav").read_bytes()


def test_words_of_a_command() -> None:
    engine = Command("my-tts --voice={voice:a,b} 'a word' {text} > {out}")
    words = engine.words("say {out} and {voice:a,b}; 'so'", "b", Path("/tmp/x y.wav"))
    assert words == ["my-tts", "--voice=b", "a word", "say {out} and {voice:a,b}; 'so'", ">", "/tmp/x y.wav"]


def test_voices_of_a_command() -> None:
    engine = Command(FLITE)
    train, test = engine.voices(False), engine.voices(True)
    assert sorted([*train, *test]) == ["kal16", "rms", "slt"]
    assert len(test) == 1
    alone = Command("tts {text} {out}")
    assert (alone.voices(False), alone.voices(True)) == (("default",), ())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("tts {out}", r"'tts \{out\}' has no \{text\}"),
        ("tts {text}", r"has no \{out\}"),
        ("tts {voice} {text} {out}", r"names no voices; write \{voice:anna,ben\}"),
        ("tts {voice:a} {voice:b} {text} {out}", "several"),
        ("tts 'open {text} {out}", "cannot be split into words"),
    ],
)
def test_wrong_templates(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Command(template)


@pytest.mark.parametrize(
    ("script", "message"),
    [("import sys; sys.exit('no such voice')", "failed with status 1: no such voice"), ("pass", "wrote no .*x.wav")],
)
def test_a_command_that_fails(tmp_path: Path, script: str, message: str) -> None:
    (tmp_path / "x.wav").write_bytes(b"of an earlier recording")
    engine = Command(f'{sys.executable} -c "{script}" {{text}} {{out}}')
    with pytest.raises(ConfigError, match=message):
        engine.synthesize("a text", "default", np.random.default_rng(0), tmp_path / "x.wav")


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(MissingExtraError, match="no-such-tts is not installed, or not on the PATH"):
        Command("no-such-tts {text} {out}").require()


@pytest.mark.parametrize("count", [2, 9, 10, 25, 100])
def test_share_of_users_voices(count: int) -> None:
    names = [f"voice{i}" for i in range(count)]
    train, test = split_voices(names, False), split_voices(names, True)
    assert sorted([*train, *test]) == sorted(names)
    assert len(test) == max(1, count // 10)
    assert set(split_voices(reversed(names), True)) == set(test)  # not by order


def test_a_single_voice_is_for_training() -> None:
    assert (split_voices(["a"], False), split_voices(["a"], True)) == (("a",), ())


def test_a_speaker_is_on_one_side() -> None:
    names = [f"{speaker}-{quality}" for speaker in "abcde" for quality in ("low", "high")]
    sides = [{name[0] for name in split_voices(names, held_out, lambda name: name[0])} for held_out in (False, True)]
    assert [len(side) for side in sides] == [4, 1]
    assert not sides[0] & sides[1]


def test_parse_synthesizers() -> None:
    specs = ["flite", "espeak-ng", "piper=voices/", "kokoro=k", f"command={FLITE} --option=x"]
    assert parse_synthesizers(specs) == (
        Flite(),
        Espeak(),
        Piper("voices/"),
        Kokoro("k"),
        Command(f"{FLITE} --option=x"),
    )


@pytest.mark.parametrize("spec", ["festival", "", "piper", "piper=", "flite=slt", "command"])
def test_no_such_engine(spec: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine '{spec}'; expected espeak-ng, flite, piper=FOLDER"):
        parse_synthesizers([spec])


def test_engine_named_twice() -> None:
    with pytest.raises(ConfigError, match="piper is named twice"):
        parse_synthesizers(["piper=a", "flite", "piper=b"])


def test_few_voices_are_spoken_oftener() -> None:
    few = Command("tts {voice:a,b} {text} {out}")
    names = [voice.synthesizer.name for voice in voices((Espeak(), few), held_out=False)]
    assert names.count("espeak-ng") == 28 * 7
    assert names.count("command") == 28 * 7 // 4
    assert len(voices((few,), held_out=False)) == 1


def test_no_voice_to_hold_out() -> None:
    alone = Command("tts {text} {out}")
    with pytest.raises(ConfigError, match="command has no voice to hold out"):
        voices((alone,), held_out=True)
    assert {voice.synthesizer for voice in voices((alone, Flite()), held_out=True)} == {Flite()}


def piper_folder(folder: Path) -> Path:
    """Voices by name, as Piper publishes them; their models are empty."""
    many = {"num_speakers": 20, "speaker_id_map": {f"p{i}": i for i in range(20)}}
    for name, config in {
        "en_GB-vctk-medium": many,
        "en_US-joe-low": {"num_speakers": 1, "speaker_id_map": {}},
        "en_US-joe-medium": {"num_speakers": 1, "speaker_id_map": {}},
    }.items():
        (folder / f"{name}.onnx").touch()
        (folder / f"{name}.onnx.json").write_text(json.dumps(config))
    return folder


def test_piper_voices(tmp_path: Path) -> None:
    engine = Piper(str(piper_folder(tmp_path)))
    train, test = engine.voices(False), engine.voices(True)
    expected = [f"en_GB-vctk-medium#p{i}" for i in range(20)] + ["en_US-joe-low", "en_US-joe-medium"]
    assert sorted([*train, *test]) == sorted(expected)
    assert len({voice.replace("-low", "").replace("-medium", "") for voice in test}) == 2  # of 21 speakers
    assert len({voice for voice in test if "joe" in voice}) in (0, 2)


def test_folders_without_voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no Piper voice"):
        Piper(str(tmp_path)).voices(False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(ConfigError, match=r"has 0 \.onnx files"):
        Kokoro(str(tmp_path)).require()
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ConfigError, match=r"a\.onnx\.json does not exist"):
        Piper(str(tmp_path)).voices(False)
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        Kokoro(str(tmp_path)).require()


def test_piper_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "piper", None)
    with pytest.raises(MissingExtraError, match=r"pip install piper-tts"):
        Piper(str(tmp_path)).require()


@needs_piper
def test_piper_speaks(tmp_path: Path) -> None:
    engine = Piper(os.environ["PIPER_VOICES"])
    says(engine, engine.voices(False)[0], tmp_path)


@needs_kokoro
def test_kokoro_speaks(tmp_path: Path) -> None:
    engine = Kokoro(os.environ["KOKORO"])
    says(engine, engine.voices(False)[0], tmp_path)


def kokoro_folder(folder: Path) -> Path:
    (folder / "voices").mkdir()
    for name in ("af_heart", "am_adam", "bf_emma", "jf_alpha", "zf_xiaoni"):
        (folder / "voices" / f"{name}.bin").touch()
    (folder / "kokoro.onnx").touch()
    (folder / "config.json").write_text(json.dumps({"vocab": {"f": 1, "æ": 2, "n": 3, STRESS: 4, " ": 5}}))
    return folder


@needs_engines
def test_kokoro_voices_and_tokens(tmp_path: Path) -> None:
    engine = Kokoro(str(kokoro_folder(tmp_path)))
    engine.require()
    train, test = engine.voices(False), engine.voices(True)
    assert sorted([*train, *test]) == ["af_heart", "am_adam", "bf_emma"]  # those that speak English
    assert len(test) == 1
    assert engine.tokens("fan", "af_heart") == [1, 4, 2, 3]
    assert engine.tokens("fan fan", "af_heart") == [1, 4, 2, 3, 5, 1, 4, 2, 3]
    assert engine.tokens("van", "af_heart") == [4, 2, 3]  # an unknown mark is dropped


@needs_engines
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    few = ["--speech", "2", "--sounds", "0", "--mixtures", "0", "--snr", "0", "3"]
    assert main(["synthesize", str(out), *few, "--engines", "command=flite -t {text} -o {out}"]) == 0
    made = json.loads((out / "annotation.json").read_text())
    assert {entry["voice"] for entry in made["annotation"]} == {"command:default"}
    assert made["plan"]["snr_db"] == [0.0, 3.0]
    assert capsys.readouterr().out.splitlines() == [
        f"{out / 'annotation.json'}: annotation of the data set",
        "command has a single voice: it speaks in training sets, not in held-out ones",
    ]


def test_command_line_with_no_such_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", str(tmp_path / "data"), "--engines", "festival"]) == 1
    assert "error: engine 'festival'; expected espeak-ng" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
