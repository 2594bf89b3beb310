"""Options that several verbs take: what a grid is, where it goes, and how it is carried out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
