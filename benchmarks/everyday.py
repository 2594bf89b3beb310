"""How near the defaults of `petransfer train` come to the best of a sweep, on everyday tasks.

For each task the defaults train once; then a grid of learning rates trains for the same maximum of steps. The best of
the grid is chosen by dev exact match. Both are scored on dev and on test.

    python -m benchmarks.everyday --out results/bench/everyday-cpu.json
    python -m benchmarks.everyday --tasks dates,units --model nano/english

Results are added to the file task by task; tasks that are in it are skipped, so an interrupted call resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import petransfer as pt
from benchmarks.everyday_tasks import TASKS
from benchmarks.sides import hardware

FACTORS = (0.3, 1.0, 3.0)


def train_once(model: str, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Train once and return dev and test exact match in percent, steps, stop reason and seconds."""
    began = time.monotonic()
    pt.train(model, data, out=out, cpu=True, **options)
    (run,) = (out / "runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    spec = json.loads((run / "spec.json").read_text())
    return {
        "learning_rate": spec["train"]["learning_rate"],
        "dev": result["dev"]["exact_match"],
        "test": result["test"]["exact_match"],
        "steps": result["steps"],
        "early_stopping": result.get("early_stopping"),
        "seconds": round(time.monotonic() - began, 1),
    }


def one_task(name: str, model: str, folder: Path) -> dict[str, Any]:
    """Train a task with the defaults and with every learning rate of the grid."""
    data = folder / f"{name}.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "target"])
        writer.writerows(TASKS[name].examples())
    default = train_once(model, data, folder / f"{name}-default")
    grid = [default]
    for factor in FACTORS:
        if factor != 1.0:
            rate = factor * default["learning_rate"]
            grid.append(train_once(model, data, folder / f"{name}-{factor}", learning_rate=rate))
    best = max(grid, key=lambda run: (run["dev"], -run["learning_rate"]))
    share = None if not best["test"] else round(100 * default["test"] / best["test"], 1)
    return {
        "task": name, "model": model, "rows": TASKS[name].rows, "default": default, "grid": grid, "best": best,
        "default_share_of_best": share,
    }  # fmt: skip


def main() -> None:
    """Run the tasks that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--model", default="nano/english")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(given.out.read_text()) if given.out and given.out.exists() else {"tasks": []}
    known["machine"] = hardware(torch.device("cpu"))
    done = {(task["task"], task["model"]) for task in known["tasks"]}
    for name in given.tasks.split(","):
        if (name, given.model) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            known["tasks"].append(one_task(name, given.model, Path(folder)))
        print(json.dumps(known["tasks"][-1]), flush=True)
        if given.out:
            given.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
