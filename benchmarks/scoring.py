"""Compare exact match by one forward pass with exact match by `generate`, in speed and in results."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.prepared import Prepared
from benchmarks.profile import shares
from benchmarks.sides import alternating, clock, hardware, medians
from petransfer.data import Example, load_task
from petransfer.data.encoding import Encoded, encode_examples
from petransfer.errors import UserError
from petransfer.evaluation.exact_match import evaluate
from petransfer.evaluation.generation import generations
from petransfer.models.loading import Loaded
from petransfer.recipe.run_spec import RunSpec
from petransfer.sharing.adapter import Adapter

# Kinds of operations in petransfer's scoring, each with words that occur in their names. The first match counts.
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "bitsandbytes"),
    "passes over logits": ("aten::exp", "aten::amax", "aten::amin", "aten::sub", "aten::sum", "argmax", "softmax"),
}


@dataclass(frozen=True)
class Trained:
    """A trained model, with its test examples as texts and as token ids.

    run_id: the id of the finished run from which the model was loaded; None if it was trained for this benchmark.
    """

    spec: RunSpec
    model: torch.nn.Module
    loaded: Loaded
    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    run_id: str | None = None


def trained_here(prepared: Prepared, steps: int) -> Trained:
    """Train a cell of a recipe for `steps` optimiser steps, with a learning-rate schedule of the same length."""
    short = replace(prepared, spec=replace(prepared.spec, train=replace(prepared.spec.train, steps=steps)))
    with tempfile.TemporaryDirectory() as folder:
        loop = short.loop(Path(folder))
        loop.model.train()
        for step in range(steps):
            loop.take_step(step)
    _, loaded = prepared.model()  # only for the tokenizer and the layout; its weights are not used
    return Trained(short.spec, loop.model.eval(), loaded, prepared.data.test, prepared.parts["test"])


def trained_before(folder: Path, data_dir: Path | None, device: torch.device) -> Trained:
    """Load the adapter or model of a run's folder, with the test set of its task.

    Raises:
        UserError: The folder is not that of a finished run, or the data cannot be found.
    """
    predictor = Adapter.load(folder, device=str(device)).predictor
    path = folder / "spec.json"
    if not path.is_file():
        raise UserError(f"{folder} has no spec.json; name a run's folder like results/<study>/runs/<run-id>")
    spec = RunSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    options = spec.task.arguments
    examples = load_task(spec.task.name, data_dir, **options).load(spec.task.split).test
    encoded = encode_examples(examples, spec.task.prefix, predictor.loaded.tokenizer, predictor.loaded.layout)
    return Trained(spec, predictor.model, predictor.loaded, examples, encoded, spec.run_id)


@dataclass
class _Outcomes:
    """The outcomes of each side: whether it counts each example as correct, by the name of the side."""

    by: dict[str, list[bool]] = field(default_factory=dict)


def row(trained: Trained, examples: int, repeats: int) -> dict[str, Any]:
    """Measure how many test examples per second petransfer and `generate` score, and profile petransfer's scoring.

    `generate` is transformers' greedy generation with its cache, on batches of 64 examples sorted by length. It stops
    when all texts of a batch have ended, or at the length of the longest target. petransfer's time includes the
    generation of texts for near-ties.

    Args:
        trained: the model and its test examples.
        examples: number of test examples, drawn at random.
        repeats: number of measurements of each side; the median counts.
    """
    spec, device = trained.spec, _device(trained)
    drawn = torch.randperm(len(trained.examples), generator=torch.Generator().manual_seed(0))[:examples].tolist()
    rows, encoded = [trained.examples[at] for at in drawn], [trained.encoded[at] for at in drawn]
    limit = max(len(one.target_ids) for one in trained.encoded)
    right = _Outcomes()
    sides = _sides(trained, rows, encoded, limit, right)
    found = alternating(sides, repeats)
    rates = medians(found)
    apart = sum(map(bool.__ne__, right.by["petransfer"], right.by["generate"]))
    return {
        "task": f"{spec.task.name}/{spec.task.split}",
        "checkpoint": spec.checkpoint.name,
        "method": spec.method.name,
        "bits": spec.method.bits,
        "run_id": trained.run_id,
        "train_steps": spec.train.steps,
        "examples": len(rows),
        "of": len(trained.examples),
        "longest_target": limit,
        "repeats": repeats,
        "exact_match": round(100 * sum(right.by["generate"]) / len(rows), 2),
        "disagreements": apart,
        "examples_per_second": {name: round(value, 2) for name, value in rates.items()},
        "all": {name: [round(value, 2) for value in values] for name, values in found.items()},
        "ratio": round(rates["petransfer"] / rates["generate"], 2),
        "profile": shares(sides["petransfer"], PARTS, device),
        "hardware": hardware(device),
    }


def _sides(
    trained: Trained, rows: Sequence[Example], encoded: Sequence[Encoded], limit: int, right: _Outcomes
) -> dict[str, Callable[[], float]]:
    """Return two functions, `petransfer` and `generate`, that score all examples and return examples per second.

    Each function also writes into `right` which examples are correct. limit: maximum length of generated texts in
    tokens.
    """
    model, loaded, device = trained.model, trained.loaded, _device(trained)

    def ours() -> float:
        started = clock(device)
        found = evaluate(model, loaded, rows, encoded, audited=0)
        taken = clock(device) - started
        right.by["petransfer"] = [one.correct for one in found.scored]
        return len(rows) / taken

    def generated() -> float:
        started = clock(device)
        predictions = generations(model, loaded, [one.input_ids for one in encoded], [limit] * len(encoded))
        taken = clock(device) - started
        right.by["generate"] = [answer.text == one.target for answer, one in zip(predictions, rows, strict=True)]
        return len(rows) / taken

    return {"petransfer": ours, "generate": generated}


def _device(trained: Trained) -> torch.device:
    return next(trained.model.parameters()).device
