"""Ten thousand runs: `plan` takes seconds if no run is finished, and `status` if all but one are finished."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import of_children
from benchmarks.thousands import OF_A_SEED, write_recipe, write_study
from petransfer.recipe.loading import load_recipe
from petransfer.study.grid import expand
from petransfer.study.shard import Shard
from tests.cli.calls import call

SEEDS = 2500
RUNS = OF_A_SEED * SEEDS
# Seconds of processor time. `python -m benchmarks startup` measures at most half of it
# (results/bench/startup-cpu.json).
BOUND = 16.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of ten thousand runs."""
    path = tmp_path_factory.mktemp("scale") / "recipe.yaml"
    write_recipe(path, SEEDS)
    return path


def _call(*arguments: str) -> tuple[str, float]:
    before = of_children()
    done = subprocess.run([sys.executable, "-m", "petransfer", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, of_children() - before


def test_plan_of_ten_thousand_runs_takes_seconds(recipe: Path, tmp_path: Path) -> None:
    message, seconds = _call("plan", "--recipe", str(recipe), "--out", str(tmp_path))
    assert f"{RUNS:,} runs, 0 done" in message
    assert len({line.split()[0] for line in message.splitlines()[:RUNS]}) == RUNS
    assert seconds < BOUND


def test_plan_shows_one_shard_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, runs = tmp_path / "recipe.yaml", OF_A_SEED * 25
    write_recipe(path, 25)
    words = ("plan", "--recipe", str(path), "--out", str(tmp_path / "out"), "--shard", "2/3", "--json")
    assert call(monkeypatch, *words) == 0
    found = [run["run_id"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert found == [cell.run_id for cell in Shard(2, 3).of(expand(load_recipe(str(path))))]
    assert runs // 3 <= len(found) <= runs // 3 + 1


@pytest.mark.parametrize("seeds", [SEEDS // 10, pytest.param(SEEDS, marks=pytest.mark.slow)])
def test_status_of_thousands_of_finished_runs_takes_seconds(seeds: int, tmp_path: Path) -> None:
    """One thousand runs by default, because writing the folders of ten thousand takes longer than reading them."""
    runs = OF_A_SEED * seeds
    write_recipe(tmp_path / "recipe.yaml", seeds)
    study = tmp_path / "thousands"
    write_study(tmp_path / "recipe.yaml", study)
    message, seconds = _call("status", str(study))
    assert f"{runs:,} runs: {runs - 1:,} done, 1 waiting" in message
    assert seconds < 3 + (BOUND - 3) * seeds / SEEDS
