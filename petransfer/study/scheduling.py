"""Settings for executing a study: number of parallel runs, executor and stacks. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from petransfer.errors import UserError, unknown
from petransfer.memory.study_memory import largest_stacks
from petransfer.plurals import count
from petransfer.python_arguments import checked_integer, checked_name
from petransfer.study.grid import Cell
from petransfer.study.stack_groups import stacks_of

EXECUTORS = ("local", "ray")

GroupRuns = Callable[[Sequence[Cell]], list[list[Cell]]]


@dataclass(frozen=True)
class Scheduling:
    """Settings for executing runs in parallel: how many, on which machines, and in which stacks.

    Attributes:
        workers: The number of parallel runs, one process each. 0: chosen automatically.
        executor: `local` for this machine, `ray` for a Ray cluster.
        address: The address of the Ray cluster. `auto`: the cluster of this machine.
        stack: The largest number of runs on one base model: a number, `auto` (as many as fit the GPU; 1 on a CPU) or
            `off`.

    Raises:
        UserError: A setting has the wrong type, or is out of range.
    """

    workers: int = 0
    executor: str = "local"
    address: str | None = None
    stack: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", checked_integer(self.workers, "workers", least=0))
        if checked_name(self.executor, "executor") not in EXECUTORS:
            raise unknown("executor", self.executor, EXECUTORS)
        if self.address is not None:
            checked_name(self.address, "address")
        if self.stack not in ("auto", "off") and not re.fullmatch(r"[1-9][0-9]{0,3}", self.stack):
            raise UserError(f"--stack {self.stack}: write a whole number of 1 or more, auto or off")

    def check(self, processes: int) -> None:
        """Check that the options can be combined. processes: the number of processes per run.

        Raises:
            UserError: Two options exclude each other.
        """
        if self.address and self.executor != "ray":
            raise UserError("--address names a Ray cluster; add --executor ray")
        if processes > 1 and self.executor == "ray":
            raise UserError("--executor ray gives every run one process; remove --processes")
        if processes > 1 and self.workers > 1:
            raise UserError("--workers executes several runs at once, --processes shares one run; use only one of them")
        if self.stack_size and processes > 1:
            raise UserError(f"--stack {self.stack} cannot be combined with --processes; remove one of them")

    @property
    def stack_size(self) -> int:
        """The number given as `stack`. 0 for `auto` and `off`."""
        return 0 if self.stack in ("auto", "off") else int(self.stack)

    def without_stacks_if(self, condition: bool, option: str) -> Scheduling:
        """Return this schedule. If the condition is true, the returned schedule trains every run alone.

        Args:
            condition: Whether an option is given that works only for single runs.
            option: The option, for the error message.

        Raises:
            UserError: Stacks of a certain size are combined with the option.
        """
        if not condition:
            return self
        if self.stack_size > 1:
            raise UserError(f"--stack {self.stack} cannot be combined with {option}; use --workers instead")
        return replace(self, stack="off")

    def grouping(self, checkpointing: bool, card_bytes: Callable[[], int | None], cards: int = 1) -> GroupRuns | None:
        """Return the function that groups runs into stacks. None: each run is trained alone.

        Args:
            checkpointing: Whether gradient checkpointing is on.
            card_bytes: Function that returns the memory of the smallest GPU in bytes; None on a CPU.
            cards: The number of GPUs. With `auto`, every GPU gets a stack.

        Raises:
            UserError: A stack size above 1 is combined with gradient checkpointing.
        """
        size = self.stack_size
        if size > 1 and checkpointing:
            raise UserError(
                f"--stack {self.stack} cannot be combined with --gradient-checkpointing: "
                "dropout would be drawn differently"
            )
        if size:
            return lambda cells: stacks_of(cells, size)
        room = None if checkpointing or self.stack == "off" else card_bytes()
        if room is None:  # stacking gains little on a CPU: see results/bench/stacked-cpu.json
            return None

        def group(cells: Sequence[Cell]) -> list[list[Cell]]:
            most, share = largest_stacks([cell.spec for cell in cells], room), -(-len(cells) // cards)
            return stacks_of(cells, {run_id: min(count, share) for run_id, count in most.items()})

        return group


def describe_stacks(stacks: Sequence[Sequence[Cell]]) -> str:
    """Return a line about the number of runs that are trained together."""
    counts = Counter(len(stack) for stack in stacks)
    alone = counts.pop(1, 0)
    if not counts:
        return "no runs are stacked"
    sizes = ", ".join(f"{many} of {count(size, 'run')}" for size, many in sorted(counts.items(), reverse=True))
    return f"stacks: {sizes}" + (f"; trained alone: {count(alone, 'run')}" if alone else "")
