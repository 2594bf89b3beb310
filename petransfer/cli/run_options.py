"""How `run` carries a grid out: which ways go together, and a Ray cluster."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError, unknown
from petransfer.memory.advice import Words
from petransfer.memory.study_memory import rooms
from petransfer.recipe.run_spec import RunSpec
from petransfer.study.folders import StudyFolder
from petransfer.study.grid import Cell
from petransfer.study.stack_groups import stacks_of

if TYPE_CHECKING:
    from petransfer.study.local_executor import Outcome
    from petransfer.study.resource_demands import Demands
    from petransfer.study.single_run import FineTune

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Ways:
    """How a grid is carried out. workers: runs at once, 0 chooses. executor: of EXECUTORS. address: of a cluster.

    stack: how many runs may be trained as one, or `auto`, or `off`. by_generation: every test answer is generated.
    """

    workers: int = 0
    executor: str = "local"
    address: str | None = None
    stack: str = "auto"
    by_generation: bool = False

    def check(self, processes: int) -> None:
        """Raises UserError where options do not go together. processes: that share every run."""
        if self.executor not in EXECUTORS:
            raise unknown("executor", self.executor, EXECUTORS)
        if self.address and self.executor != "ray":
            raise UserError("--address is a Ray cluster's; add --executor ray")
        if processes > 1 and self.executor == "ray":
            raise UserError("--executor ray gives every run one process; leave --processes out")
        if processes > 1 and self.workers > 1:
            raise UserError("--workers are runs at once, --processes share a run; take one of them")
        if self.at_once and processes > 1:
            raise UserError(f"--stack {self.stack} does not go with --processes; leave one of them out")

    @property
    def at_once(self) -> int:
        """The number that --stack says, 0 for `auto` and `off`."""
        if self.stack in ("auto", "off"):
            return 0
        if not re.fullmatch(r"[1-9][0-9]{0,3}", self.stack):
            raise UserError(f"--stack {self.stack}: write a whole number from 1 on, auto or off")
        return int(self.stack)

    def group(
        self, checkpointing: bool, card: Callable[[], int | None], cards: int = 1
    ) -> Callable[[Sequence[Cell]], list[list[Cell]]] | None:
        """What cuts runs into stacks, None where each is trained by itself.

        card: asked for the bytes of the smallest card that a stack may get, None on a CPU. cards: of which none is to
        stand idle while others have stacks.

        Raises:
            UserError: stacking was asked for by number together with what it cannot be had with.
        """
        if self.at_once > 1 and checkpointing:
            raise UserError(f"--stack {self.stack} does not go with --checkpointing: dropout would be drawn anew")
        if self.at_once:
            return lambda cells: stacks_of(cells, self.at_once)
        room = None if checkpointing or self.stack == "off" else card()
        if room is None:  # on a CPU little is won: see results/bench/stacked-cpu.json
            return None

        def grouped(cells: Sequence[Cell]) -> list[list[Cell]]:
            most, share = rooms([cell.spec for cell in cells], room), -(-len(cells) // cards)
            return stacks_of(cells, {run_id: min(count, share) for run_id, count in most.items()})

        return grouped


def in_stacks(stacks: Sequence[Sequence[Cell]]) -> str:
    """How many runs are trained as one, for people."""
    counts = Counter(len(stack) for stack in stacks)
    alone = counts.pop(1, 0)
    if not counts:
        return "no runs are stacked"
    said = ", ".join(f"{many} of {size} runs" for size, many in sorted(counts.items(), reverse=True))
    return f"stacks: {said}" + (f"; {alone} runs by themselves" if alone else "")


def connected(address: str | None) -> Any:
    """Ray, connected; see `petransfer.study.ray_executor.connect`."""
    from petransfer.study.ray_executor import connect

    return connect(address)


def on_ray(
    cells: Sequence[Cell],
    folder: StudyFolder,
    job: FineTune,
    ways: Ways,
    tick: Callable[[], None],
    ray: Any,
    words: Callable[[RunSpec], Words],
) -> Outcome:
    """Carries the cells out on the cluster. words: how what would help a method to fit is asked for.

    Raises:
        UserError: a run does not fit the cluster's cards, or as `Ways.group`, before anything is begun.
    """
    from petransfer.study.ray_executor import execute_on_ray, smallest_card
    from petransfer.study.resource_demands import demands_of

    settings = job.settings
    threads, checkpointing = settings.execution.threads or 1, settings.execution.checkpointing
    card = None if settings.cpu else smallest_card(ray)
    cards = max(1, int(ray.cluster_resources().get("GPU", 0)))
    group = ways.group(checkpointing, lambda: card, cards)
    found: dict[object, Demands] = {}
    demands: dict[str, Demands] = {}
    for cell in cells:
        spec = cell.spec
        key = (spec.checkpoint, spec.method, spec.train.batch_size, spec.train.optimizer, spec.task)
        if key not in found:
            found[key] = demands_of(spec, card, threads, checkpointing, settings.force, words(spec))
        demands[cell.run_id] = found[key]
    return execute_on_ray(cells, folder, job, demands, ways.workers, threads, tick, ray, group)
