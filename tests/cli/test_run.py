"""The verbs `run`, `plan`, `status`, `predict` and others, mostly on a study of the smoke recipe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from benchmarks.startup import of_children
from petransfer.data import SplitData
from petransfer.memory.study_memory import largest_stacks
from petransfer.recipe.loading import load_recipe, shipped_recipes
from petransfer.study.encoded_data import task_data
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import expand
from petransfer.study.scheduling import Scheduling
from tests.cli.calls import call
from tests.invariants.kill_and_resume import ROWS
from tests.report.made import make, recipe_of
from tests.study.forked_workers import fork_workers

ROOT = Path(__file__).parents[2]


def _fewer_rows(*given: Any) -> SplitData:
    data = task_data(*given)
    return replace(data, train=data.train[:400], test=data.test[:100])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe, run by two workers on a part of SCAN's rows."""
    out = tmp_path_factory.mktemp("study") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        fork_workers(patch)
        patch.setattr("petransfer.study.encoded_data.task_data", _fewer_rows)
        assert call(patch, "run", "--recipe", "smoke", "--out", str(out), "--workers", "2", "--cpu") == 0
    return out


def test_a_finished_study_has_the_expected_files_columns_and_scores(study: Path) -> None:
    names = {path.name for path in study.iterdir() if not path.name.startswith(".")}
    assert names == {"recipe.yaml", "runs", "table.csv", "effects.json"}
    kinds = {}
    for run in (study / "runs").iterdir():
        names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
        result = json.loads((run / "result.json").read_text())
        spec = json.loads((run / "spec.json").read_text())
        kinds[spec["method"]["name"]] = names
        assert result["run_id"] == run.name
        assert result["test"]["examples"] == 100
        assert result["test"]["audited"] > 0
        assert result["test"]["disagreements"] == 0
        table = pyarrow.parquet.read_table(run / "examples.parquet")
        figures = ["index", "category", "correct", "margin", "log_prob", "tokens", "tokens_correct"]
        assert table.column_names == [*figures, "prediction", "input", "target"]
        texts = [row for row in table.to_pylist() if row["prediction"] is not None]
        assert texts
        assert all((row["prediction"] == row["target"]) == row["correct"] for row in texts)
        assert len(table) == 100
        assert sum(table["correct"].to_pylist()) == round(result["test"]["exact_match"])
    common = {"spec.json", "metrics.jsonl", "result.json", "examples.parquet", "DONE"}
    assert kinds == {"lora": common | {"adapter"}, "full": common | {"model"}}
    assert len((study / "table.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_spawned_workers_run_the_whole_smoke_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "run", "--recipe", "smoke", "--out", str(tmp_path), "--workers", "2", "--cpu") == 0
    tests = [json.loads(path.read_text())["test"] for path in tmp_path.glob("runs/*/result.json")]
    assert [test["examples"] for test in tests] == [1173, 1173]


def test_a_repeated_run_reports_finished_runs_without_importing_torch(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in study.glob("runs/*/*"))
    code = "import sys; sys.argv = sys.argv[1:]\nfrom petransfer.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    arguments = ["petransfer", "run", "--recipe", "smoke", "--out", str(study)]
    seconds = of_children()
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert of_children() - seconds < 5  # seconds of processor time
    assert "all 2 runs finished before" in done.stderr
    assert "english" in done.stdout
    assert sorted((path, path.stat().st_mtime_ns) for path in study.glob("runs/*/*")) == before


def test_plan_and_status_show_which_runs_are_done(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "status", str(study), "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["status"] for run in runs] == ["done", "done"]
    assert call(monkeypatch, "plan", "--recipe", "smoke", "--out", str(study), "--seeds", "0-1", "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["seed"], run["status"]) for run in runs] == [(0, "done")] * 2 + [(1, "waiting")] * 2
    assert call(monkeypatch, "status", str(study)) == 0
    assert "jump_around_right" in capsys.readouterr().out


def test_effects_that_need_other_arms_are_listed_as_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("plan", "--recipe", "lora-transfer-nano", "--out", str(tmp_path))
    assert call(monkeypatch, *words, "--arms", "english,code,scratch") == 0
    message = capsys.readouterr().out
    line = (
        "effects skipped, because they need other arms than english, code, scratch: german-scratch, hungarian-scratch, "
        "code_anon-scratch, code-code_anon, protein-scratch, protein-english-newemb, "
        "retention of german-scratch under lora, retention of code_anon-scratch under lora"
    )
    assert line in message.splitlines()
    assert call(monkeypatch, *words, "--arms", "english,code,scratch", "--json") == 0
    assert "code-code_anon" in json.loads(capsys.readouterr().out)["dropped_effects"]
    assert call(monkeypatch, *words) == 0
    assert "effects skipped" not in capsys.readouterr().out
    out = make(tmp_path / "made", recipe_of(), examples=4)[1].path
    words = ("run", "--recipe", str(out / "recipe.yaml"), "--out", str(out))
    assert call(monkeypatch, *words, "--arms", "english,scratch") == 0
    line = "effects skipped, because they need other arms than english, scratch: german-scratch, retention of"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("part", ["adapter", "model"])
def test_predict_gives_the_same_texts_for_arguments_a_file_and_stdin(
    part: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = next(study.glob(f"runs/*/{part}")).parent
    texts = ["jump around right twice", "walk left"]
    limit = ["--max-new-tokens", "12"]
    assert call(monkeypatch, "predict", str(run), *texts, "--json", *limit) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    expected = [answer["output"].replace("\n", "\\n") for answer in answers]
    assert [answer["input"] for answer in answers] == texts
    file = tmp_path / "inputs.txt"
    file.write_text("\n".join(texts) + "\n")
    assert call(monkeypatch, "predict", str(run / part), "--file", str(file), *limit) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == expected
    with file.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        assert call(monkeypatch, "predict", str(run), *limit) == 0
    assert capsys.readouterr().out.split("\n")[:-1] == expected


def test_a_failed_run_does_not_stop_another_run(
    tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the scratch arm has the learning rate 9, which the test multiplies by 1e30 so that the run fails."""
    out, recipe = tmp_path / "out", tmp_path / "recipe.yaml"
    (tmp_path / "rows.tsv").write_text("".join(ROWS))
    text = STACKED.format(rows=tmp_path / "rows.tsv", tiny=tiny_t5).replace("seeds: [0, 1, 2]", "seeds: [0]")
    recipe.write_text(text.replace("2.0e-3}", "{lora: 2.0e-3, scratch: 9}, max_grad_norm: 0}"))
    monkeypatch.setattr(
        "petransfer.training.loop.schedule_factor", lambda spec, step: 1e30 if spec.learning_rate == 9 else 1.0
    )
    arguments = ["run", "--recipe", str(recipe), "--out", str(out), "--workers", "1", "--cpu"]
    assert call(monkeypatch, *arguments, "--arms", "scratch,english") == 1
    message = capsys.readouterr().err
    assert "1 of 2 runs failed" in message
    assert re.search(r"error: the (loss|gradient's norm) is", message)
    assert len(list(out.glob("runs/*/DONE"))) == 1


def test_recipes_can_be_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "recipes", "ls") == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in shipped_recipes())
    target = tmp_path / "mine.yaml"
    assert call(monkeypatch, "recipes", "cp", "lora-scan", str(target)) == 0
    assert target.read_text() == shipped_recipes()["lora-scan"].read_text()
    assert call(monkeypatch, "recipes", "cp", "lora-scan", str(target)) == 2
    assert "exists" in capsys.readouterr().err


def test_checkpoints_ls_lists_checkpoints_and_doctor_reports_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "checkpoints", "ls") == 0
    assert "nano/english" in capsys.readouterr().out
    assert call(monkeypatch, "doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bitsandbytes works"].startswith("yes")
    assert "hub" in found
    assert "core" in found["cpu"]
    # At 16 bits, products can be faster and training steps slower, so the line recommends no bits.
    products = r"on the CPU: 32 bits \S+ TFLOP/s with \d+ threads?, 16 bits \S+ TFLOP/s with \d+ threads?; a training"
    assert re.match(products, found["matrix products"])


def test_light_verbs_and_the_modules_for_packing_and_pushing_import_no_torch() -> None:
    """Importing torch takes seconds. One new process runs all verbs and then imports the modules."""
    code = """
import sys
from petransfer.cli import main

def check(name):
    assert not {'torch', 'transformers'} & sys.modules.keys(), name

for verb in ("--help", "plan --recipe lora-scan", "sweep --plan", "recipes ls"):
    sys.argv = ["petransfer", *verb.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, verb
    check(verb)
import petransfer.sharing.hub, petransfer.sharing.pack, petransfer.sharing.usage_code
check("the modules for packing and pushing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ci_runs_exactly_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text().splitlines()
    command = readme[readme.index("<!-- test-command -->") + 2]
    script = (ROOT / ".ci" / "run").read_text()
    extract = next(line for line in script.splitlines() if line.startswith("command="))
    shown = subprocess.run(
        ["bash", "-c", f'{extract}\necho "$command"'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == command
    assert "pytest" in command


def test_a_run_that_another_process_executes_is_not_executed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (cell, *_) = expand(load_recipe("smoke", options={"arms": ["english"]}))
    with StudyFolder(out).run(cell.run_id).claim() as claimed:
        assert claimed
        (out / "recipe.yaml").write_text("name: smoke\n")
        assert call(monkeypatch, "run", "--recipe", "smoke", "--arms", "english", "--out", str(out), "--cpu") == 1
    written = capsys.readouterr().err
    assert "another process is executing 1 of 1 run" in written
    assert "failed" not in written
    assert not (out / "runs" / cell.run_id / "spec.json").exists()


def test_the_stack_option_is_checked_and_stacks_runs(
    tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "rows.tsv").write_text("".join(ROWS))
    recipe.write_text(STACKED.format(rows=tmp_path / "rows.tsv", tiny=tiny_t5))
    words = ("run", "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--cpu", "--workers", "1")
    for wrong, message in {
        "x": "--stack x: write a whole number of 1 or more, auto or off",
        "0": "--stack 0: write a whole number of 1 or more, auto or off",
        "2 --checkpointing": "--stack 2 cannot be combined with --gradient-checkpointing",
        "2 --processes 2": "--stack 2 cannot be combined with --processes",
    }.items():
        assert call(monkeypatch, *words, "--stack", *wrong.split()) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: {message}")
    assert call(monkeypatch, *words, "--stack", "2") == 0
    runs = sorted((tmp_path / "out" / "runs").iterdir())
    stacked = [json.loads((run / "result.json").read_text())["environment"].get("stacked") for run in runs]
    assert sorted(stacked, key=str) == [2, 2, None]
    assert all((run / "DONE").exists() and not (run / "state").exists() for run in runs)


def test_by_generation_applies_to_new_runs_and_keeps_finished_results(
    tmp_path: Path, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    (tmp_path / "rows.tsv").write_text("".join(ROWS))
    (tmp_path / "asked.tsv").write_text("".join(f"must {n}\tsagen {n}\n" for n in range(40)))
    recipe.write_text(
        STACKED.format(rows=tmp_path / "rows.tsv", tiny=tiny_t5).replace("test: 6", f"test: {tmp_path / 'asked.tsv'}")
    )
    words = ("run", "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--cpu", "--workers", "1")
    assert call(monkeypatch, *words, "--seeds", "0") == 0
    (done,) = (tmp_path / "out" / "runs").iterdir()
    kept = (done / "result.json").read_bytes()
    capsys.readouterr()
    assert call(monkeypatch, *words, "--seeds", "0-2", "--stack", "2", "--by-generation") == 0
    message = capsys.readouterr()
    assert (
        "scored by generating texts: 2 runs, 80 test answers. The scores from one forward pass differ for 0 of them"
        in message.out
    )
    assert "1 finished run will not be scored again" in message.err
    assert (done / "result.json").read_bytes() == kept
    assert expand(load_recipe(str(recipe)))[0].run_id == done.name
    for run in (tmp_path / "out" / "runs").iterdir():
        test = json.loads((run / "result.json").read_text())["test"]
        predictions = pyarrow.parquet.read_table(run / "examples.parquet")["prediction"].to_pylist()
        assert test["audited"] + test["near_ties"] == 40 - predictions.count(None)
        assert ("by_generation" in test) == (run != done) == (None not in predictions)


STACKED = """
name: stacked
task: {{name: lines, options: {{train: {rows}, dev: 5, test: 6}}}}
family: {{name: mine, arms: {{english: {tiny}}}}}
arms: [english]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [0, 1, 2]
train: {{steps: 4, batch_size: 8, learning_rate: 2.0e-3}}
"""


def test_stack_auto_stacks_equal_runs_only_on_a_card_without_checkpointing() -> None:
    recipe = load_recipe("lora-scan", ["seeds=[0,1,2]"], {"arms": ["english", "scratch", "english-newemb"]})
    specs = [cell.spec for cell in expand(recipe)]
    many = largest_stacks(specs, 24 * 2**30)
    for spec in specs:
        stackable = spec.method.name == "lora" and spec.checkpoint.reinit == "none"
        assert many[spec.run_id] == (3 if stackable else 1)
    cells = expand(recipe)
    scheduling, card = Scheduling(), lambda: 24 * 2**30
    group, spread = scheduling.grouping(False, card), scheduling.grouping(False, card, cards=4)
    assert group is not None
    assert spread is not None
    assert max(map(len, group(cells))) == 3
    alike = next(stack for stack in group(cells) if len(stack) == 3)
    assert [len(stack) for stack in spread(alike)] == [1, 1, 1]  # on four cards
    assert scheduling.grouping(False, lambda: None) is None
    assert scheduling.grouping(True, card) is None
    assert Scheduling(stack="off").grouping(False, card) is None
