"""Options that several commands share: the grid, the output folder, and how runs are executed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petransfer.errors import UserError
from petransfer.recipe.values import MOST_RUNS

RecipeArgument = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe's name, a YAML file or a study's folder.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", help="Same as the argument RECIPE. Default: lora-scan.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a key of the recipe: --set train.steps=500. Can be given several times."),
]
FamilyName = Annotated[
    str | None,
    typer.Option(
        "--family",
        help="A checkpoint family (comparable checkpoints, one per arm); `petransfer checkpoints ls` lists them.",
    ),
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Seeds, as 0,1,2 or 0-5.")]
Arms = Annotated[
    str | None,
    typer.Option(
        "--arms", help="Arms (kinds of pretraining), comma-separated: english,code. Default: all of the recipe."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="The study's folder; default results/<recipe>.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="A folder with the benchmark's original files, as its authors published them."),
]
ShardName = Annotated[
    str | None,
    typer.Option("--shard", help="Execute only one part of the runs, such as 2/8 (part 2 of 8), for job arrays."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

# No machine has more cores than this; thousands of threads end the process with a segmentation fault.
MOST_THREADS = 512

Workers = Annotated[
    int, typer.Option(min=0, help="Number of runs at the same time, one process per run. 0: chosen automatically.")
]
Processes = Annotated[int, typer.Option(min=1, help="Processes per run. Each batch is divided among them.")]
Executor = Annotated[str, typer.Option(help="local: this machine. ray: a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; auto finds one on this machine.")]
Threads = Annotated[
    int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads of each process. 0: chosen automatically.")
]
MicroBatch = Annotated[
    int,
    typer.Option(
        "--micro-batch-size", "--micro-batch", min=0, help="Examples in one forward pass. 0: chosen automatically."
    ),
]
Stack = Annotated[str, typer.Option(help="Runs trained together on one base: a number, auto or off.")]
SaveEvery = Annotated[
    float, typer.Option(min=0.0, help="Seconds between two saves of the training state, from which a run resumes.")
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing", "--checkpointing", help="Save memory: recompute activations in the backward pass."
    ),
]
LogWith = Annotated[
    list[str] | None,
    typer.Option("--log-with", help="Log to trackers: tensorboard, wandb, mlflow, trackio, ... Comma-separated."),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")]
Force = Annotated[bool, typer.Option("--force", help="Ignore failed memory and quantisation checks.")]


def recipe_name(argument: str | None, option: str | None) -> str:
    """Return the recipe's name, which can be given as an argument or as an option.

    Raises:
        UserError: Both are given and differ.
    """
    if argument and option and argument != option:
        raise UserError(f"two recipes were given, {argument} and --recipe {option}; give one of them")
    return argument or option or "lora-scan"


def parse_seeds(text: str) -> list[int]:
    """Parse a list of seeds and ranges.

    Raises:
        UserError: The text is empty or is not such a list.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found = range(int(first), int(last) + 1) if dash else [int(first)]
            if len(seeds) + len(found) > MOST_RUNS:
                raise UserError(f"--seeds {text:.60}: at most {MOST_RUNS:,} seeds are allowed")
            seeds += found
    except (ValueError, OverflowError):
        raise UserError(f"--seeds {text:.60}: write whole numbers as 0,1,2 or 0-5") from None
    if not seeds:
        raise UserError(f"--seeds {text:.60}: the range holds no seed; write whole numbers as 0,1,2 or 0-5")
    return seeds
