"""A student of random weights and its teacher: what is learned, by whom, and what is kept of what the teacher says."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.prompt import prompt_ids
from salmonrun.training.checkpoint import load, open_checkpoint
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.data.config import Augmentation, DataConfig, DataSet
from salmonrun.training.data.dataset import Batch, SpeechDataset, make_batch
from salmonrun.training.distillation import distill as module
from salmonrun.training.distillation.distill import distill
from salmonrun.training.distillation.hidden import layer_map
from salmonrun.training.distillation.objective import DistilledModel
from salmonrun.training.distillation.recipe import DistillConfig, DistillRecipe
from salmonrun.training.distillation.target_cache import CacheSettings, TargetCache
from salmonrun.training.distillation.teacher import Teacher
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.parts import choose_parts
from salmonrun.training.finetuning.recipe import PruneConfig, RunConfig
from salmonrun.training.inspection.inspect import inspect_path
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.pruning.layers import PARTS, Part
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.distilling import EVERYTHING, distill_recipe, four_layers, leave_out
from tests.helpers.planted import plant
from tests.helpers.runs import logged, write_noises

TEXTS = ("one", "two three", "four", "five six seven", "eight nine")
ALL: dict[str, Any] = {"hidden": 0.5, "hidden_parts": PARTS, "qformer": 0.25}
CPU = torch.device("cpu")
DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "checkpoint"
    init_checkpoint(four_layers(), folder, seed=5)
    return folder


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return leave_out(teacher, tmp_path_factory.mktemp("student") / "pruned", {"llm": [1, 2], "whisper": [2]})


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of its own, of other widths and two layers a part."""
    config = four_layers()
    assert config.audio_encoder
    narrow = replace(
        config,
        whisper=replace(config.whisper, layers=2, d_model=32),
        audio_encoder=replace(config.audio_encoder, layers=2, dim=32),
        llm=config.llm | {"num_hidden_layers": 2, "hidden_size": 32},
    )
    folder = tmp_path_factory.mktemp("narrow") / "checkpoint"
    init_checkpoint(narrow, folder, seed=6)
    return folder


@pytest.fixture(scope="module")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_noises(tmp_path_factory.mktemp("data"), TEXTS)


def whole_batch(model: SalmonnModel, annotation: Path) -> Batch:
    entries, _ = read_annotation(annotation)
    dataset = SpeechDataset(
        entries, [1.0] * len(entries), model.config.front_end, model.prompts, model.tokenizer, multi_prompt=False,
        augment=None, seed=0,
    )  # fmt: skip
    return make_batch([dataset[i] for i in range(len(dataset))])


def objective(recipe: DistillRecipe) -> DistilledModel:
    model = load(recipe.checkpoint)
    choose_parts(model, recipe.train)
    config = open_checkpoint(recipe.distill.teacher).config
    return DistilledModel(model, recipe, config, Teacher(recipe.distill.teacher, torch.float32))


@torch.inference_mode()
def log_probs_alone(checkpoint: Path, annotation: Path) -> list[torch.Tensor]:
    """Of the tokens of each answer, each recording by itself: [n, vocab]."""
    model, found = load(checkpoint), []
    for entry in read_annotation(annotation)[0]:
        target = model.tokenizer.encode(entry.text + model.prompts.end_symbol)
        prompt = prompt_ids(model.prompts, model.tokenizer, model.prompts.tasks["asr"][0])
        embeds = model.wrap(model.encode(model.load_audio(entry.path)), prompt, target)[None]
        logits = model.llm(inputs_embeds=embeds).logits[0, -len(target) - 1 : -1]
        found.append(logits.log_softmax(-1))
    return found


def test_the_loss_is_the_divergence_of_the_two_models(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    """Of each recording by itself, and per token."""
    run = distill_recipe(student, teacher, annotation, tmp_path / "run", steps=1, batch_size=len(TEXTS), logits=0.7)
    distill(run)
    ours, theirs = log_probs_alone(student, annotation), log_probs_alone(teacher, annotation)
    total = sum(kl_div(q, p, reduction="sum", log_target=True) for q, p in zip(ours, theirs, strict=True))
    expected = float(total) / sum(map(len, ours))
    (loss,), (answers,), (logits,) = (logged(run_out(run), 1, name) for name in ("loss", "answer_loss", "logits_loss"))
    assert logits == pytest.approx(expected, rel=1e-4)
    assert loss == pytest.approx(answers + 0.7 * expected, rel=1e-4)


def run_out(recipe: DistillRecipe) -> Path:
    return Path(recipe.run.out)


def test_gradients_reach_the_student_alone(student: Path, teacher: Path, annotation: Path, tmp_path: Path) -> None:
    wrapped = objective(distill_recipe(student, teacher, annotation, tmp_path / "run", answer_weight=0.0, **ALL))
    batch = whole_batch(wrapped.model, annotation)
    wrapped(batch)["loss"].backward()
    without = {n for n, p in wrapped.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()
    source = wrapped._source
    assert isinstance(source, Teacher)
    taught = source._model
    assert all(p.grad is None and not p.requires_grad for p in taught.parameters())
    mine = {id(p) for p in wrapped.parameters()}
    assert not any(id(p) in mine for p in taught.parameters())


def test_no_text_is_needed_to_learn_from_logits(student: Path, teacher: Path, annotation: Path, tmp_path: Path) -> None:
    """The task's own loss may be left out; the student comes nearer all the same, and the teacher stays as it is."""
    before = {file.name: file.read_bytes() for file in teacher.iterdir()}
    run = distill_recipe(
        student, teacher, annotation, tmp_path / "run", steps=12, batch_size=5, answer_weight=0.0, save_every=12
    )
    distill(run)
    losses = logged(tmp_path / "run", 12, "logits_loss")
    assert logged(tmp_path / "run", 12, "answer_loss") == []
    assert losses[-1] < 0.5 * losses[0]
    assert {file.name: file.read_bytes() for file in teacher.iterdir()} == before


@torch.inference_mode()
def test_a_student_that_is_the_teacher_has_nothing_to_learn(teacher: Path, annotation: Path, tmp_path: Path) -> None:
    wrapped = objective(distill_recipe(teacher, teacher, annotation, tmp_path / "run", **ALL))
    said = wrapped(whole_batch(wrapped.model, annotation))
    assert [float(said[f"{name}_loss"]) for name in ("logits", "hidden", "qformer")] == pytest.approx([0] * 3, abs=1e-6)
    assert said["answer_loss"] > 1


@torch.inference_mode()
def test_hidden_states_are_compared_where_the_recorded_numbers_say(annotation: Path, tmp_path: Path) -> None:
    """Layers that do nothing are left out: all others give what they gave."""
    plant(DEMO / "checkpoint", tmp_path / "planted", {"llm": 2, "whisper": 3, "audio_encoder": 1})
    pruned = leave_out(tmp_path / "planted", tmp_path / "pruned", {"llm": [2], "whisper": [3], "audio_encoder": [1]})
    wrapped = objective(distill_recipe(pruned, tmp_path / "planted", annotation, tmp_path / "run", **ALL))
    wrapped.eval()  # in training the demo hears in blocks, and its teacher does not
    batch = whole_batch(wrapped.model, annotation)
    assert float(wrapped(batch)["hidden_loss"]) == pytest.approx(0, abs=1e-6)
    assert wrapped.hidden_loss
    wrapped.hidden_loss.maps["llm"] = (0, 1, 2, 3)  # as if nothing had been left out
    assert float(wrapped(batch)["hidden_loss"]) > 1e-3


def maps(teacher: Path, student: Path, part: Part) -> tuple[int, ...]:
    configs: tuple[ModelConfig, ModelConfig] = (open_checkpoint(student).config, open_checkpoint(teacher).config)
    return layer_map(*configs, part)


def test_a_layer_stands_for_those_that_were_left_out_behind_it(teacher: Path, narrow: Path, tmp_path: Path) -> None:
    twice = leave_out(leave_out(teacher, tmp_path / "a", {"llm": [1]}), tmp_path / "b", {"llm": [1]})
    assert maps(teacher, twice, "llm") == (2, 3)  # of 0 and 3, which were kept
    assert maps(tmp_path / "a", twice, "llm") == (1, 2)  # a teacher that itself goes without layer 1: 0, 2, 3
    assert maps(teacher, leave_out(teacher, tmp_path / "c", {"llm": [3]}), "llm") == (0, 1, 3)
    assert maps(teacher, twice, "whisper") == (0, 1, 2, 3)
    assert maps(teacher, narrow, "llm") == (1, 3)  # of another lineage: equal shares
    with pytest.raises(ConfigError, match="the student's llm has 4 layers, the teacher's 2"):
        maps(narrow, teacher, "llm")


def test_other_widths_are_projected_and_the_projections_are_trained(
    narrow: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    """They are in the snapshots, and not in the checkpoint."""
    run = distill_recipe(narrow, teacher, annotation, tmp_path / "run", steps=20, batch_size=5, save_every=20, **ALL)
    final = distill(run)
    kept = torch.load(tmp_path / "run" / "checkpoint-20" / "trained.pt")
    projections = {name: value for name, value in kept.items() if "projection" in name}
    assert projections["hidden_loss.projections.llm.1.weight"].shape == (64, 32)
    assert projections["qformer_projection.weight"].shape == (64, 32)
    assert set(dict(load(final).named_parameters())) == set(dict(load(narrow).named_parameters()))
    for name in ("hidden_loss", "qformer_loss"):
        values = logged(tmp_path / "run", 20, name)
        assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "forward": 0.5, "skew": 0.1}], ids=["plain", "mixed"])
def test_what_was_kept_gives_the_losses_of_the_teacher_at_hand(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path, settings: dict[str, float]
) -> None:
    shared = {"top_k": 16, **settings}
    distill(distill_recipe(student, teacher, annotation, tmp_path / "live", **shared))
    distill(distill_recipe(student, teacher, annotation, tmp_path / "kept", cache=str(tmp_path / "cache"), **shared))
    for name in ("loss", "logits_loss"):
        assert logged(tmp_path / "kept", 4, name) == pytest.approx(logged(tmp_path / "live", 4, name), abs=2e-6)


def test_a_teacher_runs_once(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run does not load it; further entries are asked alone; another temperature is another folder."""
    cache = tmp_path / "cache"
    settings = {"top_k": 8, "cache": str(cache), "steps": 1, "save_every": 1}
    distill(distill_recipe(student, teacher, annotation, tmp_path / "first", **settings))
    asked: list[int] = []
    teach = Teacher.teach

    def counted(self: Teacher, entries: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(len(entries))
        return teach(self, entries, *args, **kwargs)

    monkeypatch.setattr(Teacher, "teach", counted)
    with monkeypatch.context() as patched:
        patched.setattr(module, "Teacher", None)  # whoever loads it fails
        distill(distill_recipe(student, teacher, annotation, tmp_path / "second", **settings))
    entries = json.loads(annotation.read_text())["annotation"]
    longer = annotation.with_name("longer.json")
    longer.write_text(json.dumps({"annotation": [*entries, entries[0] | {"text": "ten"}]}))
    distill(distill_recipe(student, teacher, longer, tmp_path / "third", **settings))
    assert asked == [1]
    assert len(list(cache.iterdir())) == 1
    distill(distill_recipe(student, teacher, annotation, tmp_path / "fourth", temperature=2.0, **settings))
    assert asked == [1, 2, 2, 1]
    assert len(list(cache.iterdir())) == 2


def test_what_a_cut_left_is_used_up_to_its_last_whole_line(teacher: Path, annotation: Path, tmp_path: Path) -> None:
    model = load(teacher)
    settings = CacheSettings("0" * 64, 1.0, 4, 100, "torch.float32")
    asked = [
        (entry, model.tokenizer.encode(entry.text + model.prompts.end_symbol))
        for entry in read_annotation(annotation)[0]
    ]
    whole = TargetCache(tmp_path, settings)
    whole.fill(asked, Teacher(teacher, torch.float32), CPU, 1, progress=False)
    entries, targets = zip(*asked, strict=True)
    expected = whole.read(entries, targets).log_probs
    (index,), (records,) = (list((tmp_path / settings.key).glob(f"*{end}")) for end in (".jsonl", ".records"))
    assert records.stat().st_size == settings.record.itemsize * sum(len(target) for _, target in asked)
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert len(TargetCache(tmp_path, settings).missing(asked)) == 2
    with records.open("r+b") as file:
        file.truncate(json.loads(lines[1])[2] * settings.record.itemsize + 3)
    cut = TargetCache(tmp_path, settings)
    assert len(cut.missing(asked)) == 3
    cut.fill(asked, Teacher(teacher, torch.float32), CPU, 2, progress=False)
    assert torch.allclose(cut.read(entries, targets).log_probs, expected, atol=1e-5)
    with pytest.raises(CheckpointError, match=r"0\.wav has changed since the teacher heard it"):
        cut.read(entries[:1], [[1, 2]])


def test_resuming_gives_the_losses_of_the_uninterrupted_run(
    narrow: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    """The projections with it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    distill(distill_recipe(narrow, teacher, annotation, whole, **ALL))
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    distill(distill_recipe(narrow, teacher, annotation, cut, **ALL), resume=True)
    for name in ("loss", "hidden_loss", "qformer_loss"):
        assert logged(cut, 4, name) == pytest.approx(logged(whole, 4, name), abs=1e-6)


def test_a_recipe_that_prunes_first_learns_from_what_it_pruned(teacher: Path, annotation: Path, tmp_path: Path) -> None:
    run = distill_recipe(teacher, teacher, annotation, tmp_path / "run", steps=1, save_every=1, hidden=1.0)
    final = distill(replace(run, prune=PruneConfig(llm=0.5, data=str(annotation))))
    (step,) = open_checkpoint(final).config.pruning
    assert (step.part, step.source) == ("llm", open_checkpoint(teacher).sha256())
    assert logged(tmp_path / "run", 1, "hidden_loss")[0] > 0


def test_a_distilled_checkpoint_names_its_teachers_and_its_bundle_does(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    first = distill(distill_recipe(student, teacher, annotation, tmp_path / "1", steps=1, save_every=1, **ALL))
    again = distill(distill_recipe(first, student, annotation, tmp_path / "2", steps=2, save_every=2))
    assert again == tmp_path / "2" / "final"
    lessons = open_checkpoint(again).config.distillation
    assert [(one.sha256, one.learned, one.steps) for one in lessons] == [
        (open_checkpoint(teacher).sha256(), ("logits", "hidden", "qformer"), 1),
        (open_checkpoint(student).sha256(), ("logits",), 2),
    ]
    bundle = export_bundle(again, tmp_path / "bundle", ExportOptions(llm_precision="int8"))
    assert open_bundle(bundle).manifest.provenance.distillation == lessons
    card = (bundle / "README.md").read_text()
    line = f"from {lessons[0].teacher} ({lessons[0].sha256[:12]}): logits, hidden states, audio embeddings; 1 steps"
    assert f"It learned from a teacher:\n\n- {line}" in card
    for made in (again, bundle):
        facts = inspect_path(made).facts
        assert facts["distillation, step 1"].startswith(line)
        assert facts["distillation, step 2"] == str(lessons[1])


def test_another_tokenizer_is_refused_with_the_way_out(teacher: Path, annotation: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    init_checkpoint(four_layers(), other, fresh=True, texts=["one two three four"] * 20, vocab_size=300)
    with pytest.raises(ConfigError, match=r"different tokenizers: .*salmonrun distill answers .*checkpoint ANNOTATION"):
        distill(distill_recipe(other, teacher, annotation, tmp_path / "run"))


def test_other_ends_and_too_many_tokens_are_refused(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    ended = shutil.copytree(student, tmp_path / "ended")
    config = json.loads((ended / "config.json").read_text())
    config["prompt"]["end_symbol"] = "."
    (ended / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"answers of .*ended end in '\.', those of .* in '</s>'"):
        distill(distill_recipe(ended, teacher, annotation, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"top_k is 9999, and there are \d+ tokens"):
        distill(distill_recipe(student, teacher, annotation, tmp_path / "run", top_k=9999))


def test_frames_that_do_not_lie_side_by_side_are_refused(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    padded = shutil.copytree(teacher, tmp_path / "padded")
    config = json.loads((padded / "config.json").read_text())
    config["audio"]["window"] = "padded"
    (padded / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="frames do not lie side by side"):
        distill(distill_recipe(student, padded, annotation, tmp_path / "run", qformer=1.0))
    distill(distill_recipe(student, padded, annotation, tmp_path / "run", hidden=1.0, steps=1))  # of the LLM's answers


def test_states_of_frozen_encoders_cannot_learn(student: Path, teacher: Path, annotation: Path, tmp_path: Path) -> None:
    run = distill_recipe(student, teacher, annotation, tmp_path / "run", hidden=1.0, hidden_parts=("llm", "whisper"))
    frozen = replace(
        run,
        train=replace(EVERYTHING, whisper=False, audio_encoder=False),
        data=replace(run.data, cache=str(tmp_path / "states")),
    )
    with pytest.raises(ConfigError, match="none of their layers can learn"):
        distill(frozen)


def test_a_finished_run_is_found_before_the_teacher_runs(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    (tmp_path / "run" / "final").mkdir(parents=True)
    settings = {"top_k": 8, "cache": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match=r"run/final exists"):
        distill(distill_recipe(student, teacher, annotation, tmp_path / "run", **settings))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logits": 0.0}, "are all 0; nothing is learned"),
        ({"hidden": -1.0}, r"distill\.hidden is -1"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"forward": 1.5}, r"forward is 1\.5; expected a share from 0 to 1"),
        ({"skew": 1.0}, r"skew is 1\.0; expected a share"),
        ({"top_k": 0}, "top_k is 0"),
        ({"cache": "kept"}, r"say how many \(distill\.top_k=64\)"),
        ({"cache": "kept", "top_k": 4, "qformer": 1.0}, "the teacher has to run"),
        ({"hidden": 1.0, "hidden_parts": ()}, "hidden_parts is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig("teacher", **settings)


def test_recordings_that_are_changed_have_other_frames(
    student: Path, teacher: Path, annotation: Path, tmp_path: Path
) -> None:
    run = distill_recipe(student, teacher, annotation, tmp_path / "run", qformer=1.0)
    with pytest.raises(ConfigError, match="the teacher hears recordings as they are"):
        replace(run, augment=Augmentation(speed_p=0.5))
    noisy = replace(run, augment=Augmentation(noise_p=1.0, mask_p=1.0), distill=DistillConfig(str(teacher)))
    distill(noisy)
    assert len(logged(tmp_path / "run", 4, "logits_loss")) == 4


def test_the_audio_embeddings_alone_do_not_train_an_llm() -> None:
    data, run = DataConfig((DataSet("a"),)), RunConfig("out", answer_weight=0.0)
    with pytest.raises(ConfigError, match=r"distill\.qformer alone trains no LLM"):
        DistillRecipe("student", data, run, distill=DistillConfig("teacher", logits=0.0, qformer=1.0))


def test_a_plain_run_is_told_apart(student: Path, annotation: Path, teacher: Path, tmp_path: Path) -> None:
    """The terms of the teacher are in the log of a distillation alone."""
    run = distill_recipe(student, teacher, annotation, tmp_path / "plain", steps=1)
    finetune(run)
    assert logged(tmp_path / "plain", 1, "logits_loss") == []
