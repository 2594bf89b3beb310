"""`train` makes an adapter from the user's own rows, and `predict` and plain peft load it.

The recipe of a study can also have a family of the user's own checkpoints.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch
import yaml

from petransfer.data import load_task
from tests.cli.calls import call
from tests.remembered_predictions import remember_predictions
from tests.report.made import draw_nothing

pytestmark = pytest.mark.usefixtures("elsewhere")

PAIRS = [("walk", "gehen"), ("run", "rennen"), ("see", "sehen"), ("hear", "hören"), ("say", "sagen")]
TEN = [(f"{how} {word}", f"{there} {wort}") for word, wort in PAIRS for how, there in (("to", "zu"), ("must", "muss"))]


def write(path: Path, rows: Any = TEN) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def result(study: Path) -> dict[str, Any]:
    (found,) = study.glob("runs/*/result.json")
    content: dict[str, Any] = json.loads(found.read_text())
    return content


def test_train_makes_an_adapter_from_ten_rows(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    write(elsewhere / "pairs.tsv")
    assert call(monkeypatch, "train", "nano/english", "pairs.tsv", "--steps", "120", "--cpu") == 0
    message = capsys.readouterr()
    assert (
        "data: 8 training rows, 1 dev row to score during the training, 1 test row for the final score\n" in message.out
    )
    assert "only 1 dev row and 1 test row, so the scores are not reliable" in message.out
    assert re.search(
        r"rank 16(, and the embeddings of \d+ tokens? that occurs? in the rows but not in pretraining)?; l",
        message.out,
    )
    assert "length: 120 steps of 8 examples (120 epochs)" in message.out
    assert "first row: input 'to walk', target 'zu gehen'" in message.err
    study = elsewhere / "results" / "pairs-english"
    (run,) = (study / "runs").iterdir()
    lines = message.out.splitlines()
    assert f"adapter: {run / 'adapter'}".replace(f"{elsewhere}/", "") in lines
    assert any(line.startswith("exact match: ") for line in lines)
    assert "trained for 120 steps" in lines
    _commands_run(message.out, monkeypatch)
    capsys.readouterr()
    data = load_task("lines", None, train="pairs.tsv").load("held-out")
    assert call(monkeypatch, "predict", str(run), *(row.input for row in data.train)) == 0
    assert capsys.readouterr().out.splitlines() == [row.target for row in data.train]
    _plain_peft_says_the_same(run, data.train[0].input, data.train[0].target)
    assert call(monkeypatch, "run", "--recipe", str(study / "recipe.yaml"), "--cpu") == 0
    assert "the run finished before" in capsys.readouterr().err
    assert call(monkeypatch, "train", "nano/english", "pairs.tsv", "--steps", "120", "--cpu") == 0
    again = capsys.readouterr()
    assert "this run was already finished" in again.err
    assert again.out.splitlines()[-10:] == lines[-10:]


def _commands_run(printed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands that are printed at the end, and check that each exits with code 0."""
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("  petransfer ")]
    assert [command[0] for command in commands if command[0] != "adapter"] == ["predict", "report", "run"]
    for command in commands:
        if command[0] != "adapter":  # `adapter push` needs an account on the hub
            assert call(monkeypatch, *command) == 0


def _plain_peft_says_the_same(run: Path, text: str, target: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from petransfer.models.registry import NANO

    base = AutoModelForSeq2SeqLM.from_pretrained(NANO / "english", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(NANO / "tokenizer")
    model = PeftModel.from_pretrained(base, str(run / "adapter"))
    out = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(out[0], skip_special_tokens=True) == target


@pytest.mark.usefixtures("two_layers")
def test_plan_shows_the_recipe_and_trains_nothing(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(elsewhere / "pairs.tsv")
    arguments = ["train", "google/flan-t5-xl", "pairs.tsv", "--bits", "4", "--epochs", "2", "--rank", "8", "--plan"]
    assert call(monkeypatch, *arguments, "--seeds", "0-1", "--set", "train.warmup=0.1") == 0
    message = capsys.readouterr().out
    assert "data: 8 training rows, 1 dev row" in message
    assert "tokenizer is not on this machine): about " in message, "the hub is offline"
    assert "estimated from the size of the model and the speed of the machine" in message
    assert ":\ngoogle/flan-t5-xl, LoRA of rank 8, 4 bits per weight, on the CPU" in message
    recipe = yaml.safe_load(message.split("\nsettings (change one with --set, such as --set train.batch_size=8):\n")[1])
    assert recipe["methods"] == [{"name": "lora", "bits": 4, "rank": 8}]
    assert recipe["family"]["arms"] == {"flan-t5-xl": "google/flan-t5-xl"}
    assert recipe["train"] == {"epochs": 2.0, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.1}
    assert recipe["seeds"] == [0, 1]
    assert not (elsewhere / "results").exists()


@pytest.mark.parametrize(
    ("model", "method", "rate", "prefix"),
    [
        ("google-t5/t5-base", "lora", 1e-3, "answer: "),
        ("google-t5/t5-base", "full", 1e-4, "answer: "),
        ("google/t5-v1_1-base", "lora", 1e-3, ""),
        ("Salesforce/codet5-base", "lora", 1e-3, ""),
        ("Helsinki-NLP/opus-mt-de-fr", "lora", 5e-4, ""),
        ("openai-community/gpt2", "lora", 2e-4, ""),
        ("openai-community/gpt2", "full", 2e-5, ""),
        ("nano/code", "full", 2e-2, ""),
        ("nano/code", "ia3", 0.1, ""),
        ("google-t5/t5-base", "ia3", 8e-3, "answer: "),
    ],
)
def test_default_learning_rate_and_prefix_depend_on_model_and_method(
    model: str, method: str, rate: float, prefix: str, elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write(elsewhere / "pairs.tsv")
    monkeypatch.setattr("petransfer.cli.train.memory_of", lambda *_: SimpleNamespace(fits=True, as_dict=dict))
    monkeypatch.setattr("petransfer.cli.train.estimate_json", lambda *_: {})
    assert call(monkeypatch, "train", model, "pairs.tsv", "--method", method, "--plan", "--json") == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["train"]["learning_rate"] == rate
    assert recipe["task"]["prefix"] == prefix


def test_plan_counts_tokens_and_measures_the_time_of_a_step(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from petransfer.models.checkpoint_files import load_tokenizer
    from petransfer.models.registry import checkpoint_spec

    remember_predictions(monkeypatch)
    write(elsewhere / "pairs.tsv")
    arguments = ["train", "nano/english", "pairs.tsv", "--plan", "--cpu", "--steps", "200", "--seeds", "0,1"]
    assert call(monkeypatch, *arguments, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(checkpoint_spec("nano/english"))
    data = load_task("lines", None, train="pairs.tsv").load("held-out")
    sizes = [len(tokenizer(row.input)["input_ids"]) for row in data.train]
    assert plan["tokens"]["inputs"] == pytest.approx(sum(sizes) / len(sizes))
    assert plan["tokens"]["longest"][0] == max(sizes)
    assert plan["seconds"]["measured"]
    assert 200 * plan["seconds"]["step"] <= plan["seconds"]["most"]
    assert plan["memory"]["fits"]
    assert plan["runs"] == 2
    assert call(monkeypatch, *arguments) == 0
    message = capsys.readouterr().out
    assert "per training run (2 runs)" in message
    assert "per step, measured)" in message
    assert f" per input on average (at most {max(sizes)}), " in message
    assert not (elsewhere / "results").exists()


def test_plan_of_a_training_that_does_not_fit_exits_with_1_and_trains_nothing(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember_predictions(monkeypatch)
    write(elsewhere / "pairs.tsv")
    monkeypatch.setattr("petransfer.study.train_study.host_bytes", lambda: 50_000_000)
    monkeypatch.setattr("petransfer.study.train_estimate._measured_step", lambda *_: pytest.fail("trained"))
    arguments = ["train", "nano/english", "pairs.tsv", "--plan", "--cpu"]
    assert call(monkeypatch, *arguments, "--json") == 1
    plan = json.loads(capsys.readouterr().out)
    assert (plan["memory"]["fits"], plan["seconds"]["measured"]) == (False, False)
    assert call(monkeypatch, *arguments) == 1
    assert "estimated from the size of the model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "batch", "steps", "every"),
    [
        ([], 16, 2000, 50),
        (["train.batch_size=1"], 1, 6400, 160),  # 20 epochs of 320 rows
        (["train.steps=20"], 16, 20, 20),
        (["train.steps = 8000"], 16, 8000, 200),
    ],
)
def test_defaults_follow_the_overridden_settings_they_depend_on(
    overrides: list[str], batch: int, steps: int, every: int, tmp_path: Path
) -> None:
    from petransfer.study.quick_recipe import recipe_for
    from petransfer.study.train_request import TrainRequest

    write(tmp_path / "pairs.tsv", [(f"go {chr(97 + at % 26)} {chr(97 + at // 26)}", "gone") for at in range(400)])
    train = recipe_for("nano/english", str(tmp_path / "pairs.tsv"), TrainRequest(), overrides, has_bf16=False)["train"]
    found = (train["batch_size"], train["steps"], train["early_stopping"]["every"])
    assert found == (batch, steps, every)


def test_default_learning_rates_follow_the_methods_recipe_and_the_model() -> None:
    from transformers import GPT2Config, T5Config

    from petransfer.recipe.loading import load_recipe
    from petransfer.recipe.methods import METHODS
    from petransfer.study.quick_recipe import default_learning_rate

    found_on_dev = load_recipe("methods-scan").train.learning_rate
    assert isinstance(found_on_dev, dict)
    # The recipe does not have these two methods. They have the learning rates of similar methods.
    expected = found_on_dev | {"bias": found_on_dev["ln"], "oft": found_on_dev["lora"]}
    for method in METHODS:
        assert default_learning_rate(method, T5Config(), nano=True) == expected[method], method
        assert default_learning_rate(method, T5Config(), nano=False) == pytest.approx(
            5 * default_learning_rate(method, GPT2Config(), nano=False)
        )
    assert default_learning_rate("prompt", GPT2Config(), nano=False) > 100 * default_learning_rate(
        "lora", GPT2Config(), nano=False
    )


def test_the_saved_recipe_works_anywhere_and_other_settings_get_another_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def carried_out(study: Any, kind: Any, *_: Any) -> None:
        kind.begin()
        study.folder.open(study.recipe)
        for cell in study.cells:
            (study.folder.run(cell.run_id).path).mkdir(parents=True, exist_ok=True)
            study.folder.run(cell.run_id).finish({})

    monkeypatch.setattr("petransfer.cli.train.print_summaries", lambda *_: None)
    monkeypatch.setattr("petransfer.cli.train.run_grid", carried_out)
    write(elsewhere / "pairs.tsv")
    short = ["train", "nano/english", "pairs.tsv"]
    assert call(monkeypatch, *short) == 0
    kept = elsewhere / "results" / "pairs-english" / "recipe.yaml"
    before = kept.read_text()
    assert yaml.safe_load(before)["task"]["options"]["train"] == str(elsewhere / "pairs.tsv")
    assert call(monkeypatch, *short, "--seeds", "0-1") == 0  # another seed of the same training
    after = kept.read_text()
    capsys.readouterr()
    for at, (more, unlike) in enumerate(
        (
            (["--rank", "8"], "rank=16 (you asked for 8)"),
            (["--max-steps", "5"], "train.steps=2000 (you asked for 5)"),
            (["--seeds", "1"], "seeds=[0, 1] (you asked for [1])"),
        ),
        start=2,
    ):
        assert call(monkeypatch, *short, "--seeds", "0-1", *more, "--out", "results/pairs-english") == 2
        message = capsys.readouterr().err
        assert f"results/pairs-english holds a training run with {unlike}" in message
        assert "--out" in message
        assert call(monkeypatch, *short, "--seeds", "0-1", *more) == 0  # in a new folder
        assert f"this run uses results/pairs-english-{at}" in capsys.readouterr().err
    assert kept.read_text() == after
    assert call(monkeypatch, *short, "--rank", "8", "--seeds", "0-1") == 0  # in the second folder again
    assert len(list((elsewhere / "results").iterdir())) == 4
    assert call(monkeypatch, *short, "--rank", "8", "--out", "other") == 0
    (elsewhere / "away").mkdir()
    monkeypatch.chdir(elsewhere / "away")
    monkeypatch.setenv("PETRANSFER_CACHE", str(elsewhere / "another"))
    capsys.readouterr()
    assert call(monkeypatch, "plan", "--recipe", str(kept), "--json") == 0
    ids = {run["run_id"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert ids == {path.name for path in (kept.parent / "runs").iterdir()}
    monkeypatch.chdir(elsewhere)
    Path("pairs.tsv").write_text(Path("pairs.tsv").read_text() + "to add\tmore\n")
    assert call(monkeypatch, *short, "--seeds", "0-1", "--out", "results/pairs-english") == 2
    assert "holds a training run with other rows of pairs.tsv" in capsys.readouterr().err


def test_metrics_of_labels_and_of_texts_are_computed(
    elsewhere: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(elsewhere / "kinds.tsv", [(f"word {n}", ("good", "bad")[n % 2]) for n in range(40)])
    asked = "task.metrics=[accuracy, macro_f1, chrf, bleu, rouge]"
    assert call(monkeypatch, "train", str(tiny_t5), "kinds.tsv", "--steps", "8", "--cpu") == 0
    (study,) = (elsewhere / "results").iterdir()
    found = result(study)
    assert found["test"]["accuracy"] in (0, 25, 50, 75, 100)
    assert found["test"]["accuracy"] >= found["test"]["exact_match"]
    assert call(monkeypatch, "train", str(tiny_t5), "kinds.tsv", "--steps", "8", "--set", asked, "--out", "two") == 0
    found = result(elsewhere / "two")
    names = {"accuracy", "macro_f1", "chrf", "bleu", "rouge1", "rouge2", "rougeL"}
    assert names <= found["test"].keys()
    assert names <= found["dev"].keys()
    table = pyarrow.parquet.read_table(next((elsewhere / "two").glob("runs/*/examples.parquet")))
    data = load_task("lines", None, train="kinds.tsv").load("held-out")
    import sacrebleu

    expected = sacrebleu.corpus_chrf(table["answer"].to_pylist(), [[row.target for row in data.test]]).score
    assert found["test"]["chrf"] == pytest.approx(expected)
    assert "test_accuracy" in (elsewhere / "two" / "table.csv").read_text()


def test_predict_puts_its_input_into_the_template_of_the_training(
    elsewhere: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"title": f"t {n}", "document": f"d {n}", "target": f"s {n}"} for n in range(12)]
    (elsewhere / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked: list[Any] = []
    monkeypatch.setattr(
        "petransfer.evaluation.predictor.encode_inputs",
        lambda texts, *_, **__: asked.extend(texts) or [(1,)] * len(texts),
    )
    for template, text, expected in (
        ("sum: {document}", "d 7", "go: sum: d 7"),
        ("{title}: {document}", '{"title": "t 7", "document": "d 7"}', "go: t 7: d 7"),
    ):
        out = f"out{len(asked)}"
        sets = ["--set", f"task.options.template='{template}'", "--prefix", "go: ", "--out", out]
        assert call(monkeypatch, "train", str(tiny_t5), "a.jsonl", "--steps", "3", "--cpu", *sets) == 0
        (run,) = (elsewhere / out / "runs").iterdir()
        assert call(monkeypatch, "predict", str(run), text, "--max-new-tokens", "2") == 0
        assert asked[-1] == expected
    assert call(monkeypatch, "predict", str(run), "d 7") == 2
    assert "not a JSON object with title, document" in capsys.readouterr().err


def test_the_run_id_depends_on_the_rows_and_not_on_their_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(elsewhere / "a.tsv")
    (elsewhere / "b.jsonl").write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in TEN))
    write(elsewhere / "c.tsv", [*TEN[:-1], ("must say", "muss reden")])
    ids = []
    for name in ("a.tsv", "b.jsonl", "c.tsv"):
        recipe = elsewhere / "mine.yaml"
        recipe.write_text(
            f"name: mine\ntask: {{name: lines, options: {{train: {name}}}}}\narms: [english]\n"
            "methods: [{name: lora, bits: 32}]\ntrain: {steps: 4, learning_rate: 1.0e-3}\n"
        )
        assert call(monkeypatch, "plan", "--recipe", str(recipe), "--json") == 0
        ids.append(json.loads(capsys.readouterr().out)["runs"][0]["run_id"])
    assert ids[0] == ids[1] != ids[2]


FAMILY = """
name: mine
task: {{name: lines, options: {{train: pairs.tsv, dev: 5, test: 8}}}}
family:
  name: mine
  base: one
  prefix: "a: "
  arms:
    one: {one}
    two: {{checkpoint: {two}, prefix: "b: "}}
    three: {{checkpoint: {two}, tokenizer: {tokenizer}}}
    four: {{checkpoint: {two}, reinit: embeddings}}
arms: [one, two, three, four, scratch, random]
methods: [{{name: lora, rank: 2, bits: 32}}]
seeds: [0]
train: {{steps: 4, batch_size: 4, learning_rate: {{lora: 1.0e-3, full: 1.0e-3}}}}
effects: [one-two, one-scratch, two-random, three-four]
"""


def test_a_family_of_own_checkpoints_with_control_arms_effects_and_report(
    elsewhere: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    two = other_checkpoint(tiny_t5, elsewhere / "two")
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(tiny_t5).save_pretrained(elsewhere / "pieces")
    write(elsewhere / "pairs.tsv", [(f"in {n}", f"out {n}", ("a", "b")[n % 2]) for n in range(40)])
    recipe = elsewhere / "mine.yaml"
    recipe.write_text(FAMILY.format(one=tiny_t5, two=two, tokenizer=elsewhere / "pieces"))
    assert call(monkeypatch, "run", "--recipe", str(recipe), "--cpu") == 0
    study = elsewhere / "results" / "mine"
    specs = [json.loads(path.read_text()) for path in study.glob("runs/*/spec.json")]
    assert len(specs) == 6
    assert {(spec["checkpoint"]["reinit"], spec["task"]["prefix"]) for spec in specs} == {
        ("none", "a: "), ("none", "b: "), ("embeddings", "a: "), ("all", "a: "),
    }  # fmt: skip
    (pieces,) = {spec["checkpoint"]["tokenizer"] for spec in specs} - {None}
    assert pieces.startswith("pieces@")
    effects = json.loads((study / "effects.json").read_text())["effects"]
    assert [effect["name"] for effect in effects] == ["one-two", "one-scratch", "two-random", "three-four"]
    assert all(effect["verdict"] for effect in effects)
    capsys.readouterr()
    assert call(monkeypatch, "report", str(study)) == 0
    assert call(monkeypatch, "predict", str(run_of(study, pieces)), "in 3", "--max-new-tokens", "4") == 0


def run_of(study: Path, tokenizer: str) -> Path:
    found = (path.parent for path in study.glob("runs/*/spec.json") if tokenizer in path.read_text())
    return next(found)


def other_checkpoint(tiny: Path, folder: Path) -> Path:
    """Save a checkpoint with the same architecture and other weights, and return its folder."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(tiny)
    torch.manual_seed(5)
    for value in model.parameters():
        value.data.add_(0.01 * torch.randn_like(value))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder
