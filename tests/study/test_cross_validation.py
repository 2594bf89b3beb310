"""`train --folds`: each row is scored once, and the final adapter is trained on all rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

import petransfer as pt
from petransfer.data import load_task
from petransfer.errors import RunError, UserError
from petransfer.study.cross_validation import FoldScore, check_folds, cross_validation, median_steps, summary
from petransfer.study.train_request import TrainRequest
from petransfer.study.train_study import small_data_note
from tests.cli.calls import call

WORDS = ["walk", "run", "see", "say", "hear", "go", "come", "sing", "sleep", "eat"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file with ten inputs, one of them twice."""
    path = tmp_path / "verbs.tsv"
    path.write_text("".join(f"to {word}\t{word}s\n" for word in [*WORDS, WORDS[0]]))
    return path


def _inputs(rows: Path, part: str, fold: str, **options: Any) -> list[str]:
    return [
        example.input
        for example in getattr(load_task("lines", train=str(rows), fold=fold, **options).load("held-out"), part)
    ]


def test_every_row_is_in_the_dev_set_of_one_fold(rows: Path) -> None:
    folds = [_inputs(rows, "dev", f"{number}/3") for number in (1, 2, 3)]
    assert sorted(text for fold in folds for text in fold) == sorted([f"to {word}" for word in [*WORDS, WORDS[0]]])
    assert {len(set(fold)) for fold in folds} == {3, 4}
    assert sum("to walk" in fold for fold in folds) == 1, "rows with the same input must be in the same fold"
    for number, fold in enumerate(folds, 1):
        assert sorted([*fold, *_inputs(rows, "train", f"{number}/3")]) == sorted(text for one in folds for text in one)
        assert _inputs(rows, "test", f"{number}/3") == []


def test_fold_all_has_all_rows_in_train_dev_and_test(rows: Path) -> None:
    assert len(_inputs(rows, "train", "all")) == 11
    assert _inputs(rows, "dev", "all") == _inputs(rows, "test", "all") == _inputs(rows, "train", "all")


def test_a_test_file_is_the_test_set_of_each_fold(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("to jump\tjumps\n")
    for fold in ("1/3", "all"):
        assert _inputs(rows, "test", fold, test=str(tmp_path / "test.tsv")) == ["to jump"]


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "some", "1/5/5", "-1/5"])
def test_a_fold_that_does_not_exist_is_refused(fold: str, rows: Path) -> None:
    with pytest.raises(UserError, match="fold is"):
        load_task("lines", train=str(rows), fold=fold)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"folds": 1}, ("--folds 1", "from 2 to 100")),
        ({"folds": 0}, ("--folds 0", "from 2")),
        ({"folds": -5}, ("--folds -5", "from 2")),
        ({"folds": 2.5}, ("--folds 2.5", "from 2")),
        ({"folds": 101}, ("--folds 101", "to 100")),
        ({"folds": 5, "dev": "0.1"}, ("--folds", "--dev")),
        ({"folds": 5, "seeds": (0, 1)}, ("--folds", "one seed")),
        ({"folds": 5, "options": {"fold": "all"}}, ("--folds", "remove fold=all")),
    ],
)
def test_the_error_for_bad_settings_of_folds_names_the_option(settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        check_folds(TrainRequest(**settings))
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--folds", "11"), ("verbs.tsv", "10 different inputs", "11 folds", "--folds")),
        (("--folds", "1"), ("--folds 1",)),
        (("--folds", "3", "--test", "0.2"), ("folds", "test", "file")),
        (("--folds", "3", "--dev", "0.2"), ("--folds", "--dev")),
        (("--set", "task.options.fold=1/3"), ("with fold 1/3, no row is left for the test set", "--test", "--folds 3")),
        (("--folds", "3", "--set", "seeds=[0,1]"), ("--folds", "one run per fold", "give 2", "one seed")),
        (("--folds", "3", "--set", "methods=[{name: lora}, {name: ia3}]"), ("--folds", "give 2", "one method")),
        (("--folds", "3", "--set", "task.options.fold=all"), ("--folds", "remove --set task.options.fold")),
        (("--folds", "3", "--set", "task.options.fold=2/3"), ("--folds", "remove --set task.options.fold")),
    ],
)
def test_bad_options_give_one_line_of_error_and_write_nothing(
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(rows.parent)
    assert call(monkeypatch, "train", "nano/english", "verbs.tsv", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert all(part in shown.err for part in parts)
    assert not (rows.parent / "results").exists()


def test_the_plan_counts_a_run_per_fold_and_the_run_on_all_rows(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    planned: list[int] = []
    monkeypatch.setattr("petransfer.cli.train.memory_of", lambda *_: SimpleNamespace(fits=True, as_dict=dict))
    monkeypatch.setattr("petransfer.cli.train.estimate_json", lambda *given: planned.append(given[-1]) or {})
    assert call(monkeypatch, "train", "nano/english", "verbs.tsv", "--folds", "3", "--plan", "--json", "--cpu") == 0
    assert planned == [4]


def test_the_final_training_takes_its_number_of_steps_from_the_folds(rows: Path, tmp_path: Path) -> None:
    """An override of the steps applies to the folds only. Early stopping is off, because no row is left for it."""
    overrides = ["train.steps=900", "train.early_stopping.every=20", "train.warmup=0.2"]
    found = cross_validation("nano/english", str(rows), TrainRequest(folds=2), overrides, tmp_path / "out", False)
    scores = tuple(FoldScore(number, 4, 50.0, 500) for number in (1, 2))
    train = found.last_training(scores).grid.recipe.train
    assert (train.steps, train.early_stopping, train.warmup) == (500, None, 0.2)


def test_fold_scores_give_mean_standard_deviation_and_median_steps() -> None:
    scores = (FoldScore(1, 10, 80.0, 300), FoldScore(2, 10, 90.0, 100), FoldScore(3, 10, 100.0, 250))
    assert "90.0 % on average, standard deviation 10.0 points" in summary(list(scores))
    assert "100 to 300" in summary(list(scores))
    assert median_steps(scores) == 250


def test_the_note_about_small_data_suggests_folds() -> None:
    assert "--folds 5" in small_data_note({"train": 10, "dev": 1, "test": 1})
    assert small_data_note({"train": 160, "dev": 20, "test": 20}) == ""


def test_an_interrupted_cross_validation_ends_like_an_uninterrupted_one(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call stops after the first fold. The second call resumes and does not repeat this fold."""

    def train(out: Path) -> None:
        pt.train("nano/english", rows, folds=2, steps=2, out=out, cpu=True)

    train(tmp_path / "whole")
    real, done = pt.Study.run, []

    def once(self: pt.Study, **options: Any) -> Any:
        if done:
            raise RunError("stopped")
        done.append(real(self, **options))

    with monkeypatch.context() as patch:
        patch.setattr(pt.Study, "run", once)
        with pytest.raises(RunError, match="stopped"):
            train(tmp_path / "again")
    (first,) = (tmp_path / "again" / "folds" / "1" / "runs").iterdir()
    before = (first / "result.json").read_bytes()
    train(tmp_path / "again")
    assert (first / "result.json").read_bytes() == before
    whole, again = (json.loads((tmp_path / name / "folds.json").read_text()) for name in ("whole", "again"))
    assert whole == again
    assert [one["rows"] for one in whole["folds"]] in ([5, 6], [6, 5])
    assert whole["steps"] == 2
    left, right = (
        load_file(next((tmp_path / name / "runs").iterdir()) / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "again")
    )
    assert all((left[name] == right[name]).all() for name in left)


def test_the_report_does_not_present_training_rows_as_test_rows(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pt.train("nano/english", rows, folds=2, steps=2, out=tmp_path / "study", cpu=True)
    capsys.readouterr()
    assert call(monkeypatch, "report", str(tmp_path / "study")) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "exact match on its training rows" in message
    assert "dev exact match" not in message
    assert "test" not in message.replace(str(tmp_path), "")
    assert "For new rows, the 2 folds count: exact match 0.0 % (standard deviation 0.0 points)." in message
    fold = tmp_path / "study" / "folds" / "1"
    assert call(monkeypatch, "report", str(fold)) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "dev exact match" in message
    assert "1 finished run was not scored on the test set" in message
    pt.Study(fold).run(cpu=True)  # a fold has no test rows, so nothing is left to do
    assert call(monkeypatch, "run", str(fold), "--cpu") == 0
    assert "finished before; nothing to do" in capsys.readouterr().err


def test_folds_are_refused_in_several_launched_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process group of a launch ends with the first study, here the first fold."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--folds trains in one process"):
        check_folds(TrainRequest(folds=3))


@pytest.mark.parametrize(
    ("name", "option"), [("steps", "steps"), ("max_steps", "max-steps"), ("batch_size", "batch-size")]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_number_below_one_is_refused_and_not_replaced_by_the_default(name: str, option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"--{option} {value}: give a whole number of 1 or more"):
        TrainRequest(**{name: value})
