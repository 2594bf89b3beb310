"""What the runs of a grid take of a card, before any of it is downloaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from petransfer.errors import UserError
from petransfer.recipe.spec import RunSpec
from petransfer.tasks import load_task

if TYPE_CHECKING:
    from petransfer.fit.planner import Fit

# T5's pieces are longer in prose (4 characters) and about so long in SCAN's and COGS's targets.
CHARACTERS_A_PIECE = 1.6


@dataclass(frozen=True)
class Place:
    """A training that occurs in a grid, once for all its seeds. problem: why nothing could be foreseen."""

    name: str
    spec: RunSpec
    fit: Fit | None
    problem: str = ""

    @property
    def line(self) -> str:
        """For people."""
        if self.fit is None:
            return f"{self.name}: {self.problem}"
        size = f"{self.fit.needed / 2**30:.1f} GB"
        cut = "" if self.fit.demand.batch == self.fit.batch else f", {self.fit.demand.batch} examples at once"
        if self.fit.fits:
            return f"{self.name}: {size} of {(self.fit.card or 0) / 2**30:.4g}{cut}"
        advice = f"; it would with {', or '.join(self.fit.advice)}" if self.fit.advice else ""
        return f"{self.name}: {size} with one example, does not fit{advice}"


def foresee(specs: Sequence[RunSpec], card: int, checkpointing: bool = False) -> list[Place]:
    """One place for each checkpoint, method and batch of the grid; embedded checkpoints fit everywhere."""
    from petransfer.checkpoints.architecture import configuration
    from petransfer.checkpoints.quiet import quiet
    from petransfer.fit.planner import plan
    from petransfer.fit.simulate import Demand

    quiet()
    found: dict[tuple[object, ...], Place] = {}
    for spec in specs:
        key = (spec.checkpoint.name, spec.checkpoint.tokenizer, spec.method, spec.train.batch_size, spec.task.name)
        if spec.checkpoint.name.startswith("nano/") or key in found:
            continue
        method = "all weights" if spec.method.name == "full" else f"{spec.method.name} r{spec.method.rank}"
        name = f"{spec.checkpoint.name}, {method}, {spec.method.bits} bits"
        task = load_task(spec.task.name, None, **dict(spec.task.options))
        characters = task.longest(spec.task.split)
        source, target = (int(count / CHARACTERS_A_PIECE) + 2 for count in characters)
        source += len(spec.task.prefix) // 4
        demand = Demand(
            spec.method,
            spec.train.batch_size,
            source,
            target,
            optimizer=spec.train.optimizer,
            checkpointing=checkpointing,
        )
        try:
            config, own_head = configuration(spec.checkpoint)
            found[key] = Place(name, spec, plan(config, spec.checkpoint, demand, own_head, card))
        except UserError as error:
            found[key] = Place(name, spec, None, str(error))
    return list(found.values())


def this_card() -> int | None:
    """The bytes of this machine's first NVIDIA card, None where there is none; asks the driver, not torch."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    first = done.stdout.strip().split("\n")[0].strip()
    return int(first) * 2**20 if done.returncode == 0 and first.isdigit() else None
