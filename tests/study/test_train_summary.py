"""The messages at the end of `train`: why training stopped, the dev score that was still improving, and advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from petransfer.cli import train_output
from petransfer.study.folders import RunFolder
from petransfer.study.train_request import TrainRequest
from petransfer.study.train_study import train_study
from petransfer.study.train_summary import (
    FEW_ROWS,
    MEMORISED,
    TrainSummary,
    _equal_step,
    improving_score,
    settings_to_try,
)


def curve(exact: list[float], losses: list[float]) -> list[dict[str, float]]:
    return [{"dev_em": em, "dev_loss": loss, "loss": 9.0} for em, loss in zip(exact, losses, strict=True)]


@pytest.mark.parametrize(
    ("exact", "losses", "score"),
    [
        ([10, 20, 30], [3, 2, 1], "exact_match"),
        ([10, 30, 30], [3, 2, 1], ""),  # only the loss falls
        ([30, 30, 20], [3, 2, 1], ""),
        ([0, 0, 0], [3, 2, 1], "loss"),
        ([0, 0, 0], [3, 1, 2], ""),
        ([50, 60, 100], [3, 2, 1], ""),  # exact match cannot rise further
        ([*range(9), 20, 19], [1.0] * 11, "exact_match"),  # the best score is in the last fifth
        ([10], [1], ""),
    ],
)
def test_only_a_score_that_improved_at_the_end_is_called_improving(
    exact: list[float], losses: list[float], score: str
) -> None:
    assert improving_score(curve(exact, losses)) == score


def test_the_advice_names_the_score_and_the_options_to_try(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("".join(f"say {at}\t{at}\n" for at in range(20)))
    study = train_study("nano/english", str(tmp_path / "rows.tsv"), TrainRequest(), [], tmp_path / "out", False)
    cell = study.grid.cells[0]
    stopped = TrainSummary(cell, RunFolder(tmp_path), 50.0, 40.0, 2000, 650, "max_steps", "exact_match", ())
    assert "exact match on dev was still rising" in stopped.advice
    assert "--max-steps 4000" in stopped.advice
    flat = replace(stopped, still_improving="")
    assert "exact match on dev is low" in flat.advice
    assert "--max-steps" not in flat.advice
    assert "loss on dev was still falling" in replace(stopped, dev=0.0, still_improving="loss").advice
    assert replace(flat, dev=95.0).advice == ""
    # early stopping has found that exact match rises too little
    assert replace(stopped, stop_reason="no_improvement").advice == flat.advice
    assert "try more rows, or --method full" in replace(flat, rows=16).advice
    assert "more rows" not in replace(flat, rows=FEW_ROWS).advice


def test_the_stop_reason_names_the_score_that_did_not_improve(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("".join(f"say {at}\t{at}\n" for at in range(20)))
    study = train_study("nano/english", str(tmp_path / "rows.tsv"), TrainRequest(), [], tmp_path / "out", False)
    one = TrainSummary(
        study.grid.cells[0], RunFolder(tmp_path), 96.0, 90.0, 1050, 750, "no_improvement", "exact_match", ()
    )
    assert one.stopped == "training stopped at step 1,050, because exact match on dev had not risen in 6 evaluations"
    assert one.saved == "the adapter has the weights of step 750, the best on dev"
    assert "neither exact match nor the loss on dev had improved in 6" in replace(one, dev=12.0).stopped
    later = replace(one, best_step=1050, equal_step=750)
    assert "had not risen" in later.stopped
    assert later.saved.startswith("exact match on dev was equally high at steps 750 and 1,050; the adapter has the")
    assert "of step 1,050, where the loss on dev was lower" in later.saved
    assert "always 0 %; the adapter has the weights of step 1,050, where" in replace(later, dev=0.0).saved
    assert "had risen by less than 0.5 points in 6 evaluations" in replace(later, equal_step=0).stopped
    assert "the largest number of steps (--max-steps)" in replace(one, stop_reason="max_steps").stopped
    limited = TrainRequest(max_minutes=1)
    study = train_study("nano/english", str(tmp_path / "rows.tsv"), limited, [], tmp_path / "limited", False)
    over = replace(one, cell=study.grid.cells[0], stop_reason="max_minutes")
    assert over.stopped == "training stopped at step 1,050, because the time limit was reached (--max-minutes 1)"
    assert over.advice == "exact match on dev was still rising when training ended; try --max-minutes 2"
    assert "try --max-minutes 2, or more rows" in replace(over, dev=50.0, rows=16).advice
    assert "--max-steps" not in replace(over, dev=50.0).advice


def test_equal_step_is_the_first_earlier_step_with_the_same_exact_match() -> None:
    lines = [{"step": 50 * at, "dev_em": em} for at, em in enumerate([10.0, 80.0, 80.0, 70.0, 80.0], 1)]
    assert _equal_step(lines, 250) == 100
    assert _equal_step(lines, 100) == _equal_step(lines, 50) == _equal_step([], 0) == 0


def test_the_advice_for_a_model_that_memorised_its_rows_is_to_add_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("".join(f"say {at}\t{at}\n" for at in range(20)))
    study = train_study("nano/english", str(tmp_path / "rows.tsv"), TrainRequest(), [], tmp_path / "out", False)
    one = TrainSummary(
        study.grid.cells[0],
        RunFolder(tmp_path),
        5.0,
        0.0,
        950,
        650,
        "no_improvement",
        "",
        (),
        train_loss=0.01,
        rows=400,
    )
    assert "training loss was only 0.010, but exact match on dev is 5 %" in one.advice
    assert "Add rows" in one.advice
    assert "training loss was below 0.001, but" in replace(one, train_loss=0.0001).advice
    assert not any(option in one.advice for option in ("--rank", "--method", "--learning-rate"))
    assert "--rank 64" in replace(one, train_loss=MEMORISED).advice
    rising = replace(one, still_improving="exact_match", stop_reason="max_steps").advice
    assert rising.endswith("try --max-steps 4000, or more rows")


@pytest.mark.parametrize(
    ("method", "rank", "learning_rate", "expected"),
    [
        ("lora", 16, 2e-3, ["--method full", "--rank 64", "--learning-rate 0.006"]),
        ("prompt", None, None, ["--method full", "--learning-rate 2"]),
        ("lora", 2048, 3.4, ["--method full", "--learning-rate 1"]),
    ],
)
def test_only_settings_that_train_accepts_are_advised(
    method: str, rank: int | None, learning_rate: float | None, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.tsv").write_text("".join(f"say {at}\t{at}\n" for at in range(20)))
    request = TrainRequest(method=method, rank=rank, learning_rate=learning_rate)
    study = train_study("nano/english", str(tmp_path / "rows.tsv"), request, [], tmp_path / "out", False)
    assert settings_to_try(study.grid.cells[0], 0) == expected
    text = dict(one.split() for one in settings_to_try(study.grid.cells[0], 0))
    accepted = TrainRequest(
        method=method, learning_rate=float(text["--learning-rate"]), rank=int(text["--rank"]) if rank == 16 else None
    )
    train_study("nano/english", str(tmp_path / "rows.tsv"), accepted, [], tmp_path / "other", False)


def test_the_advice_includes_a_new_folder_if_out_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same --out, the advised settings would be refused. Without --out, `train` takes a new folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.tsv").write_text("".join(f"say {at}\t{at}\n" for at in range(20)))
    for out in (None, tmp_path / "out"):
        study = train_study("nano/english", "rows.tsv", TrainRequest(), [], out, False)
        one = TrainSummary(study.grid.cells[0], RunFolder(tmp_path), 5.0, 4.0, 2000, 650, "max_steps", "", ())
        monkeypatch.setattr(train_output, "summaries", lambda grid, one=one: [one, one])
        capsys.readouterr()
        train_output.print_summaries(study)
        message = capsys.readouterr().out
        assert (message.count("to train with other settings, give another folder with --out") == 1) == (out is not None)
        assert "adapter push" not in message, "no push is suggested, because the model has not learnt its task"
