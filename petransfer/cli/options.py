"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petransfer.errors import UserError
from petransfer.recipe.values import MOST_RUNS
from petransfer.training.execution import MOST_THREADS

RecipeArgument = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="Name of a shipped recipe, a YAML file or a study's folder.")
]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", "-r", help="Same as the argument RECIPE. Default: lora-scan.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a setting of the recipe, such as --set train.steps=500. Can be given several times."
    ),
]
FamilyName = Annotated[
    str | None,
    typer.Option(
        "--family",
        help="Name of a checkpoint family: comparable checkpoints, one per arm. `petransfer checkpoints ls` lists the "
        "families. Default: as in the recipe.",
    ),
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", help="Seeds, such as 0,1,2 or 0-5, in place of all seeds in the recipe.")
]
Arms = Annotated[
    str | None,
    typer.Option(
        "--arms",
        help="Arms (kinds of pretraining) to run, separated by commas: english,code. Default: all arms of the recipe.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the study. Default: results/<recipe>.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="A folder with the benchmark's original files, as its authors published them."),
]
ShardName = Annotated[
    str | None,
    typer.Option("--shard", help="Execute only one part of the runs, for job arrays: 2/8 is part 2 of 8."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

Workers = Annotated[
    int, typer.Option(min=0, help="Number of runs at the same time, one process per run. 0: chosen automatically.")
]
Processes = Annotated[
    int, typer.Option(min=1, help="Number of processes per run. They divide each batch among themselves.")
]
Executor = Annotated[str, typer.Option(help="Where runs are executed. local: on this machine. ray: on a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option(help="Address of the Ray cluster. auto: a cluster that runs on this machine.")
]
Threads = Annotated[
    int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads of each process. 0: chosen automatically.")
]
MicroBatch = Annotated[
    int,
    typer.Option(
        "--micro-batch-size",
        "--micro-batch",
        min=0,
        help="Number of examples in one forward pass. 0: chosen automatically.",
    ),
]
Stack = Annotated[
    str,
    typer.Option(help="How many runs may share one base model: a number, off, or auto (as many as fit on the GPU)."),
]
SaveEvery = Annotated[
    float,
    typer.Option(min=0.0, help="Seconds between two saves of the training state. An interrupted run resumes from it."),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing", "--checkpointing", help="Save memory: recompute activations in the backward pass."
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs",
        help="Replay training steps as CUDA graphs, which makes small models faster on a GPU. Only at 32 or 16 bits.",
    ),
]
LogWith = Annotated[
    list[str] | None,
    typer.Option(
        "--log-with", help="Trackers to log to, separated by commas: tensorboard, wandb, mlflow, trackio, ..."
    ),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if there is a GPU.")]
Force = Annotated[bool, typer.Option("--force", help="Train even if the memory check or the quantisation check fails.")]


def recipe_name(argument: str | None, option: str | None) -> str:
    """Return the recipe's name from the argument or from `--recipe`. Default: `lora-scan`."""
    if argument and option and argument != option:
        raise UserError(f"two recipes were given, {argument} and --recipe {option}; give one of them")
    return argument or option or "lora-scan"


def parse_names(text: str | None) -> list[str] | None:
    """Return the names of a comma-separated list. None if the option was not given."""
    # An empty text gives an empty name, which recipes refuse. Otherwise `--arms "$ARMS"` with an empty variable would
    # select all arms.
    return None if text is None else [name.strip() for name in text.split(",")]


def split_names(values: list[str] | None) -> tuple[str, ...]:
    """Return the names in the values of an option that can be given several times, split at commas.

    >>> split_names(["bleu, chrf", "rouge"])
    ('bleu', 'chrf', 'rouge')
    """
    return tuple(name.strip() for value in values or () for name in value.split(","))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-separated list of numbers and ranges.

    Raises:
        UserError: The text is not a list of seeds, or has more than `MOST_RUNS` seeds.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found = range(int(first), int(last) + 1) if dash else [int(first)]
            if not found:
                raise UserError(
                    f"--seeds {text:.60}: the range {part:.60} is empty; write whole numbers such as 0,1,2 or 0-5"
                )
            if len(seeds) + len(found) > MOST_RUNS:
                raise UserError(f"--seeds {text:.60}: at most {MOST_RUNS:,} seeds are allowed")
            seeds += found
    except (ValueError, OverflowError):
        raise UserError(f"--seeds {text:.60}: write whole numbers such as 0,1,2 or 0-5") from None
    return seeds
