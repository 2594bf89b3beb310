"""Kills `petransfer run` with SIGKILL at random moments until it ends, then compares with a run never killed.

The tests call it with few kills. The long version, about 15 minutes on two cores:

    python -m tests.invariants.kill_and_resume --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet
from safetensors.torch import load_file

RECIPE = """
name: killed
task: {name: scan, splits: [jump_around_right], options: {dev_size: 20}}
arms: [english, scratch]
methods:
  - {name: lora, rank: 4, bits: 32}
seeds: [0]
train: {steps: 150, batch_size: 8, learning_rate: {lora: 2.0e-3, scratch: 2.0e-2}}
"""


def command(recipe: Path, out: Path) -> list[str]:
    """One worker, one thread, a state after every step."""
    fixed = ["--workers", "1", "--threads", "1", "--save-every", "0", "--cpu"]
    return [sys.executable, "-m", "petransfer", "run", "--recipe", str(recipe), "--out", str(out), *fixed]


def main(kills: int, seed: int = 0) -> int:
    """Runs, kills and compares; returns how many kills struck a run that was under way."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE)
        subprocess.run(command(recipe, folder / "whole"), check=True, capture_output=True)
        struck = 0
        while struck < kills and not finished(folder / "cut"):
            struck += kill_once(recipe, folder / "cut", rng)
        subprocess.run(command(recipe, folder / "cut"), check=True, capture_output=True)
        compare(folder / "whole", folder / "cut")
    return struck


def finished(study: Path) -> bool:
    """Whether both runs are done."""
    return len(list(study.glob("runs/*/DONE"))) == 2


def kill_once(recipe: Path, out: Path, rng: random.Random) -> int:
    """Starts a run, waits for it to get under way, and kills it a random while later."""
    before = _traces(out)
    process = subprocess.Popen(
        command(recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and _traces(out) == before:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.0))
    if process.poll() is not None:
        return 0
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return 1


def _traces(out: Path) -> set[str]:
    return {str(path) for path in out.glob("runs/*/**/*")}


def compare(whole: Path, cut: Path) -> None:
    """The same runs, weights, scores, examples and metrics; nothing lost, doubled or left over."""
    assert _names(whole) == _names(cut), (_names(whole), _names(cut))
    for run in sorted((whole / "runs").iterdir()):
        other = cut / "runs" / run.name
        for weights in run.glob("*/*.safetensors"):
            left, right = load_file(weights), load_file(other / weights.relative_to(run))
            assert left.keys() == right.keys()
            assert all(bool((left[key] == right[key]).all()) for key in left), weights
        results = [json.loads((folder / "result.json").read_text()) for folder in (run, other)]
        numbers = [{part: result[part] for part in ("dev", "test", "steps")} for result in results]
        assert numbers[0] == numbers[1]
        lines = [
            [{**json.loads(line), "seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (run, other)
        ]
        assert lines[0] == lines[1], run
        tables = [pyarrow.parquet.read_table(folder / "examples.parquet") for folder in (run, other)]
        assert tables[0].equals(tables[1])


def _names(study: Path) -> set[str]:
    return {str(path.relative_to(study)) for path in study.rglob("*")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{main(arguments.kills, arguments.seed)} kills: nothing lost, nothing doubled")
