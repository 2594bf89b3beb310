"""Stage d: compare exact match by one forward pass with `generate`, on a model that was just trained on the GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import Task
from benchmarks.prepared import Changes, prepare
from benchmarks.scoring import row, trained_here
from petransfer.models.quiet_libraries import silence_libraries

# The family has one arm only, because the copy of the repository that `pack.sh` makes has no other embedded checkpoint.
RECIPE = """
name: scoring-on-a-card
task: {name: scan, splits: [around_right]}
family: {name: one, arms: {english: nano/english}}
arms: [english]
methods:
  - {name: lora, rank: 16, bits: 32}
seeds: [0]
train: {steps: 400, batch_size: 32, learning_rate: 3.0e-3}
"""


def run(records: Records, task: Task) -> None:
    """Train the embedded English model on SCAN for some seconds, and score its test examples in both ways."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "scoring.yaml"
        recipe.write_text(RECIPE, encoding="utf-8")
        for bits in (32,) if task.rehearse else (32, 16):
            if task.seconds_left < 8:
                return
            changes = Changes(4 if task.rehearse else 0, bits=bits)  # type: ignore[arg-type]
            trained = trained_here(prepare(str(recipe), "english", changes, None, device), 2 if task.rehearse else 400)
            examples, repeats = (4, 1) if task.rehearse else (1024, 2)
            records.add(what="scoring", **row(trained, examples, repeats))
