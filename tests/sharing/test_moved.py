"""Adapters whose base or data file was moved, deleted or changed after training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.sharing.conftest import call, refused


@pytest.fixture
def moved(run: Path, tmp_path: Path) -> Path:
    """A run whose spec.json names a data file that does not exist."""
    copied = Path(shutil.copytree(run.parent.parent, tmp_path / "study")) / "runs" / run.name
    spec = json.loads((copied / "spec.json").read_text())
    spec["task"]["source"] = [
        [key, "/gone/pairs.tsv" if key == "train" else value] for key, value in spec["task"]["source"]
    ]
    (copied / "spec.json").write_text(json.dumps(spec))
    return copied


def test_a_missing_data_file_is_found_by_its_name_in_data_dir(
    moved: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "eval", str(moved), "--cpu")
    assert all(word in message for word in ("there is no file /gone/pairs.tsv", "--data-dir", "--data"))
    assert "has no pairs.tsv" in refused(capsys, "eval", str(moved), "--cpu", "--data-dir", str(moved))
    assert call("eval", str(moved), "--cpu", "--data-dir", str(place), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["exact_match"] == json.loads((moved / "result.json").read_text())["test"]["exact_match"]


def test_the_error_for_a_missing_base_names_checkpoint(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = json.loads((moved / "spec.json").read_text())
    spec["checkpoint"]["source"] = "/gone/base"
    (moved / "spec.json").write_text(json.dumps(spec))
    message = refused(capsys, "predict", str(moved), "to walk", "--cpu")
    assert all(word in message for word in ("there is no folder /gone/base", "--checkpoint"))


def test_the_advice_for_rows_that_changed_after_training_works(
    run: Path, place: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error advises only options of the command that was called, and each advice works."""
    copied = Path(shutil.copytree(run.parent.parent, here / "study")) / "runs" / run.name
    spec = json.loads((copied / "spec.json").read_text())
    spec["task"]["source"] = [
        [key, str(here / "pairs.tsv") if key == "train" else value] for key, value in spec["task"]["source"]
    ]
    (copied / "spec.json").write_text(json.dumps(spec))
    (here / "pairs.tsv").write_text((place / "pairs.tsv").read_text().replace("gehen", "laufen"))

    message = refused(capsys, "eval", "study", "--cpu")
    assert all(part in message for part in ("pairs.tsv have changed", "--data-dir", "--data FILE"))
    assert "--out" not in message
    assert call("eval", "study", "--cpu", "--data", "pairs.tsv") == 0
    assert call("eval", "study", "--cpu", "--data-dir", str(place)) == 0, (
        "the file in --data-dir must be used instead of the changed file"
    )

    capsys.readouterr()
    assert call("adapter", "verify", "study", "--cpu") == 2
    message = capsys.readouterr().err
    assert all(part in message for part in ("pairs.tsv have changed", "--data-dir", "--no-evaluate"))
    assert "--data FILE" not in message
    assert call("adapter", "verify", "study", "--cpu", "--no-evaluate") == 0
    assert call("adapter", "verify", "study", "--cpu", "--data-dir", str(place)) == 0
    assert call("adapter", "verify", "study", "--cpu", "--no-evaluate", "--plain") == 2
    assert "or remove --plain" in capsys.readouterr().err


def test_a_whole_model_works_without_its_base(here: Path, tiny_t5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Older versions saved no tokenizer with the model. Such a model needs its base."""
    base = shutil.copytree(tiny_t5, here / "base")
    options = ("--method", "full", "--steps", "2", "--dev", "4", "--test", "4", "--cpu", "--out", "study")
    assert call("train", "./base", "pairs.tsv", *options, "--add-tokens", "newline,braces") == 0
    assert call("predict", "study", "to walk", "{", "--cpu", "--max-new-tokens", "4") == 0
    expected = capsys.readouterr().out.splitlines()[-2:]
    base.rename(here / "moved")
    for place in ("study", str(next((here / "study" / "runs").iterdir()) / "model")):
        assert call("predict", place, "to walk", "{", "--cpu", "--max-new-tokens", "4") == 0
        assert capsys.readouterr().out.splitlines() == expected
    (saved,) = (here / "study" / "runs").glob("*/model")
    AutoTokenizer.from_pretrained(saved)
    (saved / "tokenizer_config.json").unlink()
    message = refused(capsys, "predict", "study", "to walk", "--cpu")
    assert all(word in message for word in ("its base is gone", str(here / "base"), "--checkpoint"))
    assert call("predict", "study", "to walk", "{", "--cpu", "--max-new-tokens", "4", "--checkpoint", "./moved") == 0
    assert capsys.readouterr().out.splitlines() == expected
