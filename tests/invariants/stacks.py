"""Helpers of the tests of stacks: specs, functions that run them alone or stacked, and comparisons of the results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from petransfer.recipe.run_spec import RunSpec
from petransfer.study.fine_tune import FineTune
from petransfer.study.folders import RunFolder, StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.local_executor import attempt_stacks
from petransfer.study.settings import Settings
from petransfer.study.single_run import run_one
from petransfer.study.stacked_run import run_stack
from petransfer.training.execution import Execution
from petransfer.training.metrics_file import read_metrics

SETTINGS = Settings(Execution(threads=1, log_every=1, save_every=0.0, micro_batch=4), cpu=True)
WEIGHTS = "adapter/adapter_model.safetensors"
Make = Callable[..., RunSpec]


def members(spec: RunSpec) -> list[RunSpec]:
    """Return specs of three runs that differ in settings in which the members of a stack may differ."""
    other = replace(spec.method, rank=2, alpha=3.0)
    return [
        spec,
        replace(spec, seed=1, method=other, train=replace(spec.train, learning_rate=5e-3)),
        replace(spec, seed=2, train=replace(spec.train, schedule="constant", weight_decay=0.1, rate_scaling="rms")),
    ]


def run_alone(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    for spec in specs:
        run_one(spec, RunFolder(out / spec.run_id), SETTINGS)
    return [out / spec.run_id for spec in specs]


def run_stacked(specs: Sequence[RunSpec], out: Path, **options: Any) -> list[Path]:
    run_stack(specs, [RunFolder(out / spec.run_id) for spec in specs], SETTINGS, **options)
    return [out / spec.run_id for spec in specs]


def lines(run: Path) -> list[dict[str, Any]]:
    return [{**line, "seconds": 0} for line in read_metrics(run / "metrics.jsonl")]


def assert_close(alone: Path, stacked: Path, tolerance: float) -> None:
    """Check that two runs have the same files, and the same numbers up to rounding."""
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*")} - {".claim", ".claim-owner"} for run in (alone, stacked)
    ]
    assert names[0] == names[1]
    left, right = lines(alone), lines(stacked)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        assert other["loss"] == pytest.approx(one["loss"], rel=tolerance)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=20 * tolerance)
        assert other["learning_rate"] == one["learning_rate"]
    weights = [load_file(run / WEIGHTS) for run in (alone, stacked)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert value.shape == weights[1][name].shape
        apart = float((value - weights[1][name]).norm() / value.norm().clamp(min=1e-6))
        assert apart <= 30 * tolerance, (name, apart)
    results = [json.loads((run / "result.json").read_text()) for run in (alone, stacked)]
    assert results[1]["environment"].pop("stacked") > 1
    assert results[0]["environment"] == results[1]["environment"]
    for key in ("run_id", "parameters", "trained_parameters", "weights", "steps", "micro_batch", "out_of_memory"):
        assert results[0][key] == results[1][key]
    tables = [pyarrow.parquet.read_table(run / "examples.parquet").to_pydict() for run in (alone, stacked)]
    assert tables[0].keys() == tables[1].keys()
    assert tables[0]["index"] == tables[1]["index"]
    assert tables[1]["log_prob"] == pytest.approx(tables[0]["log_prob"], rel=10 * tolerance)


def run_study(
    specs: Sequence[RunSpec],
    out: Path,
    stop: Callable[[], bool] = lambda: False,
    settings: Settings = SETTINGS,
) -> StudyFolder:
    """Execute one stack in the way of `petransfer run --stack`, but without a recipe."""
    study = StudyFolder(out)
    cells = [Cell("english", "lora", "", spec.seed, spec) for spec in specs if not study.run(spec.run_id).done]
    for cell in cells:
        study.run(cell.run_id).path.mkdir(parents=True, exist_ok=True)
        (study.run(cell.run_id).path / "failed.json").unlink(missing_ok=True)
    attempt_stacks(cells, study, FineTune(settings), 1, stop, lambda: None)
    return study


def assert_identical(whole: StudyFolder, cut: StudyFolder, specs: Sequence[RunSpec]) -> None:
    """Check that the runs of two studies are bit-identical, except for their times."""
    for spec in specs:
        one, other = whole.run(spec.run_id), cut.run(spec.run_id)
        assert one.done
        assert other.done
        left, right = (load_file(folder.path / WEIGHTS) for folder in (one, other))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert lines(one.path) == lines(other.path)
        tables = [pyarrow.parquet.read_table(folder.path / "examples.parquet") for folder in (one, other)]
        assert tables[0].equals(tables[1])
        results = [folder.result() or {} for folder in (one, other)]
        timed = {"seconds": 0, "train_seconds": 0}
        assert results[0] | timed == results[1] | timed
        assert not (other.path / "state").exists()


class KilledError(BaseException):
    """Ends everything at once, like SIGKILL."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int, after: bool) -> None:
    """Make the function at `place` raise `KilledError` in one call (counted from 0), before or after its own work."""
    module, _, name = place.rpartition(".")
    real, calls = getattr(sys.modules[module], name), iter(range(1000))

    def deadly(*arguments: Any, **options: Any) -> Any:
        struck = next(calls) == call
        if struck and not after:
            raise KilledError
        given = real(*arguments, **options)
        if struck:
            raise KilledError
        return given

    monkeypatch.setattr(place, deadly)
