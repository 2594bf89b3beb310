"""A recipe's first cell of an arm, loaded and turned into pieces, ready to be trained twice over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from petransfer.checkpoints.encoding import Encoded, Layout
from petransfer.checkpoints.lazy import encode_part
from petransfer.checkpoints.load import Loaded, load
from petransfer.errors import unknown
from petransfer.methods import APPLY, weights_bits
from petransfer.recipe.load import load_recipe
from petransfer.recipe.spec import RunSpec
from petransfer.study.grid import expand
from petransfer.tasks import SplitData, load_task
from petransfer.train.batches import ShuffledExamples
from petransfer.train.execution import Execution
from petransfer.train.loop import Hooks, Loop


@dataclass(frozen=True)
class Prepared:
    """spec: with the batch that is asked for. parts: `train` and `test` as pieces."""

    spec: RunSpec
    data: SplitData
    parts: dict[str, Sequence[Encoded]]

    def model(self) -> tuple[Any, Loaded]:
        """The model to train, made anew and always the same."""
        loaded = load(self.spec.checkpoint, weights_bits(self.spec.method), seed=self.spec.seed, device="cpu")
        met = {piece for row in self.parts["train"] for piece in (*row.input_ids, *row.target_ids)}
        loaded = replace(loaded, new_pieces=tuple(piece for piece in loaded.new_pieces if piece in met))
        return APPLY[self.spec.method.name](loaded, self.spec.method, self.spec.seed), loaded

    def source(self, layout: Layout) -> ShuffledExamples:
        """The batches of training."""
        return ShuffledExamples(self.parts["train"], self.spec.train.batch_size, self.spec.seed, layout)

    def loop(self, folder: Path) -> Loop:
        """Our loop on a model of its own."""
        model, loaded = self.model()
        spec, source = self.spec, self.source(loaded.layout)
        execution = Execution(threads=torch.get_num_threads())
        return Loop(
            model, source, spec.train, Accelerator(cpu=True), folder, identity=spec.canonical_json(), seed=spec.seed,
            execution=execution, hooks=Hooks(),
        )  # fmt: skip


def prepare(recipe: str, arm: str, batch: int, data_dir: Path | None) -> Prepared:
    """The recipe's first split and method.

    Raises:
        UserError: there is no such recipe or arm, or the data cannot be had.
    """
    cells = expand(load_recipe(recipe, [], {"data_dir": data_dir}))
    cell = next((cell for cell in cells if cell.arm == arm), None)
    if cell is None:
        raise unknown("arm", arm, sorted({cell.arm for cell in cells}))
    spec = replace(cell.spec, train=replace(cell.spec.train, batch_size=batch or cell.spec.train.batch_size))
    options = dict(spec.task.options + spec.task.source)
    data = load_task(spec.task.name, data_dir, **options).load(spec.task.split)
    loaded = load(spec.checkpoint, weights_bits(spec.method), seed=spec.seed, device="cpu")
    parts = {
        part: encode_part(
            getattr(data, part), spec.task.prefix, loaded.tokenizer, loaded.layout, lambda examples, encoded: None
        )[0]
        for part in ("train", "test")
    }
    return Prepared(spec, data, parts)
