"""Options that several verbs take: what a grid is, where it is written, and how it is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petransfer.errors import UserError

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name or a yaml file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set train.steps=500. Repeatable.")]
FamilyName = Annotated[str | None, typer.Option("--family", help="A registered family of checkpoints.")]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Seeds, as 0,1,2 or 0-5.")]
Arms = Annotated[str | None, typer.Option("--arms", help="Arms, parted by commas.")]
Out = Annotated[Path | None, typer.Option("--out", help="The study's folder; results/<recipe> unless given.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="A folder with official data files.")]
ShardName = Annotated[str | None, typer.Option("--shard", help="Part of the runs, such as 2/8, for job arrays.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Workers = Annotated[int, typer.Option(min=0, help="Runs at once, a process each; 0 chooses.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Processes that share every run's batches, by Accelerate's launcher.")
]
Executor = Annotated[str, typer.Option(help="local: this machine. ray: a Ray cluster, a task a run.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster; auto finds this machine's.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads a process; 0 chooses.")]
MicroBatch = Annotated[int, typer.Option(min=0, help="Examples a forward pass; 0 chooses.")]
Stack = Annotated[str, typer.Option(help="Runs that share a base trained as one: a number, auto or off.")]
SaveEvery = Annotated[float, typer.Option(min=0.0, help="Seconds between states to resume from.")]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Compute activations again in the backward pass, to save memory.")
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there is a GPU.")]
Force = Annotated[bool, typer.Option("--force", help="Go on where memory or quantisation says not to.")]


def parse_seeds(text: str) -> list[int]:
    """Read seeds.

    Raises:
        UserError: The text holds something else, or nothing.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise UserError(f"--seeds {text}: write whole numbers as 0,1,2 or 0-5") from None
    if not seeds:
        raise UserError(f"--seeds {text}: the range holds no seed; write whole numbers as 0,1,2 or 0-5")
    return seeds


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "run"), count(1200, "run")
    ('1 run', '1,200 runs')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(4.2), duration(75), duration(4000)
    ('4 s', '1 min 15 s', '1 h 7 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
