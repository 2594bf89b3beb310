"""Ten thousand runs: `plan` and `status` answer in seconds, whether nothing or everything was run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from petransfer.recipe.load import load_recipe
from petransfer.study.grid import expand
from petransfer.study.ledger import StudyFolder
from petransfer.study.shard import Shard

SEEDS = 2500
RECIPE = f"""
name: thousands
task: {{name: scan, splits: [around_right, opposite_right]}}
arms: [english, code]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [{", ".join(map(str, range(SEEDS)))}]
train: {{steps: 100, batch_size: 8, learning_rate: {{lora: 2.0e-3}}}}
"""
# Measured on a busy machine of two cores: under 2 seconds each. The bound leaves room for a slower one.
BOUND = 8.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of ten thousand runs."""
    path = tmp_path_factory.mktemp("scale") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def _call(*arguments: str) -> tuple[str, float]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "petransfer", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, time.monotonic() - started


def test_a_plan_of_ten_thousand_runs(recipe: Path, tmp_path: Path) -> None:
    said, seconds = _call("plan", "--recipe", str(recipe), "--out", str(tmp_path))
    assert f"{4 * SEEDS} runs, 0 done" in said
    assert len({line.split()[0] for line in said.splitlines()[: 4 * SEEDS]}) == 4 * SEEDS
    assert seconds < BOUND


def test_a_shard_of_ten_thousand_runs(recipe: Path, tmp_path: Path) -> None:
    said, _ = _call("plan", "--recipe", str(recipe), "--out", str(tmp_path), "--shard", "2/3", "--json")
    found = [run["run_id"] for run in json.loads(said)["runs"]]
    assert found == [cell.run_id for cell in Shard(2, 3).of(expand(load_recipe(str(recipe))))]
    assert 4 * SEEDS // 3 <= len(found) <= 4 * SEEDS // 3 + 1


def test_the_status_of_ten_thousand_runs_that_are_done(recipe: Path, tmp_path: Path) -> None:
    content = load_recipe(str(recipe))
    study = StudyFolder(tmp_path / "thousands")
    study.open(content)
    scores = {"exact_match": 50.0, "log_prob_per_token": -0.5, "examples": 10, "disagreements": 0}
    for cell in expand(content)[:-1]:  # the last one waits
        folder = study.run(cell.run_id).path
        folder.mkdir()
        result = {"run_id": cell.run_id, "steps": 100, "trained_parameters": 9, "dev": scores, "test": scores}
        (folder / "result.json").write_text(json.dumps(result | {"weights": {"dtypes": {}}}))
        (folder / "DONE").write_text("{}")
    said, seconds = _call("status", str(study.path))
    assert f"{4 * SEEDS} runs: {4 * SEEDS - 1} done, 1 waiting" in said
    assert seconds < BOUND
