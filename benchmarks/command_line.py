"""The command line of the benchmarks: compare petransfer with other tools on this machine."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from petransfer.cli.options import Cpu, DataDir
from petransfer.cli.table_layout import print_table
from petransfer.errors import UserError
from petransfer.training.cpu.processor import processor

if TYPE_CHECKING:
    import torch

    from benchmarks.prepared import Prepared
    from petransfer.recipe.run_spec import Bits

app = typer.Typer(no_args_is_help=True, help="Compare petransfer with other tools.")

Widths = Annotated[str, typer.Option(help="8, 4 or both, comma-separated.")]

Recipes = Annotated[str, typer.Option("--recipe", "-r", help="Recipes, comma-separated.")]
ArmName = Annotated[str, typer.Option("--arm", help="The arm whose first cell is trained.")]
Repeats = Annotated[int, typer.Option(min=1, help="Number of measurements of each side of the comparison.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves them as they are.")]
CheckpointName = Annotated[
    str | None,
    typer.Option("--checkpoint", help="Instead of the arm's checkpoint: an embedded arm, a folder or a hub id."),
]
Width = Annotated[int | None, typer.Option("--bits", help="32, 16, 8 or 4, instead of the recipe's bits.")]


def _can_be_added_to(out: Path | None) -> Path | None:
    """Check that results can be added to a file, before anything is measured, so that no results are lost.

    Raises:
        UserError: the file's folder cannot be made, or the file has other content than a list of results.
    """
    if out is not None:
        _earlier_results(out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out}: no such folder can be made ({error.strerror}); name another file") from None
    return out


def _earlier_results(out: Path) -> list[Any]:
    """Return the results that a JSON file already contains. [] if there is no such file.

    Raises:
        UserError: the file cannot be read as JSON, or its content is not a list.
    """
    try:
        before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out} cannot be read as JSON ({error}); name another file") from None
    if not isinstance(before, list):
        raise UserError(f"--out {out} is not a list of results; name another file")
    return before


Out = Annotated[Path | None, typer.Option(help="A JSON file to add the results to.", callback=_can_be_added_to)]


@app.command()
def train(
    recipes: Recipes = "lora-scan",
    arm: ArmName = "english",
    batch: Annotated[int, typer.Option(min=0, help="Examples per step; 0: the recipe's batch size.")] = 32,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps per measurement; Trainer sorts by length in blocks of 50 batches.")
    ] = 50,
    repeats: Repeats = 3,
    threads: Threads = 0,
    checkpoint: CheckpointName = None,
    bits: Width = None,
    cpu: Cpu = False,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """Compare the training speed of petransfer with that of Seq2SeqTrainer and peft, in examples per second."""
    prepared = _prepared(recipes, arm, (batch, checkpoint, bits), data_dir, _device(cpu, threads))

    from benchmarks.training import row

    found = [row(one, steps, repeats) for one in prepared]
    table = _table("task", "side", "examples/s", "petransfer is faster by", "of matmul rate", left=("task", "side"))
    for one in found:
        rates, shares = one["examples_per_second"], one["share_of_matmul_rate"]
        for side, rate in rates.items():
            figures = (f"{rate:.1f}", f"{rates['petransfer'] / rate:.2f}", f"{100 * shares[side]:.1f} %")
            table.add_row(one["task"], side, *figures)
    print_table(table)
    _add(found, out)


@app.command("eval")
def evaluate(
    run: Annotated[
        list[Path] | None, typer.Option("--run", help="A finished run's folder, in place of recipes. Repeatable.")
    ] = None,
    recipes: Recipes = "lora-scan",
    arm: ArmName = "english",
    train_steps: Annotated[
        int, typer.Option(min=1, help="Training steps before scoring; the learning-rate schedule has the same length.")
    ] = 100,
    examples: Annotated[int, typer.Option(min=1, help="Test examples, drawn at random.")] = 256,
    repeats: Repeats = 3,
    threads: Threads = 0,
    checkpoint: CheckpointName = None,
    bits: Width = None,
    cpu: Cpu = False,
    data_dir: DataDir = None,
    out: Out = None,
) -> None:
    """Compare the speed of scoring by one forward pass with that of `generate`, and count their disagreements."""
    if run and (checkpoint or bits):
        raise UserError("--run already determines the checkpoint and the bits; leave out --checkpoint and --bits")
    device = _device(cpu, threads)
    prepared = _prepared(recipes, arm, (0, checkpoint, bits), data_dir, device)

    from benchmarks.scoring import row, trained_before, trained_here

    if run:
        trained = (trained_before(folder, data_dir, device) for folder in run)
    else:
        trained = (trained_here(one, train_steps) for one in prepared)
    found = [row(one, examples, repeats) for one in trained]
    table = _table("task", "examples", "EM %", "petransfer/s", "generate/s", "ratio", "disagree", left=("task",))
    for one in found:
        rates = [f"{rate:.1f}" for rate in one["examples_per_second"].values()]
        figures = (f"{one['exact_match']:.1f}", *rates, f"{one['ratio']:.1f}", str(one["disagreements"]))
        table.add_row(one["task"], str(one["examples"]), *figures)
    print_table(table)
    for one in found:
        print(f"{one['task']}: " + ", ".join(f"{part} {share:.0f} %" for part, share in one["profile"].items()))
    _add(found, out)


@app.command()
def startup(
    repeats: Annotated[int, typer.Option(min=1, help="Turns.")] = 5,
    out: Out = None,
) -> None:
    """Measure how many seconds the commands of petransfer take."""
    from benchmarks.startup import rows

    found = rows(repeats)
    table = _table("command", "median s", "least s", "processor s", left=("command",))
    for row in found:
        table.add_row(row["command"], *(f"{row[name]:.2f}" for name in ("median", "least", "processor")))
    print_table(table)
    _add(found, out)


@app.command()
def memory(
    checkpoint: Annotated[
        str, typer.Argument(help="A hub id of the registry; the model gets its shape.")
    ] = "google-t5/t5-11b",
    layers: Annotated[int | None, typer.Option(min=1, help="Number of layers per side; default: all.")] = None,
    bits: Widths = "8,4",
    batch: Annotated[int | None, typer.Option(min=1, help="Examples at once; 1, and at most 32 with --cap.")] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the input and of the target.")] = "32,64",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Use gradient checkpointing.")] = False,
    cap: Annotated[
        str | None,
        typer.Option(
            help="Sizes such as 6GB,12GB: the largest micro-batch, up to --batch, that fits in this much GPU memory."
        ),
    ] = None,
    out: Out = None,
    scratch: Annotated[Path | None, typer.Option(help="Folder for temporary weights.")] = None,
) -> None:
    """Compare the memory of a LoRA step with that of peft's prepare_model_for_kbit_training.

    With --cap, find the largest micro-batch that trains in a part of a GPU's memory instead.
    """
    from benchmarks.caps import row, sizes
    from benchmarks.memory import SIDES, Cell, loading, measure, theoretical
    from benchmarks.shapes import write_random
    from petransfer.cli.fit import parse_lengths
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    source, target = parse_lengths(lengths)
    wanted, caps = _bits(bits), sizes(cap)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        print(f"writing {checkpoint} with random weights", file=sys.stderr)
        parameters = write_random(checkpoint, Path(folder), layers)
        about = {"checkpoint": checkpoint, "layers": layers, "parameters": parameters, "processor": processor()}
        for bits_per_weight in wanted:
            cell = Cell(folder, bits_per_weight, batch or (32 if caps else 1), source, target, checkpointing)
            found += [about | {**asdict(cell), "folder": None} | row(cell, size) for size in caps]
            for side in SIDES if not caps else ():
                print(f"{bits_per_weight} bits, {side}", file=sys.stderr)
                taken = asdict(measure(cell, side))
                beside = {"theory": theoretical(parameters, bits_per_weight)}
                alone = {"loading": loading(cell)} if side == "petransfer" else {}
                found.append(about | {**asdict(cell), "folder": None} | taken | beside | alone)
    (_show_caps if caps else _show)(found)
    _add(found, out)


@app.command()
def fit(
    checkpoints: Annotated[str, typer.Option(help="Hub ids of the registry, comma-separated.")] = (
        "google-t5/t5-small,google/t5-v1_1-small,openai-community/gpt2"
    ),
    layers: Annotated[int | None, typer.Option(min=1, help="Number of layers per side.")] = 2,
    out: Out = None,
) -> None:
    """Compare the memory that `petransfer fit` predicts with the memory that three real steps take."""
    from benchmarks.foresight import rows
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    found = rows(checkpoints.split(","), layers, lambda line: print(line, file=sys.stderr))
    sizes_of = ("foreseen MB", "measured MB", "ratio", "ratio without activations")
    table = _table("checkpoint", "method", "bits", "at once", *sizes_of, left=("checkpoint", "method"))
    for row in found:
        sizes = [f"{row[name] / 1e6:.1f}" for name in ("foreseen", "measured")]
        ratios = [f"{row[name]:.3f}" for name in ("ratio", "ratio_fixed")]
        table.add_row(row["checkpoint"], row["method"], str(row["bits"]), str(row["batch"]), *sizes, *ratios)
    print_table(table)
    _add(found, out)


@app.command()
def quantise(
    checkpoint: Annotated[str, typer.Argument(help="An embedded arm, a folder or a hub id.")],
    text: Annotated[Path, typer.Argument(help="Plain text of the kind that it was pretrained on.")],
    windows: Annotated[int, typer.Option(min=1, help="Windows of 128 tokens.")] = 256,
    layers: Annotated[
        str, typer.Option(help="Endings of layers to leave at 16 bits, one after the other; comma-separated.")
    ] = "wo",
    out: Out = None,
) -> None:
    """Measure how much the loss rises at 8 and 4 bits.

    The loss is measured as petransfer quantises the model, with the head quantised too, and with chosen layers left at
    16 bits.
    """
    from benchmarks.quantising import rows
    from petransfer.models.quiet_libraries import silence_libraries
    from petransfer.models.registry import checkpoint_spec

    silence_libraries()
    table = _table("bits", "wide", "loss", "change %", "weights MB", left=("wide",))
    found: list[dict[str, Any]] = []
    for row in rows(checkpoint_spec(checkpoint), text, windows, layers.split(",")):
        print(f"{row.bits} bits, wide: {row.wide}", file=sys.stderr)
        about = {"checkpoint": checkpoint, "text": text.name, "windows": windows, "processor": processor()}
        found.append({**about, **asdict(row)})
        table.add_row(str(row.bits), row.wide, f"{row.loss:.4f}", f"{100 * row.change:+.2f}", f"{row.bytes / 1e6:.2f}")
    print_table(table)
    _add(found, out)


@app.command()
def stacked(
    checkpoint: Annotated[str, typer.Argument(help="An embedded arm, a folder or a hub id.")] = "nano/english",
    counts: Annotated[str, typer.Option("--runs", help="Runs at once, comma-separated.")] = "1,2,4,8",
    bits: Annotated[int, typer.Option(help="32, 16, 8 or 4.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Examples an optimiser step.")] = 32,
    micro_batch: Annotated[int, typer.Option(min=0, help="Examples of a run a forward pass; 0 chooses.")] = 0,
    threads: Threads = 0,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of rounds; each round measures every way of training.")
    ] = 5,
    cpu: Cpu = False,
    out: Out = None,
) -> None:
    """Compare training K adapters as one stack with K runs one after another, by petransfer and by Trainer."""
    from petransfer.models.quiet_libraries import silence_libraries

    checked_bits = _known_bits(bits)
    if not all(re.fullmatch(r"[1-9][0-9]?", part) for part in counts.split(",")):
        raise UserError(f"--runs {counts}: write whole numbers from 1 to 99 such as 1,2,4,8")
    silence_libraries()

    from benchmarks.stacked import Setting, measure

    setting = Setting(checkpoint, checked_bits, batch=batch, micro_batch=micro_batch, threads=threads, rounds=rounds)
    wanted, device = [int(part) for part in counts.split(",")], _device(cpu, threads)
    found = measure(setting, wanted, device, lambda line: print(line, file=sys.stderr))
    table = _table("runs", "Trainer, examples/s", "one by one", "stacked", "by Trainer", "by one by one")
    for row in found["rows"]:
        rates = [f"{row[way]:.1f}" for way in ("trainer", "single", "stacked")]
        table.add_row(str(row["runs"]), *rates, f"{row['ratio_trainer']:.2f}", f"{row['ratio']:.2f}")
    print_table(table)
    for way, shares in found["profile"].items():
        print(f"{way}: " + ", ".join(f"{part} {share:.0f} %" for part, share in shares.items()))
    about = found["hardware"]
    print(f"{checkpoint} on {about['gpu'] or about['processor']}, {about['threads']} of {about['cores']} cores")
    _add([found], out)


@app.command()
def growth(
    sizes: Annotated[str, typer.Option(help="nano, micro or T5s of the registry, comma-separated.")] = (
        "nano,micro,google-t5/t5-small"
    ),
    lengths: Annotated[str, typer.Option(help="Tokens of each input and each target, comma-separated.")] = (
        "16,32,64,128,256"
    ),
    at_size: Annotated[str, typer.Option(help="The size at which lengths are compared.")] = "nano",
    at_length: Annotated[int, typer.Option(min=1, help="The length at which sizes are compared.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements of each.")] = 5,
    threads: Threads = 1,
    bits: Annotated[int, typer.Option(help="32 or 16.")] = 32,
    cpu: Cpu = False,
    out: Out = None,
) -> None:
    """Measure the time of a LoRA step and of scoring for several model sizes and text lengths."""
    from benchmarks.growth import points, rows
    from petransfer.models.quiet_libraries import silence_libraries

    if not all(re.fullmatch(r"[1-9][0-9]{0,3}", part) for part in lengths.split(",")):
        raise UserError(f"--lengths {lengths}: write whole numbers from 1 to 9999 such as 16,32,64")
    if bits not in (16, 32):
        raise UserError(f"--bits {bits}: use 32 or 16")
    silence_libraries()
    chosen = points(sizes.split(","), [int(part) for part in lengths.split(",")], at_size, at_length)
    found = rows(chosen, batch, repeats, _device(cpu, threads), 16 if bits == 16 else 32)
    rates = ("s a batch", "tokens/s", "MFLOP a token", "of matmul rate")
    table = _table("size", "parameters", "tokens", "what", *rates, left=("size", "what"))
    for row in found:
        of = row["size"], f"{row['parameters']:,}", str(row["length"]), row["what"]
        work = f"{row['flops_per_token'] / 1e6:.1f}", f"{100 * row['share_of_matmul_rate']:.1f} %"
        table.add_row(*of, f"{row['seconds']:.3f}", f"{row['tokens_per_second']:,.0f}", *work)
    print_table(table)
    _add(found, out)


def _device(cpu: bool, threads: int) -> torch.device:
    """Return the device to measure on, and set the number of CPU threads; 0 keeps the present number."""
    import torch

    from benchmarks.sides import device_of

    torch.set_num_threads(threads or torch.get_num_threads())
    return device_of(cpu)


def _prepared(
    recipes: str, arm: str, changes: tuple[int, str | None, int | None], data_dir: Path | None, device: torch.device
) -> Iterator[Prepared]:
    """Return an iterator over the arm's first cell in each recipe. A cell is prepared when the iterator reaches it.

    changes: the batch size, the checkpoint and the bits in place of the recipe's; 0 or None keeps the recipe's value.
    """
    from benchmarks.prepared import Changes, prepare
    from petransfer.models.quiet_libraries import silence_libraries

    silence_libraries()
    batch, checkpoint, bits = changes
    asked = Changes(batch, checkpoint, None if bits is None else _known_bits(bits))
    return (prepare(name, arm, asked, data_dir, device) for name in recipes.split(","))


def _table(*columns: str, left: Sequence[str] = ()) -> Table:
    """Return an empty table. The columns named in `left` have text, all others have numbers, aligned to the right."""
    table = Table()
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    return table


def _add(found: list[dict[str, Any]], out: Path | None) -> None:
    """Add rows to the JSON file `out`. Nothing happens if it is None."""
    if out is not None:
        out.write_text(json.dumps(_earlier_results(out) + found, indent=1) + "\n")


def _show(found: list[dict[str, Any]]) -> None:
    sizes = ("weights GB", "of theory", "of usual", "peak GB", "of usual", "host GB", "loading")
    table = _table("bits", "side", *sizes, left=("side",))
    for row in found:
        hosts = ["-" if size is None else f"{size / 1e9:.2f}" for size in (row["host"], row.get("loading"))]
        usual = next(other for other in found if other["side"] == "usual" and other["bits"] == row["bits"])
        table.add_row(
            str(row["bits"]),
            row["side"],
            f"{row['weights'] / 1e9:.2f}",
            f"{row['weights'] / row['theory']:.2f}",
            f"{row['weights'] / usual['weights']:.2f}",
            f"{row['peak'] / 1e9:.2f}",
            f"{row['peak'] / usual['peak']:.2f}",
            *hosts,
        )
    print_table(table)
    print(f"{found[0]['checkpoint']}, {found[0]['parameters']:,} parameters, on {found[0]['device']}")


def _show_caps(found: list[dict[str, Any]]) -> None:
    table = _table("bits", "card GB", "micro-batch", "foreseen", "peak GB")
    for row in found:
        peak = "-" if row["peak"] is None else f"{row['peak'] / 1e9:.2f}"
        counts = (str(row["micro_batch"]), str(row["foreseen"]))
        table.add_row(str(row["bits"]), f"{row['cap'] / 1e9:g}", *counts, peak)
    print_table(table)
    print(f"{found[0]['checkpoint']}, {found[0]['parameters']:,} parameters, in a part of {found[0]['device']}")


def _bits(text: str) -> list[int]:
    known = {"8": 8, "4": 4}
    try:
        return [known[part.strip()] for part in text.split(",")]
    except KeyError:
        raise UserError(f"--bits {text}: use 8, 4 or 8,4") from None


def _known_bits(bits: int) -> Bits:
    known: dict[int, Bits] = {4: 4, 8: 8, 16: 16, 32: 32}
    if bits not in known:
        raise UserError(f"--bits {bits}: give 4, 8, 16 or 32")
    return known[bits]
