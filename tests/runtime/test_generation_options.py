"""GenerationConfig on the command line: every field has its option, and what is wrong is said in the options' words."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import pytest

from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.commands.generation import add_generation_arguments, add_greedy_arguments, generation_config
from tests.helpers.commands import run

OPTIONS: list[tuple[str, GenerationConfig]] = [
    ("", GenerationConfig()),
    ("--max-new-tokens 7 --min-new-tokens 2", GenerationConfig(max_new_tokens=7, min_new_tokens=2)),
    ("--temperature 1", GenerationConfig(do_sample=True)),
    ("--temperature 0.7 --seed 0", GenerationConfig(do_sample=True, temperature=0.7, seed=0)),
    ("--top-k 5 --top-p 0.9", GenerationConfig(do_sample=True, top_k=5, top_p=0.9)),
    ("--num-beams 3 --length-penalty -1", GenerationConfig(num_beams=3, length_penalty=-1.0)),
    ("--num-beams 3 --early-stopping true", GenerationConfig(num_beams=3, early_stopping=True)),
    ("--num-beams 3 --early-stopping never", GenerationConfig(num_beams=3, early_stopping="never")),
    (
        "--repetition-penalty 1.2 --no-repeat-ngram-size 3",
        GenerationConfig(repetition_penalty=1.2, no_repeat_ngram_size=3),
    ),
    ("--nothing-threshold 0.5", GenerationConfig(nothing_threshold=0.5)),
    ("--stop-token-ids 2,13", GenerationConfig(stop_token_ids=(2, 13))),
    ("--stop-string . --stop-string END", GenerationConfig(stop_strings=(".", "END"))),
]


@pytest.mark.parametrize(("options", "expected"), OPTIONS)
def test_options(options: str, expected: GenerationConfig) -> None:
    parser = argparse.ArgumentParser()
    add_generation_arguments(parser)
    assert generation_config(parser.parse_args(options.split())) == expected


def test_every_field_has_an_option_and_none_has_another_default() -> None:
    parser = argparse.ArgumentParser()
    add_generation_arguments(parser)
    given = vars(parser.parse_args([]))
    assert set(given) == {field.name for field in fields(GenerationConfig)} - {"do_sample"}
    parser = argparse.ArgumentParser()
    add_greedy_arguments(parser)
    assert generation_config(parser.parse_args([])) == GenerationConfig()


WRONG = [
    ("--temperature 0", "error: --temperature is 0.0; it must be above 0"),
    ("--temperature -1", "error: --temperature is -1.0; it must be above 0"),
    ("--temperature nan", "error: --temperature is nan; expected a finite number"),
    ("--temperature warm", "argument --temperature: invalid float value: 'warm'"),
    ("--nothing-threshold 2", "error: --nothing-threshold is 2.0; expected a probability from 0 to 1"),
    ("--top-k -1", "error: --top-k is -1; it must not be negative"),
    ("--top-k 1.5", "argument --top-k: invalid int value: '1.5'"),
    ("--top-p 0", "error: --top-p is 0.0; expected 0 < --top-p <= 1"),
    ("--top-p 1.5", "error: --top-p is 1.5; expected 0 < --top-p <= 1"),
    ("--temperature 1 --seed -1", "error: --seed is -1; it must not be negative"),
    ("--seed 1", "error: --seed without --temperature, --top-k or --top-p, which draw tokens"),
    ("--temperature 1 --num-beams 2", "error: --temperature with --num-beams 2: beams are not sampled"),
    ("--num-beams 0", "error: --num-beams is 0; it must be at least 1"),
    ("--max-new-tokens 0", "error: --max-new-tokens is 0; it must be at least 1"),
    ("--min-new-tokens 300", "error: --min-new-tokens is 300; expected 0 to 200"),
    ("--length-penalty 11", "error: --length-penalty is 11.0; expected -10 to 10"),
    ("--early-stopping yes", "argument --early-stopping: invalid choice: 'yes'"),
    ("--repetition-penalty 0", "error: --repetition-penalty is 0.0; it must be above 0"),
    ("--no-repeat-ngram-size -2", "error: --no-repeat-ngram-size is -2; it must not be negative"),
    ("--stop-token-ids 2,x", "argument --stop-token-ids: '2,x' are no token ids"),
    ("--stop-token-ids=-2", "error: --stop-token-ids is (-2,); token ids are not negative"),
    ("--stop-string=", "error: --stop-string has an empty text"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_values_out_of_range(capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["transcribe", "no-bundle", "a.wav", *options.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--temperature", "--top-k", "--num-beams", "--seed", "--stop-string"])
def test_a_stream_decodes_greedily(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["stream", "no-bundle", "a.wav", option, "1"])
    assert stopped.value.code == 2
    assert f"unrecognized arguments: {option} 1" in capsys.readouterr().err


def test_sampled_answers_are_those_of_the_engine(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path
) -> None:
    options = ["--temperature", "3", "--top-k", "50", "--seed", "5", "--max-new-tokens", "8"]
    config = GenerationConfig(max_new_tokens=8, do_sample=True, temperature=3.0, top_k=50, seed=5)
    expected = tiny_engine.generate(speech, config=config).token_ids
    assert expected != tiny_engine.generate(speech, config=GenerationConfig(max_new_tokens=8)).token_ids
    _, (line,), _ = run(capsys, "transcribe", tiny_bundle, speech, "--json", *options)
    assert json.loads(line)["segments"][0]["token_ids"] == expected


def test_a_stream_takes_what_applies(
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path, tiny_engine: Engine, speech: Path
) -> None:
    plain = tiny_engine.generate(speech, config=GenerationConfig(max_new_tokens=8)).token_ids
    options = ["--stop-token-ids", str(plain[2]), "--max-new-tokens", "8", "--no-endpoints", "--json"]
    code, out, _ = run(capsys, "stream", tiny_bundle, speech, *options)
    result = json.loads(out[-1])
    # A stream keeps no stop token.
    assert (code, result["token_ids"], result["finish_reason"]) == (0, plain[:2], "stop")
