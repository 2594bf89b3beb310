"""Stage d: exact match by one forward pass beside `generate`, on a model that was trained on the card before."""

from __future__ import annotations

import torch

from benchmarks.gpu.records import Records
from benchmarks.gpu.stages import Task
from benchmarks.prepared import Changes, prepare
from benchmarks.scoring import row, trained_here
from petransfer.models.library_output import silence_libraries


def run(records: Records, task: Task) -> None:
    """Train the embedded English model on SCAN for some seconds, then score its test examples both ways."""
    silence_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() and not task.rehearse else "cpu")
    recipe = "smoke" if task.rehearse else "lora-scan"
    for bits in (32,) if task.rehearse else (32, 16):
        if task.seconds_left < 8:
            return
        prepared = prepare(recipe, "english", Changes(bits=bits), None, device)
        trained = trained_here(prepared, 2 if task.rehearse else 400)
        examples, repeats = (4, 1) if task.rehearse else (1024, 2)
        records.add(what="scoring", **row(trained, examples, repeats))
