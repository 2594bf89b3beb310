"""`sweep` trains every arm and method at several learning rates and chooses on dev. It never reads the test set."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from petransfer.data import Example, SplitData
from petransfer.recipe.loading import load_recipe
from petransfer.study import encoded_data
from tests.cli import calls
from tests.invariants.kill_and_resume import ROWS
from tests.report.made import draw_nothing

RECIPE = """
name: swept
task: {{name: lines, options: {{train: {rows}, dev: 5, test: 6}}}}
family: {{name: mine, arms: {{english: {tiny}}}}}
arms: [english, scratch]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [0, 1]
train: {{steps: 6, batch_size: 8, learning_rate: {{lora: 2.0e-3, scratch: 2.0e-2}}}}
effects: [english-scratch]
"""

Call = Callable[..., int]


class Sealed(Sequence[Example]):
    """A test set that raises an error when it is read."""

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("the test set was looked at")

    def __len__(self) -> int:
        raise AssertionError("the test set was looked at")

    def __iter__(self) -> Iterator[Example]:
        raise AssertionError("the test set was looked at")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    return functools.partial(calls.call, monkeypatch)


@pytest.fixture
def recipe(tmp_path: Path, tiny_t5: Path) -> Path:
    path = tmp_path / "swept.yaml"
    (tmp_path / "rows.tsv").write_text("".join(ROWS))
    path.write_text(RECIPE.format(rows=tmp_path / "rows.tsv", tiny=tiny_t5))
    return path


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    load = encoded_data.task_data

    def load_sealed(*given: Any) -> SplitData:
        return replace(load(*given), test=Sealed())

    encoded_data.encoded_task.cache_clear()
    monkeypatch.setattr(encoded_data, "task_data", load_sealed)


def test_a_sweep_chooses_on_dev_and_is_saved_in_the_folder_of_the_study(
    recipe: Path, tmp_path: Path, call: Call, sealed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("sweep", "--recipe", str(recipe), "--out", str(out), "--cpu", "--workers", "1", "--steps", "3")
    assert call(*words) == 0
    message = capsys.readouterr().out
    content = json.loads((out / "sweep.json").read_text())
    groups = {one["arm"]: one for one in content["groups"]}
    assert [rate["rate"] for rate in groups["english"]["rates"]] == [1e-3, 2e-3, 4e-3]
    assert [rate["rate"] for rate in groups["scratch"]["rates"]] == [1e-2, 2e-2, 4e-2]
    runs = {path.name: path for path in (out / "sweep" / "runs").iterdir()}
    assert len(runs) == 6
    for one in content["groups"]:
        assert (one["steps"], one["own_steps"]) == (3, 6)
        best = min(one["rates"], key=lambda rate: (-rate["dev_em"], rate["dev_loss"]))
        assert one["chosen"] == best["rate"]
        for rate in one["rates"]:
            (run,) = rate["runs"]
            folder = runs.pop(run["run_id"])
            names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            assert names == {"spec.json", "metrics.jsonl", "result.json", "DONE"}
            result = json.loads((folder / "result.json").read_text())
            assert "test" not in result
            assert run["dev_em"] == result["dev"]["exact_match"]
            assert run["dev_loss"] == -result["dev"]["log_prob_per_token"]
            assert json.loads((folder / "spec.json").read_text())["train"]["learning_rate"] == rate["rate"]
    rates = yaml.safe_load(message[message.index("learning_rate:") :])["learning_rate"]
    assert rates == content["learning_rate"]
    assert rates["lora"] == groups["english"]["chosen"]
    assert "rates were chosen at 3 steps; the study trains for 6 steps" in message


def test_a_repeated_sweep_skips_finished_runs_and_can_be_extended(
    recipe: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("sweep", "--recipe", str(recipe), "--out", str(out), "--cpu", "--workers", "1", "--steps", "2")
    assert call(*words, "--arms", "english", "--factors", "1,2", "--stack", "2") == 0
    results = [json.loads(path.read_text()) for path in out.glob("sweep/runs/*/result.json")]
    assert [(one["environment"]["stacked"], "test" in one) for one in results] == [(2, False)] * 2
    before = {path: path.stat().st_mtime_ns for path in out.glob("sweep/runs/*/*")}
    capsys.readouterr()
    assert call(*words, "--arms", "english", "--factors", "1,2") == 0
    assert "all 2 runs finished before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.glob("sweep/runs/*/*")} == before
    assert call(*words, "--arms", "english", "--factors", "4") == 0
    assert call(*words, "--arms", "scratch", "--rates", "3e-2") == 0
    english, scratch = json.loads((out / "sweep.json").read_text())["groups"]
    assert [rate["rate"] for rate in english["rates"]] == [2e-3, 4e-3, 8e-3]
    assert ([rate["rate"] for rate in scratch["rates"]], scratch["edge"]) == ([3e-2], "only")
    kept = load_recipe(str(out / "recipe.yaml"))
    assert (kept.seeds, kept.arms, kept.effects) == ([0, 1], ["english", "scratch"], ["english-scratch"])
    capsys.readouterr()
    assert call("status", str(out)) == 0
    message = capsys.readouterr().out
    assert "4 runs: 4 waiting\nsweep: 4 runs: 4 done\n" in message
    assert "swept: sweep" in message
    assert call("status", str(out), "--json") == 0
    assert [one["arm"] for one in json.loads(capsys.readouterr().out)["sweep"]] == ["english", "scratch"]
    draw_nothing(monkeypatch)
    assert call("report", str(out)) == 0
    assert "Exact match</h2>" not in (out / "report.html").read_text()
    assert call("run", "--recipe", str(recipe), "--out", str(out), "--cpu", "--workers", "1", "--seeds", "0") == 0
    assert call("report", str(out)) == 0
    page = (out / "report.html").read_text()
    assert "Learning rates" in page


def test_a_sweep_run_has_the_id_and_dev_scores_of_the_equal_study_run(recipe: Path, tmp_path: Path, call: Call) -> None:
    """With the learning rate and steps of the study, the sweep's run only lacks the scores on the test set."""
    out = tmp_path / "out"
    words = ("--recipe", str(recipe), "--out", str(out), "--cpu", "--workers", "1", "--arms", "english")
    assert call("sweep", *words, "--factors", "1") == 0
    assert call("run", *words, "--seeds", "0") == 0
    (swept,), (own,) = ([*folder.iterdir()] for folder in (out / "sweep" / "runs", out / "runs"))
    assert swept.name == own.name
    both = [json.loads((run / "result.json").read_text()) for run in (swept, own)]
    assert both[0]["dev"] == both[1]["dev"]
    assert both[0].keys() == both[1].keys() - {"test"}


def test_a_failed_run_of_a_sweep_is_reported(
    recipe: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "petransfer.training.loop.schedule_factor", lambda spec, step: 1e30 if spec.learning_rate == 9 else 1.0
    )
    out = tmp_path / "out"
    words = ("sweep", "--recipe", str(recipe), "--out", str(out), "--cpu", "--workers", "1", "--arms", "english")
    sets = ("--set", "train.max_grad_norm=0", "--set", "train.schedule=constant", "--steps", "4")
    assert call(*words, "--learning-rates", "2e-3,4e-3,9", *sets) == 1
    message = capsys.readouterr()
    assert "1 of 3 runs failed" in message.err
    assert "9: failed" in message.out
    (group,) = json.loads((out / "sweep.json").read_text())["groups"]
    assert group["chosen"] in (2e-3, 4e-3)
    assert group["edge"] == ("lowest" if group["chosen"] == 2e-3 else None)
    assert "the loss is" in group["rates"][-1]["runs"][0]["failure"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--learning-rates", "1e-3", "--factors", "2"],
            "--learning-rates and --factors both set the learning rates; give only one of them",
        ),
        (
            ["--learning-rates", "1e-3,x"],
            "--learning-rates 1e-3,x: write numbers above 0, separated by commas, such as 0.5,1,2",
        ),
        (["--factors", "0"], "--factors 0: write numbers above 0, separated by commas, such as 0.5,1,2"),
        (
            ["--learning-rates", "20"],
            "the learning rate 20 for english, lora r4 32-bit must be between 0 and 10; choose other values with "
            "--learning-rates or --factors, such as --factors 0.25,0.5,1",
        ),
    ],
)
def test_invalid_learning_rates_are_refused(
    options: list[str], message: str, recipe: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("sweep", "--recipe", str(recipe), "--out", str(tmp_path / "out"), *options) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_the_folder_of_another_study_is_refused(
    recipe: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "recipe.yaml").write_text("name: other\n")
    assert call("sweep", "--recipe", str(recipe), "--out", str(out), "--cpu") == 2
    assert "belongs to the recipe 'other', not 'swept'" in capsys.readouterr().err
    (out / "recipe.yaml").unlink()
    (out / "sweep.json").write_text('{"study": "other", "learning_rate": {}, "groups": []}')
    assert call("sweep", "--recipe", str(recipe), "--out", str(out), "--cpu") == 2
    assert "has a sweep of the recipe 'other'" in capsys.readouterr().err


def test_plan_trains_nothing(recipe: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call("sweep", "--recipe", str(recipe), "--out", str(out), "--plan", "--seeds", "0-1", "--shard", "1/2") == 0
    assert "6 runs, 0 done, 36 steps to go" in capsys.readouterr().out
    assert call("sweep", "--recipe", str(recipe), "--out", str(out), "--plan", "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {run["status"] for run in runs} == {"waiting"}
    assert len({run["learning_rate"] for run in runs}) > 1
    assert not out.exists()


def test_a_sweep_has_no_further_seeds_of_single_arms(
    recipe: Path, tmp_path: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    further = ("--set", "seeds=[1]", "--set", "more_seeds={scratch: [0, 7]}")
    assert call("sweep", str(recipe), "--plan", "--json", *further, "--out", str(tmp_path / "study")) == 0
    assert {run["seed"] for run in json.loads(capsys.readouterr().out)["runs"]} == {0}
