"""Exact match by one forward pass beside `generate`, on the same model and examples."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from petransfer.bench.prepared import Prepared
from petransfer.bench.sides import alternating, clock, hardware, medians
from petransfer.evaluate.exact_match import evaluate
from petransfer.evaluate.generate import answers


@dataclass
class _Right:
    """Which examples each side found right."""

    by: dict[str, list[bool]] = field(default_factory=dict)


def row(prepared: Prepared, train_steps: int, examples: int, repeats: int) -> dict[str, Any]:
    """Examples a second of each side on `examples` drawn test rows, after so many steps of training.

    `generate` is transformers', greedy, with its cache, over batches of 64 sorted by length, and stops where all
    of a batch have ended or at the longest target. Our side includes the generation of near-ties.
    """
    with tempfile.TemporaryDirectory() as folder:
        loop = prepared.loop(Path(folder))
        loop.model.train()
        for step in range(train_steps):
            loop._step(step)
        model = loop.model.eval()
    _, loaded = prepared.model()  # the tokenizer and the layout of a twin; its weights are not used
    drawn = torch.randperm(len(prepared.data.test), generator=torch.Generator().manual_seed(0))[:examples].tolist()
    rows, encoded = [prepared.data.test[at] for at in drawn], [prepared.parts["test"][at] for at in drawn]
    limit = max(len(one.target_ids) for one in prepared.parts["test"])
    right = _Right()

    def ours() -> float:
        started = clock()
        found = evaluate(model, loaded, rows, encoded, audited=0)
        taken = clock() - started
        right.by["petransfer"] = [one.correct for one in found.scored]
        return len(rows) / taken

    def generated() -> float:
        started = clock()
        said = answers(model, loaded, [one.input_ids for one in encoded], [limit] * len(encoded))
        taken = clock() - started
        right.by["generate"] = [answer.text == one.target for answer, one in zip(said, rows, strict=True)]
        return len(rows) / taken

    sides: dict[str, Callable[[], float]] = {"petransfer": ours, "generate": generated}
    found = alternating(sides, repeats)
    rates = medians(found)
    apart = sum(map(bool.__ne__, right.by["petransfer"], right.by["generate"]))
    return {
        "task": f"{prepared.spec.task.name}/{prepared.spec.task.split}",
        "checkpoint": prepared.spec.checkpoint.name,
        "train_steps": train_steps,
        "examples": len(rows),
        "of": len(prepared.data.test),
        "longest_target": limit,
        "repeats": repeats,
        "exact_match": round(100 * sum(right.by["generate"]) / len(rows), 2),
        "disagreements": apart,
        "examples_per_second": {name: round(value, 2) for name, value in rates.items()},
        "all": {name: [round(value, 2) for value in values] for name, values in found.items()},
        "ratio": round(rates["petransfer"] / rates["generate"], 2),
        "hardware": hardware(),
    }
