"""Rows that the tokenizer or the length limit rejects are not counted as rows of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import petransfer as pt
from petransfer.cli.train_output import describe
from petransfer.errors import UserError
from petransfer.study import encoded_data
from petransfer.study.train_estimate import tokens_of
from petransfer.study.train_request import TrainRequest
from petransfer.study.train_study import TrainStudy, train_study
from petransfer.study.used_rows import notes_of
from tests.cli.calls import call

# generated text never contains a special token, so it can never equal this target
USED, UNUSABLE = 8, "walk </s>"


@pytest.fixture
def rows(elsewhere: Path) -> Path:
    """Files with 16 training rows, 6 dev rows and 6 test rows. The tokenizer rejects half of the rows of each file."""
    for name, count in (("train", 2 * USED), ("dev", 6), ("test", 6)):
        lines = (f"{name} walk {n}\t{'walk' if n % 2 else UNUSABLE}\n" for n in range(count))
        (elsewhere / f"{name}.tsv").write_text("".join(lines))
    return elsewhere / "train.tsv"


def _training(model: Path, overrides: tuple[str, ...] = (), **settings: object) -> TrainStudy:
    request = TrainRequest(batch_size=4, skip_bad_rows=True, dev="dev.tsv", test="test.tsv", **settings)  # type: ignore[arg-type]
    return train_study(str(model), "train.tsv", request, list(overrides), Path("out"), False)


def test_the_description_of_a_training_covers_only_the_used_rows(tiny_t5: Path, rows: Path) -> None:
    training = _training(tiny_t5, steps=3)
    assert training.rows == {"train": USED, "dev": 3, "test": 3}
    lines = "\n".join(describe(training))
    assert "8 training rows, 3 dev rows" in lines
    assert "the targets are 1 label ('walk')" in lines
    (first,) = (note for note in notes_of(training.grid) if note.startswith("first row:"))
    assert "target 'walk'" in first


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"overrides": ("train.steps=null", "train.epochs=3")}])
def test_epochs_count_the_used_rows(tiny_t5: Path, rows: Path, settings: dict[str, object]) -> None:
    training = _training(tiny_t5, **settings)  # type: ignore[arg-type]
    assert training.grid.cells[0].spec.train.steps == 6
    assert any("6 steps of 4 examples (3 epochs)" in line for line in describe(training))


def test_epochs_stay_in_the_recipe_if_all_rows_are_used(tiny_t5: Path, rows: Path) -> None:
    for name in ("train", "dev", "test"):
        Path(f"{name}.tsv").write_text("".join(f"{name} walk {n}\twalk\n" for n in range(2 * USED)))
    assert _training(tiny_t5, epochs=3).recipe["train"]["epochs"] == 3


def test_notes_on_a_recipe_correct_its_epochs_and_cover_only_the_used_rows(tiny_t5: Path, rows: Path) -> None:
    """Run ids are computed without a tokenizer, so a recipe's epochs are converted to steps with all rows."""
    Path("test.tsv").write_text(f"train walk 1\twalk\ntrain walk 2\twalk\nother\t{UNUSABLE}\nother\twalk\n")
    options = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv", "bad_rows": "skip"}
    study = pt.Study(
        {"name": "mine", "task": {"name": "lines", "options": options}, "arms": ["mine"], "effects": [],
         "family": {"name": "mine", "arms": {"mine": str(tiny_t5)}}, "seeds": [0],
         "methods": [{"name": "lora", "rank": 2, "bits": 32}],
         "train": {"epochs": 3, "batch_size": 4, "learning_rate": 0.001}},
    )  # fmt: skip
    assert study.grid.cells[0].spec.train.steps == 12
    lines = "\n".join(notes_of(study.grid))
    assert "counts all 16 training rows, and 8 of them are used: 12 steps are 6 epochs of these" in lines
    assert "1 of 3 test rows have an input that is trained on" in lines
    assert "more than one target" not in lines


def test_rows_over_the_length_limit_are_not_counted(tiny_t5: Path, rows: Path) -> None:
    Path("train.tsv").write_text("".join(f"walk {n}\t{'walk ' * (1 + 30 * (n % 2))}run\n" for n in range(2 * USED)))
    Path("dev.tsv").write_text("walk\twalk\n")
    Path("test.tsv").write_text("run\trun\n")
    training = _training(tiny_t5, epochs=3, max_length=20)
    assert training.rows["train"] == USED
    assert training.grid.cells[0].spec.train.steps == 6
    assert max(tokens_of(training.grid.cells[0].spec, "cpu").longest) <= 20


def test_one_error_counts_the_rows_of_all_checks(tiny_t5: Path, rows: Path) -> None:
    with rows.open("a") as file:
        file.write("walk again\t\n")
    request = TrainRequest(dev="dev.tsv", test="test.tsv")
    with pytest.raises(UserError) as error:
        train_study(str(tiny_t5), "train.tsv", request, [], Path("out"), False)
    read, _, encoded = str(error.value).partition(". Of the other rows, ")
    assert read.startswith("1 of 17 rows of train.tsv cannot be used: train.tsv:17: the target is empty")
    assert encoded.startswith("14 cannot be encoded: train.tsv:1: ")
    assert not Path("out").exists()


def test_the_rows_are_encoded_once(tiny_t5: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = encoded_data.encode_split
    monkeypatch.setattr(encoded_data, "encode_split", lambda *args, **named: calls.append(1) or real(*args, **named))
    training = _training(tiny_t5, epochs=2)
    assert training.rows["train"] == USED
    describe(training)
    assert len(calls) == 1


def test_folds_print_and_record_only_the_scored_rows(
    tiny_t5: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["train", str(tiny_t5), "train.tsv", "--folds", "2", "--steps", "2", "--skip-bad-rows", "--cpu"]
    assert call(monkeypatch, *shared, "--plan") == 0
    assert f"{USED} rows in 2 folds" in capsys.readouterr().out
    assert call(monkeypatch, *shared, "--out", "out") == 0
    shown = capsys.readouterr()
    folds = json.loads(Path("out/folds.json").read_text())["folds"]
    assert sum(fold["rows"] for fold in folds) == USED
    assert f"on {folds[0]['rows']} rows" in shown.out
    assert f"last run: training on all {USED} rows" in shown.out
    # each bad row counts once, although the last run uses each row as training, dev and test row
    assert f"{USED} bad rows left out" in shown.err
    assert f"{3 * USED} bad rows" not in shown.err


def test_pt_train_counts_only_the_used_rows(tiny_t5: Path, rows: Path) -> None:
    settings = {"dev": "dev.tsv", "test": "test.tsv", "batch_size": 4, "skip_bad_rows": True, "cpu": True}
    pt.train(tiny_t5, "train.tsv", epochs=1, out="out", **settings)  # type: ignore[arg-type]
    (run,) = Path("out/runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    assert (result["steps"], result["train_examples"]) == (2, USED)
