"""The verb `fit`: predict the memory of a training run without downloads."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from petransfer.cli.terminal_text import print_text
from petransfer.errors import UserError
from petransfer.memory.advice import FIT_OPTIONS, TURNED_ON, OptionNames, suggestion
from petransfer.memory.cards import GB, gigabytes, parse_card, this_card
from petransfer.memory.study_memory import method_title
from petransfer.plurals import count
from petransfer.recipe.methods import METHODS

if TYPE_CHECKING:
    from petransfer.memory.measured import MeasuredMemory
    from petransfer.memory.planner import Fit

# The parts of a training step's memory, with their names in the table.
PARTS = {
    "trained": "trained parameters",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "activations": "activations",
    "logits": "logits",
    "workspace": "workspace of kernels",
}
COLOURS = ("blue", "cyan", "green", "yellow", "magenta", "red", "white")


def fit(
    checkpoint: Annotated[
        str, typer.Argument(help="A hub id, a folder, or a checkpoint shipped with petransfer, such as nano/english.")
    ],
    bits: Annotated[int, typer.Option(help="Bits of the base model's weights: 32, 16, 8 or 4.")] = 16,
    method: Annotated[str, typer.Option(help=f"Training method: {', '.join(METHODS)}.")] = "lora",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank, for LoRA and its variants. Default: 16.")] = None,
    virtual_tokens: Annotated[
        int | None, typer.Option(min=1, help="Number of virtual tokens, for prompt and prefix tuning. Default: 20.")
    ] = None,
    match_parameters: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train about this many parameters: choose the rank or the number of virtual tokens accordingly."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--batch", min=1, help="Examples per optimiser step.")
    ] = 32,
    lengths: Annotated[str, typer.Option(help="Tokens of the longest input and of the longest target.")] = "64,128",
    card: Annotated[
        str | None,
        typer.Option(
            help="Memory or name of a card, such as 12GB or 'RTX 3060'. Default: the card of this machine, if any."
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="Optimiser: adamw, adamw-8bit or paged-adamw-8bit.")] = "adamw",
    stack: Annotated[
        int, typer.Option(min=1, help="Number of adapters trained at the same time, each on its own batch.")
    ] = 1,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            "--checkpointing",
            help="Save memory: recompute activations in the backward pass.",
        ),
    ] = False,
    packing: Annotated[
        bool,
        typer.Option("--packing", help="Put several short examples into one row of a batch. For decoder-only models."),
    ] = False,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Predict the memory of training on the CPU instead of a card.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Also train three steps on this machine, and compare their memory with the prediction."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Predict the memory that fine-tuning needs, and the largest micro-batch that fits a card.

    1 GB is 10^9 bytes. The exit code is 1 if the run does not fit, or if it needs bf16 and the card has none.
    """
    if stack > 1 and measure:
        raise UserError(f"--stack {stack} cannot be combined with --measure; leave one of them out")
    pair = parse_lengths(lengths)
    limit = parse_card(card) if card is not None else None if cpu else this_card()

    from petransfer.memory import fit as library

    found = library.fit(
        checkpoint,
        bits=bits,
        method=method,
        card=limit,
        rank=rank,
        virtual_tokens=virtual_tokens,
        match_parameters=match_parameters,
        batch_size=batch_size,
        lengths=pair,
        optimizer=optimizer,  # type: ignore[arg-type]
        stack=stack,
        gradient_checkpointing=checkpointing,
        packing=packing,
        device="cpu" if cpu or (measure and not _has_card()) else "cuda",
    )
    measured = _measured(checkpoint, found) if measure else None
    if as_json:
        print(json.dumps(found.as_dict() | ({"measured": asdict(measured)} if measured else {}), indent=1))
    else:
        show(checkpoint, found, measured)
    if not found.fits:
        raise typer.Exit(1)


def _measured(checkpoint: str, found: Fit) -> MeasuredMemory:
    from petransfer.memory.measured import measure
    from petransfer.models.registry import checkpoint_spec

    print_text("training three steps", file=sys.stderr)
    return measure(checkpoint_spec(checkpoint), found.step_spec, with_loop=True)


def show(name: str, found: Fit, measured: MeasuredMemory | None = None, options: OptionNames = FIT_OPTIONS) -> None:
    """Print the memory of a training run, part by part, and whether the run fits.

    Args:
        measured: The measured memory of three steps. None: no measurement.
        options: The option names for the advice.
    """
    step_spec, memory = found.step_spec, found.memory
    where = "a card" if step_spec.device == "cuda" else "the CPU"
    stack = f", {step_spec.members} stacked" if step_spec.members > 1 else ""
    packed = ""
    if step_spec.packing:
        rows, width = step_spec.packed
        packed = f", packed into {count(rows, 'row')} of {count(width, 'token')}"
    print_text(
        f"{name}, {method_title(step_spec.method)}, {step_spec.method.bits} bits per weight{stack}, on {where}: "
        f"a micro-batch of {count(step_spec.batch, 'example')} with at most {step_spec.input_length} input tokens and "
        f"{step_spec.target_length} target tokens{packed}"
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    unit, text = ("MB", _megabytes) if memory.peak < GB else ("GB", _gigabytes)
    console.print(_table(found, measured, unit, text))
    bar = _bar(found, min(72, console.width))
    if bar and not console.no_color:  # without colours, the parts of the bar look alike
        console.print(bar)
    print(f"{memory.trained_parameters:,} parameters are trained")
    if measured:
        ratios = f"{memory.peak / measured.peak:.3f}, without activations {memory.fixed / measured.fixed:.3f}"
        print_text(f"prediction divided by measurement: {ratios}")
    if step_spec.device == "cpu":
        print_text(_about_the_loop(name, memory.peak, measured, lambda size: f"{text(size)} {unit}"))
    for line in _verdict(found, options):
        print_text(line)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def _table(found: Fit, measured: MeasuredMemory | None, unit: str, text: Callable[[int], str]) -> Table:
    """Return a table of the parts of the memory, predicted and measured."""
    memory = found.memory
    table = Table(min_width=44)
    table.add_column("part")
    table.add_column(unit, justify="right")
    if measured:
        table.add_column("measured", justify="right")

    def row(part: str, size: int, beside: int | None = None, **style: Any) -> None:
        table.add_row(part, text(size), *(["" if beside is None else text(beside)] if measured else []), **style)

    for dtype, size in memory.weights.items():
        row(f"weights ({dtype})", size)
    for part, title in PARTS.items():
        if text(size := getattr(memory, part)) != text(0):
            row(title, size)
    if measured:
        fixed = "weights, trained parameters and optimiser state"
        row(fixed, memory.fixed, measured.fixed, style="dim")
    row("sum at the peak", memory.peak, measured.peak if measured else None, style="bold")
    if found.step_spec.device == "cuda":
        row("with CUDA context and fragmentation", found.needed)
    return table


def _about_the_loop(name: str, predicted: int, measured: MeasuredMemory | None, text: Callable[[int], str]) -> str:
    """Return a sentence that compares the prediction with petransfer's CPU training step."""
    # the prediction is for a training step of plain transformers and peft, which can need more memory
    if measured is None:
        how = f"`petransfer fit {name} --measure --cpu` measures it"
        return (
            "the table is for a training step of plain transformers and peft; petransfer's own step on a CPU can "
            f"need less; {how}"
        )
    if measured.loop is None:
        return "petransfer trains this model with the step of plain transformers and peft"
    kept = f", {text(measured.kept)} of it for copies of weights" if measured.kept else ""
    ratio = f"{predicted / measured.loop:.2f}"
    return f"petransfer's own training step needs {text(measured.loop)}{kept}; prediction divided by this: {ratio}"


def _verdict(found: Fit, options: OptionNames) -> list[str]:
    if found.card is None:
        return []
    if found.lacks_bf16:
        other = "" if found.advice else "; with 32 bits it does not fit with any settings"
        return [f"{found}{other}{suggestion(found.advice, options)}"]
    size, at_once = gigabytes(found.card), found.step_spec.batch
    size += " of main memory" if found.step_spec.device == "cpu" else ""
    if found.fits:
        again = f" {TURNED_ON}" if found.turned_on else ""
        each = f" of each of {found.step_spec.members} runs" if found.step_spec.members > 1 else ""
        part = "" if at_once == found.batch else f"; gradient accumulation makes batches of {found.batch}"
        return [f"fits into {size}{again}, with {count(at_once, 'example')}{each} at once{part}"]
    if found.advice:
        return [f"does not fit into {size}{suggestion(found.advice, options)}"]
    return [f"does not fit into {size} with any settings; use a smaller checkpoint"]


def _bar(found: Fit, width: int) -> Text | None:
    """Return a bar with each part's share of the memory. None if the run needs too small a share to be seen."""
    memory = found.memory
    sizes = {"weights": sum(memory.weights.values())} | {title: getattr(memory, part) for part, title in PARTS.items()}
    whole = max(found.card or 0, found.needed if found.step_spec.device == "cuda" else memory.peak)
    bar, legend = Text(), Text("\n")
    for (part, size), colour in zip(sizes.items(), COLOURS, strict=True):
        bar.append("█" * round(width * size / whole), style=colour)
        if round(width * size / whole):
            legend.append("█ ", style=colour).append(f"{part} ")
    if not bar:
        return None
    if len(bar) < width:
        bar.append("░" * (width - len(bar)))
        legend.append("░ free")
    return bar.append_text(legend)


def parse_lengths(text: str) -> tuple[int, int]:
    """Return the two whole numbers of a text such as `64,128`."""
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--lengths {text}: write two whole numbers such as 64,128") from None
    if min(first, second) < 1:
        raise UserError(f"--lengths {text}: both must be at least 1")
    return first, second


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()
