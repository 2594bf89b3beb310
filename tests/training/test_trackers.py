"""Trackers: real TensorBoard event files, an offline Weights & Biases run, failures, and refused settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from petransfer.errors import UserError
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.folders import RunFolder
from petransfer.study.scheduling import Scheduling
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.training import tracker_names
from petransfer.training.execution import Execution
from petransfer.training.metrics_file import read_metrics
from petransfer.training.tracker_names import check_trackers
from petransfer.training.trackers import RunTrackers, SamplePrediction, start_trackers
from tests.cli.calls import call

SCALARS = {
    "train/loss", "train/learning_rate", "train/grad_norm", "train/examples_per_second", "memory/gb", "dev/exact_match",
    "dev/loss",
}  # fmt: skip


def test_an_unknown_tracker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown tracker of --log-with 'tensorbord': did you mean 'tensorboard'\?"):
        check_trackers(["tensorbord"])


def test_the_error_for_a_tracker_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracker_names.TRACKERS, "wandb", ("no_such_module", "petransfer[wandb]"))
    with pytest.raises(UserError, match=r"--log-with wandb: .* not installed; run `pip install 'petransfer\[wandb\]'`"):
        check_trackers(["wandb"])


def test_tracker_names_can_be_comma_separated_and_duplicates_are_removed() -> None:
    pytest.importorskip("tensorboard")
    assert check_trackers(["tensorboard,tensorboard", "tensorboard"]) == ("tensorboard",)
    assert check_trackers([]) == ()


def test_tensorboard_gets_the_metrics_and_sample_predictions(tiny_spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "study" / "runs" / "abc"
    settings = Settings(Execution(threads=1, log_every=2), cpu=True, log_with=("tensorboard",))
    run_one(tiny_spec(steps=4), RunFolder(folder), settings)
    events = EventAccumulator(str(folder / "tracking"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    written = {line["step"]: line["loss"] for line in read_metrics(folder / "metrics.jsonl")}
    assert logged == pytest.approx(written)
    (text,) = (tag for tag in events.Tags()["tensors"] if "dev/predictions" in tag)
    shown = events.Tensors(text)[0].tensor_proto.string_val[0].decode()
    assert "| input | target | prediction |" in shown
    assert shown.count("\n") == 4


def test_an_offline_wandb_run_is_written(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "study" / "runs" / "abc"
    folder.mkdir(parents=True)
    trackers = start_trackers(["wandb"], folder, tiny_spec(), torch.device("cpu"))
    (tracker,) = trackers._trackers
    trackers.log({"step": 2, "loss": 1.5, "seconds": 1.0, "learning_rate": 0.1, "grad_norm": 1.0})
    trackers.log_result({"final/dev_exact_match": 50.0}, [SamplePrediction("in", "out", "generated text")], 2)
    assert tracker.tracker.config["train.batch_size"] == 8
    trackers.close()
    (written,) = folder.glob("wandb/offline-run-*/*.wandb")
    words = (b"train/loss", b"memory/gb", b"final/dev_exact_match", b"dev/predictions")
    until = time.monotonic() + 120  # wandb's own process writes the file, on a busy machine even after `close`
    while not all(word in written.read_bytes() for word in words):
        assert time.monotonic() < until
        time.sleep(0.1)
    (table,) = folder.rglob("*.table.json")
    assert "generated text" in table.read_text()


class _Failing:
    """A tracker whose server cannot be reached."""

    name = "failing"

    def log(self, values: dict[str, Any], step: int) -> None:
        raise ConnectionError("no server")

    def finish(self) -> None:
        raise AssertionError("it is not used any more")


def test_a_tracker_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    trackers = RunTrackers([_Failing()], 8, torch.device("cpu"))  # type: ignore[list-item]
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            trackers.log({"step": step, "loss": 1.0, "seconds": 1.0})
    trackers.close()
    assert caplog.text.count("failing failed and is not used any more: no server") == 1


def test_an_unknown_tracker_is_refused_before_the_checkpoint_is_loaded(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    spec = replace(tiny_spec(), checkpoint=replace(tiny_spec().checkpoint, name="no/such", source="/nowhere"))
    with pytest.raises(UserError, match="unknown tracker"):
        run_one(spec, RunFolder(tmp_path / "run"), Settings(Execution(threads=1), cpu=True, log_with=("nothing",)))
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_an_unknown_tracker(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "lora-scan", "--log-with", "nothing") == 2
    assert "unknown tracker of --log-with 'nothing'" in capsys.readouterr().err


def test_runs_that_log_to_mlflow_are_not_stacked() -> None:
    """MLflow allows only one active run in a process."""
    option = "--log-with mlflow"
    assert Scheduling(stack="auto").without_stacks_if(True, option).stack == "off"
    assert Scheduling(stack="auto").without_stacks_if(False, option).stack == "auto"
    with pytest.raises(UserError, match="--stack 3 cannot be combined with --log-with mlflow"):
        Scheduling(stack="3").without_stacks_if(True, option)
