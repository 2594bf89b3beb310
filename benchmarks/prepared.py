"""Prepare one cell of a recipe's grid for benchmarks: encode its data, and make a new model for each measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from petransfer.data import SplitData, load_task
from petransfer.data.encoded_examples import encode_part
from petransfer.data.encoding import Encoded, Layout
from petransfer.errors import unknown
from petransfer.methods import apply_method, computes_in_bf16, weights_bits
from petransfer.models.loading import Loaded, load_checkpoint
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.loading import load_recipe
from petransfer.recipe.run_spec import Bits, RunSpec
from petransfer.study.grid import expand
from petransfer.training.batches import ShuffledExamples
from petransfer.training.distributed import Process
from petransfer.training.execution import Execution
from petransfer.training.hooks import Hooks
from petransfer.training.loop import Loop


@dataclass(frozen=True)
class Prepared:
    """A cell that is ready to be trained.

    spec: the cell's spec with the user's changes. parts: the examples of `train` and `test` as token ids.
    """

    spec: RunSpec
    data: SplitData
    parts: dict[str, Sequence[Encoded]]
    device: torch.device

    def model(self) -> tuple[Any, Loaded]:
        """Return a new model to train, and the base that it was made from. Every call gives the same weights."""
        loaded = _load(self.spec, self.device)
        used = {token for row in self.parts["train"] for token in (*row.input_ids, *row.target_ids)}
        loaded = replace(loaded, new_tokens=tuple(token for token in loaded.new_tokens if token in used))
        return apply_method(loaded, self.spec.method, self.spec.seed).to(self.device), loaded

    def source(self, layout: Layout) -> ShuffledExamples:
        """Return the training batches."""
        return ShuffledExamples(self.parts["train"], self.spec.train.batch_size, self.spec.seed, layout)

    def loop(self, folder: Path) -> Loop:
        """Return petransfer's training loop on a new model."""
        model, loaded = self.model()
        spec, source = self.spec, self.source(loaded.layout)
        execution = Execution(threads=torch.get_num_threads())
        return Loop(
            model, source, spec.train, Process(self.device), folder, identity=spec.canonical_json(), seed=spec.seed,
            execution=execution, hooks=Hooks(), autocast=computes_in_bf16(spec.method),
        )  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """Changes to a cell of a recipe. None, or 0 for `batch`, keeps the recipe's value."""

    batch: int = 0
    checkpoint: str | None = None
    bits: Bits | None = None

    def of(self, spec: RunSpec) -> RunSpec:
        """Return the spec with the changes."""
        return replace(
            spec,
            checkpoint=checkpoint_spec(self.checkpoint) if self.checkpoint else spec.checkpoint,
            method=replace(spec.method, bits=self.bits or spec.method.bits),
            train=replace(spec.train, batch_size=self.batch or spec.train.batch_size),
        )


def prepare(recipe: str, arm: str, changes: Changes, data_dir: Path | None, device: torch.device) -> Prepared:
    """Prepare an arm's first cell in the grid of a recipe, that is, its first split and method.

    Raises:
        UserError: There is no such recipe, arm or checkpoint, or the data cannot be found.
    """
    cells = expand(load_recipe(recipe, [], {"data_dir": data_dir}))
    cell = next((cell for cell in cells if cell.arm == arm), None)
    if cell is None:
        raise unknown("arm", arm, sorted({cell.arm for cell in cells}))
    spec = changes.of(cell.spec)
    options = spec.task.arguments
    data = load_task(spec.task.name, data_dir, **options).load(spec.task.split)
    loaded = _load(spec, device)
    parts = {
        part: encode_part(getattr(data, part), spec.task.prefix, loaded.tokenizer, loaded.layout).encoded
        for part in ("train", "test")
    }
    return Prepared(spec, data, parts, device)


def _load(spec: RunSpec, device: torch.device) -> Loaded:
    method = spec.method
    return load_checkpoint(
        spec.checkpoint, weights_bits(method), seed=spec.seed, device=device, keep_wide=method.keep_wide
    )
