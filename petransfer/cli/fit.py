"""`fit`: what training a checkpoint takes, before anything is downloaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from petransfer.errors import UserError, unknown
from petransfer.memory.advice import OF_FIT, TURNED_ON, Words, in_options, it_would
from petransfer.memory.card_sizes import card_bytes
from petransfer.memory.study_memory import in_words, this_card
from petransfer.models.registry import checkpoint_spec
from petransfer.recipe.methods import METHODS
from petransfer.recipe.run_spec import MethodSpec
from petransfer.recipe.schema import MethodPart
from petransfer.study.grid import method_of

if TYPE_CHECKING:
    from petransfer.memory.measured import Measured
    from petransfer.memory.planner import Fit

PARTS = ("trained", "gradients", "optimizer", "activations", "logits", "workspace")
COLOURS = ("blue", "cyan", "green", "yellow", "magenta", "red", "white")


def fit(
    checkpoint: Annotated[str, typer.Argument(help="A hub id of the registry, a folder, or nano/<arm>.")],
    bits: Annotated[int, typer.Option(help="32, 16, 8 or 4.")] = 16,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "lora",
    rank: Annotated[int, typer.Option(min=1, help="The rank, of LoRA and its kin.")] = 16,
    virtual_tokens: Annotated[int, typer.Option(min=1, help="Of prompt and prefix tuning.")] = 20,
    match_parameters: Annotated[
        int | None, typer.Option(min=1, help="Find the rank or number of virtual tokens that trains so many.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples an optimiser step.")] = 32,
    lengths: Annotated[str, typer.Option(help="Pieces of the longest input and target.")] = "64,128",
    card: Annotated[
        str | None, typer.Option(help="A card's memory, such as 12GB; of this machine's card if any.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw-8bit or paged-adamw-8bit.")] = "adamw",
    stack: Annotated[int, typer.Option(min=1, help="Runs trained as one, each on a batch of its own.")] = 1,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations again.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Foresee a CPU's memory in place of a card's.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Train three steps here and compare.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what training takes, part by part, and the largest micro-batch that fits a card."""
    if bits not in (4, 8, 16, 32):
        raise UserError(f"--bits {bits}: take 4, 8, 16 or 32")
    for name, value, known in (
        ("method", method, METHODS),
        ("optimizer", optimizer, ("adamw", "adamw-8bit", "paged-adamw-8bit")),
    ):
        if value not in known:
            raise unknown(name, value, known)
    chosen = _method(method, bits, rank, virtual_tokens, match_parameters)
    _refuse_stack(stack, method, checkpointing, measure)
    spec = checkpoint_spec(checkpoint)
    source, target = two(lengths)

    from petransfer.memory.planner import plan
    from petransfer.memory.simulation import Demand
    from petransfer.models.architecture import configuration
    from petransfer.models.library_output import silence_libraries
    from petransfer.training.stacked.layers import refuse_layer_drop

    silence_libraries()
    room = card_bytes(card) if card is not None else None if cpu else this_card()
    device: Literal["cuda", "cpu"] = "cpu" if cpu or (measure and not _has_card()) else "cuda"
    demand = Demand(
        chosen,
        batch,
        source,
        target,
        device,
        optimizer,  # type: ignore[arg-type]
        checkpointing,
        members=stack,
    )
    config, own_head = configuration(spec)
    if stack > 1:
        refuse_layer_drop(config)
    found = plan(config, spec, demand, own_head, room)
    measured = _measured(spec, found.demand) if measure else None
    if as_json:
        print(json.dumps(_plain(found, measured), indent=1))
    else:
        show(checkpoint, found, measured)
    if not found.fits:
        raise typer.Exit(1)


def _refuse_stack(stack: int, method: str, checkpointing: bool, measure: bool) -> None:
    if stack == 1:
        return
    if METHODS.lookup(method).not_stacked:
        raise UserError(f"{method} is not stacked: {METHODS.lookup(method).not_stacked}")
    for option, given in {"--checkpointing": checkpointing, "--measure": measure}.items():
        if given:
            raise UserError(f"--stack {stack} does not go with {option}; leave one of them out")


def _method(name: str, bits: int, rank: int, tokens: int, match: int | None) -> MethodSpec:
    """The method, with what of these it takes."""
    declared = METHODS.lookup(name)
    if bits in declared.unsupported_bits:
        reason = declared.unsupported_bits[bits]
        whole = f"full fine-tuning cannot train {bits}-bit weights; take --bits 16 or 32, or --method lora"
        raise UserError(whole if declared.trains_all_weights else f"{name} cannot go on {bits} bits: {reason}")
    size = declared.size
    if match and not size:
        raise UserError(f"--match-parameters: {name} has no size to choose")
    given = {"match_parameters": match} if match else {"rank": rank} if size == "rank" else {}
    given |= {"virtual_tokens": tokens} if size == "virtual_tokens" and not match else {}
    return method_of(MethodPart(name=name, bits=bits, **given))  # type: ignore[arg-type]


def _measured(spec: Any, demand: Any) -> Measured:
    from petransfer.memory.measured import measure

    print("training three steps", file=sys.stderr)
    return measure(spec, demand, with_loop=True)


def show(name: str, found: Fit, measured: Measured | None = None, words: Words = OF_FIT) -> None:
    """Prints what a training takes, part by part, and whether it fits. words: of the verb that was called."""
    demand, memory = found.demand, found.memory
    method = in_words(demand.method)
    where = "a card" if demand.device == "cuda" else "the CPU"
    stack = f", {demand.members} stacked" if demand.members > 1 else ""
    title = f"{name}, {method}, {demand.method.bits} bits{stack}, on {where}: {demand.batch} at once of "
    title += f"{demand.input_length} and {demand.target_length} pieces"
    table = Table(min_width=44)
    table.add_column("part")
    small = memory.peak < 2**30
    table.add_column("MB" if small else "GB", justify="right")

    def said(size: int) -> str:
        return f"{size / 2**20:.1f}" if small else f"{size / 2**30:.2f}"

    if measured:
        table.add_column("measured", justify="right")
    sizes = {f"weights ({dtype})": size for dtype, size in memory.weights.items()}
    sizes |= {part: getattr(memory, part) for part in PARTS}
    for part, size in sizes.items():
        table.add_row(part, said(size), *([""] if measured else []))
    fixed = sum(memory.weights.values()) + memory.trained + memory.optimizer
    if measured:
        table.add_row("weights, trained, optimizer", said(fixed), said(measured.fixed), style="dim")
    table.add_row("peak", said(memory.peak), *([said(measured.peak)] if measured else []), style="bold")
    if demand.device == "cuda":
        table.add_row("with context and fragments", said(found.needed), *([""] if measured else []))
    console = Console(width=None if sys.stdout.isatty() else 120)
    print(title)
    console.print(table)
    console.print(_bar(found))
    print(f"{memory.trained_parameters:,} parameters trained")
    if measured:
        ratios = f"{memory.peak / measured.peak:.3f}, without activations {fixed / measured.fixed:.3f}"
        print(f"predicted over measured: {ratios}")
    if demand.device == "cpu":
        print(_of_the_loop(name, memory.peak, measured, said))
    for line in _verdict(found, words):
        print(line)


def _of_the_loop(name: str, foreseen: int, measured: Measured | None, said: Callable[[int], str]) -> str:
    """What is foreseen and compared is the plain step; on a CPU the training loop may take another."""
    if measured is None:
        which = f"`petransfer fit {name} --measure --cpu` says which"
        return f"this is the plain step; a CPU may take a leaner one: {which}"
    if measured.loop is None:
        return "the training loop takes this step"
    kept = f", {said(measured.kept)} of them kept beside the model" if measured.kept else ""
    ratio = f"{foreseen / measured.loop:.2f}"
    return f"the training loop's own step: {said(measured.loop)}{kept}; predicted over that: {ratio}"


def _verdict(found: Fit, words: Words) -> list[str]:
    if found.card is None:
        return []
    size, at_once = f"{found.card / 2**30:.4g} GB", found.demand.batch
    if found.fits:
        again = f" {TURNED_ON}" if found.turned_on else ""
        each = f" of each of {found.demand.members} runs" if found.demand.members > 1 else ""
        cut = "" if at_once == found.batch else f", {found.batch} an optimiser step by accumulation"
        return [f"fits {size}{again}: {at_once}{each} at once{cut}"]
    if found.advice:
        return [f"does not fit {size}{it_would(found.advice, words)}"]
    return [f"does not fit {size}, whatever is changed; take a smaller checkpoint"]


def _bar(found: Fit, width: int = 72) -> Text:
    """One block a share of the card, or of the peak where no card was named."""
    memory = found.memory
    sizes = {"weights": sum(memory.weights.values())} | {part: getattr(memory, part) for part in PARTS}
    whole = max(found.card or 0, found.needed if found.demand.device == "cuda" else memory.peak)
    bar, legend = Text(), Text("\n")
    for (part, size), colour in zip(sizes.items(), COLOURS, strict=True):
        bar.append("█" * round(width * size / whole), style=colour)
        if size:
            legend.append("█ ", style=colour).append(f"{part} ")
    bar.append("░" * max(0, width - len(bar)))
    return bar.append_text(legend)


def _plain(found: Fit, measured: Measured | None) -> dict[str, Any]:
    content = {
        "memory": asdict(found.memory) | {"peak": found.memory.peak, "on_card": found.needed},
        "card": found.card,
        "fits": found.fits,
        "micro_batch": found.demand.batch,
        "stack": found.demand.members,
        "checkpointing": found.demand.checkpointing,
        "advice": in_options(found.advice, OF_FIT),
    }
    return content | ({"measured": asdict(measured)} if measured else {})


def two(text: str) -> tuple[int, int]:
    """The two whole numbers of `64,128`."""
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
