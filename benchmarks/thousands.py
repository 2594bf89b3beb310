"""Write a study of thousands of runs that are marked as finished, for timing `plan` and `status`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet

from petransfer.recipe.loading import load_recipe
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import expand

# Runs per seed: two arms on two splits.
OF_A_SEED = 4


def write_recipe(path: Path, seeds: int) -> None:
    """Write a recipe with `OF_A_SEED` runs for each seed."""
    path.write_text(f"""
name: thousands
task: {{name: scan, splits: [around_right, opposite_right]}}
arms: [english, code]
methods:
  - {{name: lora, rank: 4, bits: 32}}
seeds: [{", ".join(map(str, range(seeds)))}]
train: {{steps: 100, batch_size: 8, learning_rate: {{lora: 2.0e-3}}}}
""")


def write_study(recipe: Path, folder: Path) -> None:
    """Write the recipe's study, in which every run but the last one is finished."""
    content = load_recipe(str(recipe))
    study = StudyFolder(folder)
    study.open(content)
    right = [True, False] * 5
    pyarrow.parquet.write_table(pyarrow.table({"index": range(10), "correct": right}), folder / "examples.parquet")
    scores = {"exact_match": 50.0, "log_prob_per_token": -0.5, "examples": 10, "disagreements": 0}
    for cell in expand(content)[:-1]:
        run = study.run(cell.run_id).path
        run.mkdir()
        result = {"run_id": cell.run_id, "steps": 100, "trained_parameters": 9, "dev": scores, "test": scores}
        (run / "result.json").write_text(json.dumps(result | {"weights": {"bytes": {}, "share": {}}}))
        (run / "spec.json").write_text(json.dumps(cell.spec.as_dict()))
        shutil.copyfile(folder / "examples.parquet", run / "examples.parquet")
        (run / "DONE").write_text("{}")
    (folder / "examples.parquet").unlink()
