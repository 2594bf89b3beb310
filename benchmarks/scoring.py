"""Exact match by one forward pass beside `generate`, on the same model and examples."""

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
from petransfer.sharing.run_folders import weights_folder

# Where the time of our side goes, by the operations that are named so; the first that fits counts.
PARTS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "bitsandbytes"),
    "passes over logits": ("aten::exp", "aten::amax", "aten::amin", "aten::sub", "aten::sum", "argmax", "softmax"),
}


@dataclass(frozen=True)
class Trained:
    """A model, and its test examples as texts and as pieces. run_id: of a run that was done before."""

    spec: RunSpec
    model: torch.nn.Module
    loaded: Loaded
    examples: Sequence[Example]
    encoded: Sequence[Encoded]
    run_id: str | None = None


def trained_here(prepared: Prepared, steps: int) -> Trained:
    """A recipe's cell after so many steps, on its schedule made so short."""
    short = replace(prepared, spec=replace(prepared.spec, train=replace(prepared.spec.train, steps=steps)))
    with tempfile.TemporaryDirectory() as folder:
        loop = short.loop(Path(folder))
        loop.model.train()
        for step in range(steps):
            loop.take_step(step)
    _, loaded = prepared.model()  # the tokenizer and the layout of a twin; its weights are not used
    return Trained(short.spec, loop.model.eval(), loaded, prepared.data.test, prepared.parts["test"])


def trained_before(folder: Path, data_dir: Path | None, device: torch.device) -> Trained:
    """The adapter or model of a run's folder, on the test set of its task.

    Raises:
        UserError: the folder is no finished run's, or the data cannot be had.
    """
    predictor = Adapter.load(folder, device=str(device)).predictor
    said = weights_folder(folder).parent / "spec.json"
    if not said.is_file():
        raise UserError(f"{folder} has no spec.json; name a run's folder like results/<study>/runs/<run-id>")
    spec = RunSpec.from_dict(json.loads(said.read_text(encoding="utf-8")))
    options = spec.task.arguments
    examples = load_task(spec.task.name, data_dir, **options).load(spec.task.split).test
    encoded = encode_examples(examples, spec.task.prefix, predictor.loaded.tokenizer, predictor.loaded.layout)
    return Trained(spec, predictor.model, predictor.loaded, examples, encoded, spec.run_id)


@dataclass
class _Right:
    """Which examples each side found right."""

    by: dict[str, list[bool]] = field(default_factory=dict)


def row(trained: Trained, examples: int, repeats: int) -> dict[str, Any]:
    """Examples a second of each side on `examples` drawn test rows, and where the time of ours goes.

    `generate` is transformers', greedy, with its cache, over batches of 64 sorted by length, and stops where all
    of a batch have ended or at the longest target. Our side includes the generation of near-ties.
    """
    spec, device = trained.spec, _device(trained)
    drawn = torch.randperm(len(trained.examples), generator=torch.Generator().manual_seed(0))[:examples].tolist()
    rows, encoded = [trained.examples[at] for at in drawn], [trained.encoded[at] for at in drawn]
    limit = max(len(one.target_ids) for one in trained.encoded)
    right = _Right()
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
    trained: Trained, rows: Sequence[Example], encoded: Sequence[Encoded], limit: int, right: _Right
) -> dict[str, Callable[[], float]]:
    """Examples a second; `right` is told what was found."""
    model, loaded, device = trained.model, trained.loaded, _device(trained)

    def ours() -> float:
        started = clock(device)
        found = evaluate(model, loaded, rows, encoded, audited=0)
        taken = clock(device) - started
        right.by["petransfer"] = [one.correct for one in found.scored]
        return len(rows) / taken

    def generated() -> float:
        started = clock(device)
        said = generations(model, loaded, [one.input_ids for one in encoded], [limit] * len(encoded))
        taken = clock(device) - started
        right.by["generate"] = [answer.text == one.target for answer, one in zip(said, rows, strict=True)]
        return len(rows) / taken

    return {"petransfer": ours, "generate": generated}


def _device(trained: Trained) -> torch.device:
    return next(trained.model.parameters()).device
