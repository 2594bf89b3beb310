"""What the runs of a grid take of a card, before any of it is downloaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from petransfer.errors import UserError
from petransfer.fit.advice import TURNED_ON, Words, it_would
from petransfer.recipe.spec import MethodSpec, RunSpec
from petransfer.recipe.stacking import MOST_STACKED, kind
from petransfer.tasks import load_task

if TYPE_CHECKING:
    from petransfer.fit.planner import Fit
    from petransfer.fit.simulate import Demand

# T5's pieces are longer in prose (4 characters) and about so long in SCAN's and COGS's targets.
CHARACTERS_A_PIECE = 1.6


@dataclass(frozen=True)
class Place:
    """A training that occurs in a grid, once for all its seeds. problem: why nothing could be foreseen."""

    name: str
    spec: RunSpec
    fit: Fit | None
    problem: str = ""

    def line(self, words: Words) -> str:
        """For people. words: of the verb that they called."""
        if self.fit is None:
            return f"{self.name}: {self.problem}"
        size = f"{self.fit.needed / 2**30:.1f} GB"
        cut = "" if self.fit.demand.batch == self.fit.batch else f", {self.fit.demand.batch} examples at once"
        if self.fit.fits:
            again = f", {TURNED_ON}" if self.fit.turned_on else ""
            return f"{self.name}: {size} of {(self.fit.card or 0) / 2**30:.4g}{cut}{again}"
        return f"{self.name}: {size} with one example, does not fit{it_would(self.fit.advice, words)}"


def foresee(specs: Sequence[RunSpec], card: int, checkpointing: bool = False) -> list[Place]:
    """One place for each checkpoint, method and batch of the grid; embedded checkpoints fit everywhere."""
    from petransfer.checkpoints.architecture import configuration
    from petransfer.checkpoints.quiet import quiet
    from petransfer.fit.planner import plan

    quiet()
    found: dict[tuple[object, ...], Place] = {}
    for spec in specs:
        key = (spec.checkpoint.name, spec.checkpoint.tokenizer, spec.method, spec.train.batch_size, spec.task.name)
        if spec.checkpoint.name.startswith("nano/") or key in found:
            continue
        method = in_words(spec.method)
        name = f"{spec.checkpoint.name}, {method}, {spec.method.bits} bits"
        demand = demand_of(spec, checkpointing)
        try:
            config, own_head = configuration(spec.checkpoint)
            found[key] = Place(name, spec, plan(config, spec.checkpoint, demand, own_head, card))
        except UserError as error:
            found[key] = Place(name, spec, None, str(error))
    return list(found.values())


def rooms(specs: Sequence[RunSpec], card: int) -> dict[str, int]:
    """For each run, by its id, how many such runs fit a card as one stack; 1 where nothing can be foreseen."""
    from petransfer.checkpoints.architecture import configuration
    from petransfer.checkpoints.quiet import quiet
    from petransfer.fit.planner import largest_stack
    from petransfer.methods.stacked import refuse_layer_drop

    quiet()
    counts: dict[RunSpec, list[RunSpec]] = {}
    found: dict[str, int] = {}
    for spec in specs:
        key = kind(spec)
        found[spec.run_id] = 1
        if key is not None:
            counts.setdefault(key, []).append(spec)
    for alike in counts.values():
        widest = max(alike, key=lambda spec: spec.method.rank)
        try:
            config, own_head = configuration(widest.checkpoint)
            refuse_layer_drop(config)
            demand = demand_of(widest, checkpointing=False)
            most = largest_stack(config, widest.checkpoint, demand, own_head, card, min(len(alike), MOST_STACKED))
        except UserError:
            continue
        found |= {spec.run_id: most for spec in alike}
    return found


def in_words(method: MethodSpec) -> str:
    """A method and its size, for people."""
    if method.name == "full":
        return "all weights"
    size = f" r{method.rank}" if method.rank else f" of {method.virtual_tokens} tokens" if method.virtual_tokens else ""
    size = f" of about {method.match_parameters:,} parameters" if method.match_parameters else size
    return f"{ {'lora': 'LoRA'}.get(method.name, method.name) }{size}"


def find_sizes(specs: Sequence[RunSpec]) -> None:
    """Looks whether `match_parameters` can be met by every checkpoint, before anything is trained.

    Raises:
        UserError: it cannot, by one.
    """
    wanted = {(spec.checkpoint, spec.method): spec for spec in specs if spec.method.match_parameters}
    if not wanted:
        return
    from petransfer.checkpoints.architecture import configuration
    from petransfer.fit.simulate import meta_model
    from petransfer.methods import size_of

    for spec in wanted.values():
        config, own_head = configuration(spec.checkpoint)
        wide = replace(spec.method, bits=32)
        size_of(meta_model(config, spec.checkpoint.name, wide, own_head), wide)


def demand_of(spec: RunSpec, checkpointing: bool, device: Literal["cuda", "cpu"] = "cuda") -> Demand:
    """What a run asks of memory: its method, and a batch of the longest input and target that it is trained on."""
    from petransfer.fit.simulate import Demand

    task = load_task(spec.task.name, None, **dict(spec.task.options + spec.task.source))
    characters = task.longest(spec.task.split)
    source, target = (int(count / CHARACTERS_A_PIECE) + 2 for count in characters)
    source += len(spec.task.prefix) // 4
    train = spec.train
    return Demand(spec.method, train.batch_size, source, target, device, train.optimizer, checkpointing)


def this_card() -> int | None:
    """The bytes of this machine's first NVIDIA card, None where there is none; asks the driver, not torch."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    first = done.stdout.strip().split("\n")[0].strip()
    return int(first) * 2**20 if done.returncode == 0 and first.isdigit() else None
