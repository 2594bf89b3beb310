"""How `run` carries a grid out: which ways go together, and a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from petransfer.errors import UserError, unknown
from petransfer.study.grid import Cell
from petransfer.study.ledger import StudyFolder

if TYPE_CHECKING:
    from petransfer.study.demands import Demands
    from petransfer.study.executors import Outcome
    from petransfer.study.run import FineTune

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Ways:
    """How a grid is carried out. workers: runs at once, 0 chooses. executor: of EXECUTORS. address: of a cluster."""

    workers: int = 0
    executor: str = "local"
    address: str | None = None

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


def connected(address: str | None) -> Any:
    """Ray, connected; see `petransfer.study.on_ray.connect`."""
    from petransfer.study.on_ray import connect

    return connect(address)


def on_ray(
    cells: Sequence[Cell], folder: StudyFolder, job: FineTune, workers: int, tick: Callable[[], None], ray: Any
) -> Outcome:
    """Carries the cells out on the cluster.

    Raises:
        UserError: a run does not fit the cluster's cards, before anything is begun.
    """
    from petransfer.study.demands import demands_of
    from petransfer.study.on_ray import execute_on_ray, smallest_card

    settings = job.settings
    threads, checkpointing = settings.execution.threads or 1, settings.execution.checkpointing
    card = None if settings.cpu else smallest_card(ray)
    found: dict[object, Demands] = {}
    demands: dict[str, Demands] = {}
    for cell in cells:
        spec = cell.spec
        key = (spec.checkpoint, spec.method, spec.train.batch_size, spec.train.optimizer, spec.task)
        if key not in found:
            found[key] = demands_of(spec, card, threads, checkpointing, settings.force)
        demands[cell.run_id] = found[key]
    return execute_on_ray(cells, folder, job, demands, workers, threads, tick, ray)
